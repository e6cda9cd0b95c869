"""The privacy benchmark: figures that the documents quote, and that they are printed from code, twice the same."""

from pathlib import Path

import pytest

from benchmarks import privacy
from benchmarks.__main__ import main
from benchmarks.measuring import Options
from common.privacy.accounting import AGREEMENT

# noise, epochs -> RDP, PRV, PLD, gdp as the design has them
QUOTED = [
    (0.6, 1, "5.84", "4.80", "4.79", "1.74"),
    (0.8, 5, "3.57", "2.97", "2.96", "1.96"),
    (1.0, 5, "1.99", "1.61", "1.60", "1.28"),
]


@pytest.mark.parametrize(("noise", "epochs", "rdp", "prv", "pld", "gdp"), QUOTED)
def test_the_table_of_accountants(noise: float, epochs: int, rdp: str, prv: str, pld: str, gdp: str) -> None:
    line = privacy.accountants(noise, epochs)
    assert [f"{line[name]:.2f}" for name in ("rdp", "prv", "pld", "gdp")] == [rdp, prv, pld, gdp]
    assert line["apart"] <= AGREEMENT
    assert 0.15 < line["rdp_over"] < 0.6


def test_adjacency_and_composition() -> None:
    pair = privacy.adjacency()
    assert [f"{pair[name]:.2f}" for name in ("add_remove", "replace")] == ["1.60", "2.27"]
    found = privacy.composition()
    assert f"{found['three_runs']:.2f}" == "2.60"
    assert f"{found['three_times']:.2f}" == "4.81"
    assert f"{found['best_of_ten_rdp']:.2f}" == "3.57"
    assert found["one_run"] < found["batch_cut_at_1200"] < found["one_run"] + 1e-3
    assert (found["steps_for_2_pld"], found["steps_for_2_rdp"]) == (826, 496)


@pytest.mark.parametrize(("partners", "partner", "broken"), [(2, 4.27, 4.27), (3, 2.79, 7.87), (16, 1.74, 95.7)])
def test_who_sees_what(partners: int, partner: float, broken: float) -> None:
    line = privacy.adversaries(partners)
    assert line["server"] == pytest.approx(1.60, abs=5e-3)
    assert line["partner"] == pytest.approx(partner, abs=5e-3)
    assert line["broken"] == pytest.approx(broken, rel=2e-3)


def test_parts_are_sized_for_the_fewest() -> None:
    assert privacy.shares(10, 1)["noise_if_all_come"] == pytest.approx(1.41, abs=5e-3)


def test_the_grid_of_the_distributed_mode() -> None:
    line = privacy.gap(16)
    assert line["gap"] < 1e-6
    assert line["clip_lost"] == pytest.approx(0.0021, abs=5e-5)
    assert line["bits_of_a_sum"] == 28
    assert line["gaussian_rdp"] <= line["skellam_as_gaussian"] < line["skellam_any_mechanism"]
    assert privacy.gap(18)["bits_of_a_sum"] == 30


def test_the_quick_search_of_the_rates_finds_the_calibrated_noise() -> None:
    line = privacy.noise_per_progress(0.164)
    assert line["noise"] == pytest.approx(line["confirmed"], abs=1.1e-3)


def test_quick_mode_prints_every_table_and_twice_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "--quick", "--out", str(tmp_path)]) == 0
    assert "who sees what" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "privacy.json").is_file()
    options = Options(scratch=tmp_path, quick=True)
    first = privacy.measure(options)
    assert privacy.measure(options) == first
    assert len(privacy.tables(first)) == 8
