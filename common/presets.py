"""What a machine is good for, in settings: `--preset NAME` stands for these, as so many `--set` before one's own.

The values come from docs/benchmarks.md: without a GPU a step of a fine-tuned encoder costs hundreds of times one of the
head, and no mode beats the head under epsilon 8 in few rounds; with one, low-rank products in all layers are the mode
whose private step costs least over a plain one.
"""

import importlib

PRESETS: dict[str, tuple[str, ...]] = {
    "cpu": ('model.tune="head"', 'model.device="cpu"', 'model.precision="float32"', "output.jobs=0"),
    "gpu": (
        'model.tune="lora"',
        "model.tune_layers=0",
        'model.device="cuda"',
        'model.precision="bfloat16"',
        "model.device_memory=0.9",
        "output.jobs=2",
    ),
}
# Partners are dealt out to the GPUs, as many at a time as there are cores.
PRESETS["gpus"] = (*PRESETS["gpu"][:-1], "output.jobs=0")
NAMES = ("auto", *PRESETS)


def overrides_of(name: str) -> tuple[str, ...]:
    """Returns the settings of a preset; "auto" is the one that fits this machine's GPUs."""
    if name == "auto":
        cuda = importlib.import_module("torch").cuda  # seconds, and needed here alone
        count = cuda.device_count() if cuda.is_available() else 0
        name = ("cpu", "gpu", "gpus")[min(count, 2)]
    return PRESETS[name]
