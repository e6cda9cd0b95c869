"""A sweep on private clicks: all cells compose in one ledger per partner, and the partner's budget holds them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from sweeps import ROUNDS, private_toml, refused, result_of, swept

import simulations.sweep_cells
from common.cli import main
from common.config import load_config
from common.errors import HushclickError
from common.privacy.accounting import composed_epsilon, epsilon, merge
from common.privacy.ledger import Ledger
from simulations.sweep_grid import make_cells, make_grid
from simulations.sweep_price import Charges

WORDS = ("--seeds", "2", "--epsilon", "2", "--modes", "local", "distributed", "pooled")
DELTA = 1e-4


@pytest.fixture(scope="module")
def whole(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of six cells, two of each mode, under a budget that holds them."""
    folder = tmp_path_factory.mktemp("private")
    swept(private_toml(folder, tiny_encoder), folder / "out", *WORDS, "--budget", "9")
    return folder / "out"


@pytest.fixture
def toml(tmp_path: Path, tiny_encoder: Path) -> Path:
    return private_toml(tmp_path, tiny_encoder)


def events_of(out: Path, partner: int = 0) -> tuple[Any, ...]:
    name = f"partner-{partner:04d}"
    return Ledger(out / "ledgers" / f"{name}.jsonl", name).events()


def noise_of(out: Path, cell: str) -> float:
    noise = load_config(out / "cells" / cell / "config.toml").privacy.noise_multiplier
    assert noise is not None
    return noise


def planned(out: Path) -> float:
    """Returns what the six cells come to, worked out from their configurations alone."""
    groups = [
        (0.5, noise_of(out, f"{mode}-epsilon-2-seed-{seed}"), ROUNDS)
        for mode in ("local", "distributed", "pooled")
        for seed in (1, 2)
    ]
    return composed_epsilon(merge(groups), DELTA)


# --- one ledger per partner -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("partner", range(4))
def test_every_cell_is_in_every_partners_one_ledger(whole: Path, partner: int) -> None:
    """A user of this partner was in each local, each distributed and each pooled run."""
    events = events_of(whole, partner)
    assert [(event.mode, event.steps) for event in events] == [
        *[("local", 1)] * ROUNDS, *[("distributed", 1)] * ROUNDS, ("local", ROUNDS),
        *[("local", 1)] * ROUNDS, *[("distributed", 1)] * ROUNDS, ("local", ROUNDS),
    ]  # fmt: skip
    runs = {event.run_id for event in events}
    assert len(runs) == 6
    assert {"sweep pooled-epsilon-2-seed-1", "sweep pooled-epsilon-2-seed-2"} <= runs
    assert Ledger(whole / "ledgers" / f"partner-{partner:04d}.jsonl", f"partner-{partner:04d}").uncommitted() == ()


def test_the_price_is_the_composition_over_all_cells(whole: Path) -> None:
    result, total = result_of(whole), planned(whole)
    assert result["price"]["charged"] is True
    assert result["price"]["budget"] == 9.0
    assert result["price"]["spent"]["server"] == pytest.approx(total, rel=1e-9)
    assert total == pytest.approx(epsilon(events_of(whole), DELTA), rel=1e-9)
    assert 2 < total < 6 * 2, "six runs of epsilon 2 compose to more than one of them and less than their sum"
    assert all(record["spent"] <= 2.0 for record in result["cells"])


def test_a_pooled_run_has_a_ledger_of_its_own_that_holds_what_was_charged(whole: Path) -> None:
    home = whole / "cells" / "pooled-epsilon-2-seed-1"
    own = Ledger(home / "ledgers" / "partner-0000.jsonl", "partner-0000").events()
    charged = next(event for event in events_of(whole) if event.run_id == "sweep pooled-epsilon-2-seed-1")
    assert sum(event.steps for event in own) == charged.steps == ROUNDS
    for name in ("noise_multiplier", "sampling_rate", "clip", "mechanism", "unit", "fixed_seed", "shares"):
        assert {getattr(event, name) for event in own} == {getattr(charged, name)}, name
    bound = load_config(home / "config.toml").privacy.epsilon
    assert bound == pytest.approx(composed_epsilon(((0.5, charged.noise_multiplier, ROUNDS),), DELTA), rel=1e-12)


def test_other_cells_have_no_ledger_of_their_own(whole: Path) -> None:
    assert not (whole / "cells" / "local-epsilon-2-seed-1" / "ledgers").exists()
    metrics = json.loads((whole / "cells" / "local-epsilon-2-seed-2" / "metrics.json").read_text())
    # What the partner had spent after each round, all earlier cells included.
    spent = [record["epsilon"] for record in metrics["rounds"]]
    before = epsilon(events_of(whole)[: 2 * ROUNDS + 1], DELTA)
    assert before < spent[0] < spent[-1]


def test_page_and_table_say_who_paid(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (whole / "sweep.html").read_text(encoding="utf-8")
    assert "Charged to every partner, all cells together, per unit of privacy.unit: epsilon" in page
    assert "of a budget of 9" in page
    assert main(["budget", "show", str(whole), "--epsilon", "9", "--delta", "1e-4"]) == 0
    assert "partner-0003" in capsys.readouterr().out


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_a_sweep_that_cannot_fit_is_refused_before_anything_is_run(
    whole: Path, toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """privacy.epsilon of the configuration is the budget where none is given."""
    out = toml.parent / "out"
    code, said = refused(capsys, toml, out, *WORDS, "--set", "privacy.epsilon=3.0")
    assert code == 3
    found = re.search(r"6 runs on the same people would come to epsilon (\d+\.\d+) at each partner, per user", said)
    assert found is not None, said
    assert float(found[1]) == pytest.approx(planned(whole), abs=0.011)
    assert "the budget is privacy.epsilon = 3; nothing was run" in said
    assert "--budget" in said
    assert not out.exists()
    code, said = refused(capsys, toml, out, *WORDS, "--budget", f"{float(found[1]):.2f}", "--resume")
    assert (code, "no sweep to resume" in said) == (1, True)


def test_it_says_how_many_seeds_would_fit(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--epsilon", "2", "--modes", "local", "--budget")
    code, said = refused(capsys, toml, toml.parent / "out", "--seeds", "5", *words, "3.5")
    assert code == 3
    fits = int(re.search(r"--seeds (\d+) would fit", said)[1])  # type: ignore[index]
    noise = make_cells(make_grid(toml, [], ["local"], [2.0], 2, [], []), load_config(toml))[0].claimed
    assert composed_epsilon(((0.5, noise, fits * ROUNDS),), DELTA) <= 3.5
    assert composed_epsilon(((0.5, noise, (fits + 1) * ROUNDS),), DELTA) > 3.5


def test_a_bound_against_another_partner_counts_too(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--seeds", "2", "--epsilon", "2", "--modes", "distributed", "--budget", "9")
    code, said = refused(capsys, toml, toml.parent / "out", *words, "--set", "privacy.epsilon_partner=2.0")
    assert code == 3
    assert "privacy.epsilon_partner = 2; nothing was run" in said


def test_cells_that_no_longer_fit_are_refused_and_what_is_done_is_kept_and_shown(
    whole: Path, toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two cells are lost, as by a broken disk; what they spent is not. The one with more noise fits a second time."""
    out = toml.parent / "out"
    shutil.copytree(whole, out)
    shutil.copy(toml.parent / "clicks.parquet", whole.parent / "clicks.parquet")
    toml = whole.parent / "run.toml"
    for lost in ("distributed-epsilon-2-seed-1", "pooled-epsilon-2-seed-2"):
        shutil.rmtree(out / "cells" / lost)
    before, spent = len(events_of(out)), [(e.sampling_rate, e.noise_multiplier, e.steps) for e in events_of(out)]
    again = [
        composed_epsilon(merge([*spent, (0.5, noise_of(whole, f"{mode}-epsilon-2-seed-1"), ROUNDS)]), DELTA)
        for mode in ("distributed", "pooled")
    ]
    assert again[1] < again[0] - 0.05
    budget = f"{again[0] - 0.01:.3f}"
    code, said = refused(capsys, toml, out, *WORDS, "--budget", budget, "--resume")
    assert code == 3
    assert "1 of 6 cells refused by the budget, 0 failed" in said
    assert "it was not started; raise --budget and go on with --resume" in said
    result = result_of(out)
    assert result["states"] == {"done": 5, "failed": 0, "refused": 1}
    assert {record["cell"] for record in result["cells"] if record["state"] == "refused"} == {
        "distributed-epsilon-2-seed-1"
    }
    # The pooled run is one that is made again, with fresh noise as far as anybody knows: charged again.
    assert [len(events_of(out, partner)) for partner in range(4)] == [before + 1] * 4
    assert sorted(e.attempt for e in events_of(out) if e.run_id == "sweep pooled-epsilon-2-seed-2") == [0, 1]
    assert swept(toml, out, *WORDS, "--budget", "12", "--resume")["states"]["done"] == 6
    assert len(events_of(out)) == before + 1 + ROUNDS


def test_a_pooled_run_is_charged_once_however_often_it_is_started(
    toml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = toml.parent / "out", ("--seeds", "2", "--epsilon", "2", "--modes", "pooled", "--budget", "5")

    def fails(*_: Any, **__: Any) -> Any:
        raise HushclickError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(simulations.sweep_cells, "simulate", fails)
        for resume in ((), ("--resume",)):
            code, said = refused(capsys, toml, out, *words, *resume)
            assert (code, "2 of 2 cells failed: planted" in said) == (1, True)
            for partner in range(4):  # charged before anything was trained, and only once
                assert [event.steps for event in events_of(out, partner)] == [ROUNDS, ROUNDS]
    result = swept(toml, out, *words, "--resume")
    assert result["states"]["done"] == 2
    assert result["price"]["releases"] == {f"partner-{number:04d}": 2 for number in range(4)}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--modes", "local", "none"), 2, "--modes none: a run without noise on private clicks"),
        (("--modes", "local", "--vary", "data.partition=hash,skew"), 2, "must be the same in every cell"),
        (("--modes", "local", "--vary", "data.partners=4,5"), 2, "must be the same in every cell"),
        (("--modes", "local", "--vary", "privacy.delta=1e-4,1e-5"), 2, "one ledger has one delta"),
        (("--modes", "local", "--budget", "-1"), 2, "--budget -1: over 0 and below 1000"),
    ],
)
def test_what_no_ledger_can_hold_is_refused(
    toml: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, says: str
) -> None:
    found, said = refused(capsys, toml, toml.parent / "out", *words)
    assert (found, says in said) == (code, True), said
    assert not (toml.parent / "out").exists()


def test_modes_that_need_no_choice_leave_out_the_one_without_noise(toml: Path) -> None:
    """The default of a private sweep has no mode none; its three modes at three epsilons and five seeds are planned."""
    charges = Charges(load_config(toml), toml.parent / "ledgers", 900.0)
    grid = make_grid(toml, [], ["local", "distributed", "pooled"], [1.0, 3.0, 8.0], 5, [], [])
    assert len(make_cells(grid, load_config(toml))) == 45
    assert charges.epsilons(make_cells(grid, load_config(toml)))["server"] > 8
    assert charges.policy.epsilon == 900.0
    assert not (toml.parent / "ledgers").exists()
