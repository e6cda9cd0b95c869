"""`budget plan`: the noise that a run would take, the figures of each mode, soon and without torch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import common
from common.cli import main
from common.config import load_config
from common.privacy.accounting import composed_epsilon
from simulations.spending import more_users, with_noise

ROOT = Path(common.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

LOCAL = """
[data]
source = "generated"
partners = 4
[data.generator]
users = 400
items = 20
impressions_per_user = 6
[round]
num_rounds = 8
local_steps = 2
[privacy]
epsilon = 4.0
delta = 1e-5
sampling_rate = 0.25
[aggregation]
method = "secure"
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(LOCAL, encoding="utf-8")
    return path


def plan(capsys: pytest.CaptureFixture[str], toml: Path, *words: str) -> dict[str, Any]:
    assert main(["budget", "plan", str(toml), "--users", "200", "--parameters", "400", "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_noise_of_what_is_asked_is_that_of_the_run(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = plan(capsys, toml)["asked"]
    assert asked["noise_multiplier"] == with_noise(load_config(toml)).privacy.noise_multiplier
    assert (asked["sampling_rate"], asked["rounds"], asked["steps"], asked["clip"]) == (0.25, 8, 16, 1.0)
    assert asked["epsilons"][-1] <= 4.0
    assert asked["epsilons"] == sorted(asked["epsilons"])


def test_a_steps_noise_is_what_the_report_of_a_run_says(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = plan(capsys, toml)["asked"]
    said = more_users(with_noise(load_config(toml)), 400, [200] * 4)
    assert f"has {asked['step_noise']:.2g} times the length" in said


def test_the_table_holds_every_rate_and_number_of_rounds(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, toml)
    lines = [(one["sampling_rate"], one["rounds"]) for one in found["choices"]]
    assert lines == [(rate, rounds) for rate in (0.01, 0.03, 0.1, 0.25, 0.3, 1.0) for rounds in (4, 8, 16)]
    assert found["asked"]["noise_multiplier"] in [one["noise_multiplier"] for one in found["choices"]]
    assert found["recommended"]["rounds"] == 8
    assert found["recommended"]["run_noise"] <= found["asked"]["run_noise"]


def test_rates_that_sample_nobody_are_left_out_unless_asked_for(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = plan(capsys, toml, "--users", "20")
    assert {one["sampling_rate"] for one in few["choices"]} == {0.1, 0.25, 0.3, 1.0}
    asked = plan(capsys, toml, "--users", "20", "--set", "privacy.sampling_rate=0.01")
    assert {one["sampling_rate"] for one in asked["choices"]} == {0.01, 0.1, 0.3, 1.0}


def test_every_line_keeps_the_budget(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in plan(capsys, toml)["choices"]:
        spent = composed_epsilon(((one["sampling_rate"], one["noise_multiplier"], one["steps"]),), 1e-5)
        assert 3.9 < spent <= 4.0 * (1 + 2e-5) + 1e-3 * (one["sampling_rate"] == 1)


def test_shared_noise_is_smaller_and_has_a_number_per_adversary(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "round.local_steps=1", "--set", "aggregation.min_partners=4"]
    local = plan(capsys, toml, *words)["asked"]
    shared = plan(capsys, toml, *words, "--set", "privacy.mode=distributed")
    asked = shared["asked"]
    assert shared["setting"]["units"] == 800  # all four partners' users are behind one sum
    assert asked["noise_multiplier"] == local["noise_multiplier"]
    extra = shared["setting"]["extra_noise"]  # parts are sized for three honest partners; all four come
    assert extra == pytest.approx((4 / 3) ** 0.5)
    assert asked["run_noise"] == pytest.approx(local["run_noise"] / 2 * extra)
    noise, steps = asked["noise_multiplier"], asked["steps"]
    views = {"server": noise, "partner": noise * (2 / 3) ** 0.5, "broken": noise / 3**0.5}
    for view, seen in views.items():
        assert asked["views"][view] == pytest.approx(composed_epsilon(((0.25, seen, steps),), 1e-5))
    assert asked["overflow"] < 1e-50


@pytest.mark.parametrize(("key", "left"), [("broken", (1 / 3) ** 0.5), ("partner", (2 / 3) ** 0.5)])
def test_the_noise_keeps_every_bound(key: str, left: float, toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The strictest of the bounds decides, by the noise that is left for whom it bounds, not a thousandth more."""
    words = ["--set", "round.local_steps=1", "--set", "aggregation.min_partners=4", "--set", "privacy.mode=distributed"]
    found = plan(capsys, toml, *words, "--set", f"privacy.epsilon_{key}=4.5")
    for one in (found["asked"], found["recommended"]):
        rate, steps, noise = one["sampling_rate"], one["steps"], one["noise_multiplier"]
        assert one["views"][key] == composed_epsilon(((rate, noise * left, steps),), 1e-5) <= 4.5
        assert composed_epsilon(((rate, (noise - 0.002) * left, steps),), 1e-5) > 4.5
        assert one["views"]["server"] < 3.9


def test_a_named_noise_is_held_to_every_bound(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "round.local_steps=1", "--set", "aggregation.min_partners=4", "--set", "privacy.mode=distributed"]
    words += ["--set", "privacy.epsilon=30", "--set", "privacy.noise_multiplier=2"]
    assert plan(capsys, toml, *words)["configured"]["over"] == []
    assert plan(capsys, toml, *words, "--set", "privacy.epsilon_broken=2")["configured"]["over"] == ["broken"]


def test_overflow_is_none_where_nothing_is_known(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(capsys, toml)["asked"]["overflow"] == 0.0  # two steps of Adam at .01 cannot move by 4
    for words in (
        ["--set", "round.learning_rate=100"],
        ["--set", "aggregation.method=plain"],
        ["--set", "round.client_optimiser=sgd", "--set", "round.weight_decay=0.1"],
    ):
        assert plan(capsys, toml, *words)["asked"]["overflow"] is None
    sgd = plan(capsys, toml, "--set", "round.client_optimiser=sgd", "--set", "round.learning_rate=1.5")
    assert 0 < sgd["asked"]["overflow"] < 1


def test_a_noise_of_ones_own_is_judged(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(capsys, toml)["configured"] is None
    low = plan(capsys, toml, "--set", "privacy.noise_multiplier=0.8")["configured"]
    cost = composed_epsilon(((0.25, 0.8, 16),), 1e-5)
    assert low == {
        "noise_multiplier": 0.8,
        "epsilon": cost,
        "views": dict.fromkeys(("server", "partner", "broken"), cost),
        "over": ["server"],
    }
    assert plan(capsys, toml, "--set", "privacy.noise_multiplier=5.0")["configured"]["over"] == []


def test_a_second_opinion_agrees(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = plan(capsys, toml, "--second-opinion")["asked"]["second_opinion"]
    assert second["accountant"] == "PRV"
    assert second["agree"] is True
    assert second["epsilon"] == composed_epsilon(
        ((0.25, plan(capsys, toml)["asked"]["noise_multiplier"], 16),), 1e-5, "prv"
    )


def test_out_gets_a_plot_that_opens_offline_and_the_figures(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(capsys, toml, "--out", str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "budget.json").read_text()) == found
    page = (tmp_path / "out" / "budget.html").read_text(encoding="utf-8")
    assert "plotly.js v" in page
    assert 'src="http' not in page
    assert all(f"{rounds} rounds" in page for rounds in (4, 8, 16))


def test_what_is_printed_names_the_recommended_line_and_what_it_rests_on(
    toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["budget", "plan", str(toml), "--users", "200", "--parameters", "400"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "for one user added or removed (PLD)" in printed
    assert "200 to 200 users, median 200 (given); 400 trained parameters" in printed
    assert "Recommended for 8 rounds: sampling_rate" in printed
    assert "PLD alone" in printed


def test_without_privacy_there_is_nothing_to_plan(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", "plan", str(toml), "--set", "privacy.mode=none"]) == 2
    assert 'privacy.mode = "none": there is no budget to plan' in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--users", "0"], ["--users", "x"], ["--parameters", "-3"], ["--users", "1.5"]])
def test_sizes_are_whole_numbers(toml: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["budget", "plan", str(toml), *words])
    assert stopped.value.code == 2
    assert "a whole number from 1" in capsys.readouterr().err


def test_a_plan_takes_under_a_second_after_import_and_no_torch(toml: Path) -> None:
    """In processor time of a fresh process, since other tests share the cores."""
    program = (
        "import sys, time\n"
        "import simulations.budget_plan\n"
        "from common.cli import main\n"
        "started = time.process_time()\n"
        f"assert main(['budget', 'plan', {str(toml)!r}, '--users', '3000', '--parameters', '7726', '--json']) == 0\n"
        "taken = time.process_time() - started\n"
        "heavy = {'torch', 'flwr', 'transformers', 'opacus', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert taken < 1.0, taken\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_own_partners_are_counted_where_nothing_is_given(
    toml: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    assert main(["budget", "plan", str(toml), "--json", "--set", f"model.encoder=path:{tiny_encoder}"]) == 0
    assert time.monotonic() - started < 20
    users = json.loads(capsys.readouterr().out)["setting"]["users"]
    assert users["source"] == "the simulation's own partners"
    assert 50 < users["least"] <= users["median"] <= users["most"] < 150
