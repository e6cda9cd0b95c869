"""What the repository promises as a whole: rooms, names, wheel, pins, shipped configurations."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest

from client.deployment import ClientConfig
from client.partner import PartnerConfig
from common.config import Config, load_config

ROOT = Path(__file__).parents[2]
PACKAGES = {"common", "client", "server", "simulations"}
CONFIGS = sorted((ROOT / "simulations" / "configs").glob("*.toml"))


def test_import_rules_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_our_top_level_names_are_nobody_elses() -> None:
    """Plain names make an application: another distribution that installs one of them would shadow it."""
    owners = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        assert set(owners.get(name, [])) <= {"hushclick"}, name


def test_the_wheel_holds_the_four_packages_and_what_they_read(tmp_path: Path) -> None:
    build = (
        "import sys; from hatchling.builders.wheel import WheelBuilder;"
        "next(WheelBuilder(sys.argv[1]).build(directory=sys.argv[2], versions=['standard']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", build, str(ROOT), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == PACKAGES
    assert {f"simulations/configs/{path.name}" for path in CONFIGS} <= set(names)
    assert "server/report_template.html" in names
    metadata = next(name for name in names if name.endswith("METADATA"))
    assert "License-Expression: Apache-2.0" in zipfile.ZipFile(wheel).read(metadata).decode()


def test_every_dependency_is_pinned_exactly() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {}
    for line in lines:
        name, exact, version = line.partition("==")
        assert exact, line
        pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in wanted:
        name = re.split(r"[\[<>=!~ ]", requirement)[0]
        assert re.sub(r"[-_.]+", "-", name).lower() in pins, requirement
    assert pins["torch"] == "2.13.0"
    assert pins["flwr"].startswith("1.41.")


@pytest.mark.parametrize("role", ["", "-e5", "-smollm2"])
def test_models_are_pinned_by_hash(role: str) -> None:
    lines = [
        line for line in (ROOT / f"requirements-models{role}.txt").read_text().splitlines() if line and line[0] != "#"
    ]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", line), line


KEYS = {
    "data": (
        "source path card click_threshold partners partition size_skew split test_share max_users generator"
        " measure_click_rate"
    ),
    "model": (
        "encoder encoder_sha256 max_tokens history width hidden context_buckets prior_click_rate"
        " label_delay_seconds item_rates unclicked_kept cache"
    ),
    "round": "num_rounds partners_per_round local_steps client_optimiser learning_rate weight_decay seed",
    "privacy": (
        "mode unit epsilon delta noise_multiplier clip sampling_rate"
        " max_impressions_per_user max_local_steps fixed_seed epsilon_partner epsilon_broken grid_bits period_days"
        " statistics_noise_multiplier statistics_epsilon statistics_clip statistics_every label_epsilon"
        " evaluation_noise_multiplier evaluation_epsilon evaluation_clip"
    ),
    "aggregation": "method weights min_partners colluders update_bound groups timeout_seconds stage_timeout_seconds",
    "server": (
        "optimiser learning_rate momentum beta2 tau evaluate_every bootstrap_samples floors"
        " least_slice_users least_slice_rows averaging averaging_decay averaging_from patience patience_figure"
        " calibration next_item_clicks next_item_candidates"
    ),
    "evaluation": "at from_time user_share key bins max_rows releases",
    "simulation": "dropout_rate attack attackers attack_factor",
    "audit": "canaries most_canary_share shadow_runs targets zero_rounds neighbours confidence seed",
    "output": "title report jobs trackers",
}


@pytest.mark.parametrize("table", KEYS)
def test_configuration_keys_are_frozen(table: str) -> None:
    """Add, do not rename: a TOML of today must parse tomorrow."""
    kind = type(getattr(Config(), table))
    assert set(KEYS[table].split()) <= {field.name for field in fields(kind)}
    assert [field.name for field in fields(Config())] == list(KEYS)


PARTNER_KEYS = {
    "overlap": "partners identifiers fold_case secret least_users days_between_answers",
    "retention": "log_days secrets_hours delivered_models",
    "personal": "kind penalty",
}


@pytest.mark.parametrize("table", PARTNER_KEYS)
def test_keys_of_a_partners_own_file_are_frozen(table: str) -> None:
    kind = {field.name: field.default_factory for field in fields(PartnerConfig)}[table]
    assert set(PARTNER_KEYS[table].split()) <= {field.name for field in fields(kind)}  # type: ignore[arg-type]


def test_keys_of_a_clients_own_file_are_frozen() -> None:
    """A client.toml in a partner's container must be read by the next release."""
    keys = "name superlink ca node_key worker signing_key shim_user start_worker worker_socket worker_owner"
    assert set(keys.split()) <= {field.name for field in fields(ClientConfig)}


def test_every_shipped_configuration_parses() -> None:
    assert {path.name for path in CONFIGS} >= {"demo.toml", "smoke.toml", "movietweetings.toml", "scale.toml"}
    for path in CONFIGS:
        mode = {"audit.toml": "distributed", "label.toml": "label", "no_privacy.toml": "none"}.get(path.name, "local")
        assert load_config(path).privacy.mode == mode, path.name


def test_the_demo_is_what_the_readme_says() -> None:
    demo = load_config(ROOT / "simulations" / "configs" / "demo.toml")
    assert (demo.data.source, demo.data.partners) == ("movielens", 6)
    assert (demo.privacy.unit, demo.privacy.epsilon) == ("user", 8.0)
    assert demo.model.encoder == "bundled:minilm"


def test_no_file_carries_a_machine_path_or_a_registry() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    machine = re.compile("/" + "work/|/root" + "/|pypi" + r"\.org|files\.python" + "hosted|" + "regi" + "stry\\.npm")
    for name in tracked:
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ".html", ""} and name != "LICENSE":
            found = machine.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{name}: {found.group(0) if found else ''}"


def test_every_module_has_a_docstring_that_says_what_it_is() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "_pb2" not in path.name:  # generated
                assert path.read_text(encoding="utf-8").lstrip().startswith('"""'), path
