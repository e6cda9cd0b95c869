"""The secure-aggregation benchmark: engines come to the right sums, figures agree with themselves; none is judged."""

import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes

from benchmarks import secagg, secagg_flower, secagg_ours
from benchmarks.__main__ import main
from benchmarks.measuring import Options
from benchmarks.secagg_cell import Cell, Elsewhere, Meter, check_close, run_cell, update
from benchmarks.secagg_tables import TARGETS, TITLES, tables
from common.errors import HushclickError

HAS_TENSEAL = importlib.util.find_spec("tenseal") is not None
ENGINES = {"ours", "flower"} | ({"ckks"} if HAS_TENSEAL else set())
MIB = 2**20


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `python -m benchmarks secagg --quick` filled."""
    folder = tmp_path_factory.mktemp("secagg")
    assert main(["secagg", "--quick", "--out", str(folder)]) == 0
    return folder


def test_every_engine_has_every_cell(out: Path) -> None:
    result = json.loads((out / "secagg.json").read_text())
    places = [(cell["engine"], cell["kind"], cell["dropped"]) for cell in result["cells"]]
    parties = {(engine, *place) for engine in ENGINES for place in (("client", 0), ("server", 0), ("server", 1))}
    masks = {(engine, kind, 0) for engine in ("ours", "flower") for kind in ("generator", "masks")}
    assert set(places) == parties | masks | {("ours", "stream", 0)}
    assert len(places) == len(set(places))
    assert result["packages"].keys() >= {"cryptography", "flwr", "numpy"}
    assert bool(result["skipped"]) is not HAS_TENSEAL


def test_figures_of_a_quick_run_are_possible(out: Path) -> None:
    cells = json.loads((out / "secagg.json").read_text())["cells"]
    ours = {(cell["kind"], cell["dropped"]): cell for cell in cells if cell["engine"] == "ours"}
    for cell in cells:
        assert 0 < cell["cpu_seconds"]["median"] < 30
        assert (cell["bytes_up"] is not None) == (cell["kind"] == "client")
        if cell["engine"] == "ours":
            assert cell["times_ours"] is None
        else:
            own = ours[cell["kind"], cell["dropped"]]["cpu_seconds"]["median"]
            assert cell["times_ours"]["median"] == pytest.approx(cell["cpu_seconds"]["median"] / own)


def test_what_a_client_sends_is_counted(out: Path) -> None:
    cells = json.loads((out / "secagg.json").read_text())["cells"]
    up = {cell["engine"]: cell["bytes_up"] for cell in cells if cell["kind"] == "client"}
    length, partners = 2_000, 4
    boxes = (partners - 1) * 82 + partners * 64  # and commitments, of `wire.Shares`
    assert 4 * length + boxes < up["ours"] < 4 * length + boxes + 2_000
    assert 8 * length < up["flower"] < 8 * length + 6_000
    if HAS_TENSEAL:
        assert up["ckks"] > 10 * 4 * length


def test_the_plot_needs_no_network(out: Path) -> None:
    page = (out / "secagg.html").read_text(encoding="utf-8")
    assert "plotly.js v" in page
    assert '<script src="http' not in page
    assert all(TITLES[engine] in page for engine in ENGINES)


def test_a_meter_counts_only_while_it_runs() -> None:
    meter = Meter()
    held = np.ones(8 * MIB // 8)
    meter.start()
    with meter.counting():
        block = np.ones(32 * MIB // 8)
        until = time.process_time() + 0.05
        while time.process_time() < until:
            block += 1
        del block
    counted = meter.cpu_seconds
    outside = np.ones(128 * MIB // 8)
    del outside
    with meter.counting():
        pass
    assert 0.05 <= counted <= meter.cpu_seconds < counted + 0.05
    assert held.sum() == MIB
    if Path("/proc/self/clear_refs").exists():
        assert meter.peak_bytes is not None
        assert 31 * MIB < meter.peak_bytes < 40 * MIB


def test_a_meter_that_does_not_count_cannot_pause() -> None:
    with pytest.raises(RuntimeError, match="not counting"):
        Meter().pause()


def test_elsewhere_is_another_process_with_a_memory_of_its_own() -> None:
    seen: list[int] = []

    def remember(number: int) -> tuple[int, list[int]]:
        seen.append(number)
        return os.getpid(), list(seen)

    with Elsewhere(remember) as other:
        first, second = other(1), other(2)
    assert first[0] == second[0] != os.getpid()
    assert second[1] == [1, 2]
    assert seen == []


def test_a_failure_elsewhere_is_seen_here(capfd: pytest.CaptureFixture[str]) -> None:
    with Elsewhere(lambda number: 1 / number) as other, pytest.raises(EOFError):
        other(0)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_updates_are_reproducible_and_bounded() -> None:
    update_D = update(1000, seed=3)
    assert update_D.dtype == np.float32
    np.testing.assert_array_equal(update_D, update(1000, seed=3))
    assert not np.array_equal(update_D, update(1000, seed=4))
    assert -0.5 <= update_D.min() < -0.4 < 0.4 < update_D.max() <= 0.5


@pytest.mark.parametrize("wrong", [1.1, float("nan")])
def test_a_wrong_sum_is_no_result(wrong: float) -> None:
    check_close([1.0, 2.0], [1.0, 2.01], 0.02, "a sum")
    with pytest.raises(RuntimeError, match="a sum: off by"):
        check_close([1.0, wrong], [1.0, 1.0], 0.02, "a sum")


@pytest.mark.parametrize("module", [secagg_flower, secagg_ours], ids=["flower", "ours"])
@pytest.mark.parametrize("dropped", [0, 2])
def test_servers_find_the_sum_of_those_who_stayed(module: Any, dropped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    monkeypatch.setattr(module, "check_close", lambda found, expected, *_: compared.append((found, expected)))
    module.server(Cell("", "server", 300, partners=6, dropped=dropped), Meter())
    ((found_D, expected_D),) = compared
    first = 2 if module is secagg_flower else 1  # seeds are node numbers there, participants here
    total_D = np.sum([update(300, seed=first + place).astype(np.float64) for place in range(6 - dropped)], axis=0)
    share = 6 - dropped if module is secagg_flower else 1  # Flower's result is a mean
    np.testing.assert_allclose(expected_D, total_D / share, atol=1e-6)
    np.testing.assert_allclose(found_D, total_D / share, atol=1e-5)


@pytest.mark.skipif(not HAS_TENSEAL, reason="TenSEAL is optional and not installed")
def test_ckks_finds_the_sum(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("client", "server"):
        (run,) = run_cell(Cell("ckks", kind, 5_000, partners=3))
        assert run["cpu_seconds"] > 0
    capfd.readouterr()  # SEAL remarks on vectors of several ciphertexts


def test_flat_shares_give_flower_the_same_secret() -> None:
    secret = bytes(range(37))
    flat, real = secagg_flower.flat_shares(secret, 3, 5), create_shares(secret, 3, 5)
    assert list(map(len, flat)) == list(map(len, real))
    assert combine_shares(flat[1:4]) == combine_shares(real[1:4]) == secret


def test_peers_boxes_are_as_long_as_flowers_own() -> None:
    key, _ = generate_key_pairs()
    pem = private_key_to_bytes(key)
    assert len(create_shares(bytes(32), 2, 3)[0]) == secagg_flower._SEED_SHARE_BYTES
    assert len(create_shares(pem, 2, 3)[0]) == secagg_flower._KEY_SHARE_BYTES


def test_ratios_are_taken_within_a_turn() -> None:
    ours, other = Cell("ours", "client", 10, 4), Cell("flower", "client", 10, 4)
    alone = Cell("ours", "server", 10, 4)
    turns = [
        [(ours, _runs(1.0, 3.0)), (other, _runs(8.0)), (alone, _runs(5.0))],
        [(ours, _runs(4.0)), (other, _runs(12.0))],
    ]
    entries = {(entry["engine"], entry["kind"]): entry for entry in secagg.figures(turns)}
    assert entries["flower", "client"]["times_ours"] == {"min": 3.0, "median": 3.5, "max": 4.0, "repeats": 2}
    assert entries["ours", "client"]["cpu_seconds"] == {"min": 1.0, "median": 3.0, "max": 4.0, "repeats": 3}
    assert entries["ours", "server"]["cpu_seconds"]["repeats"] == 1
    assert entries["ours", "server"]["peak_bytes"] is None


def _runs(*seconds: float) -> list[dict[str, Any]]:
    return [{"cpu_seconds": one, "peak_bytes": None} for one in seconds]


def test_the_full_plan_sees_every_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(secagg, "in_fresh_process", _invented)
    monkeypatch.setattr(secagg, "has_tenseal", lambda: True)
    monkeypatch.setattr(secagg, "version", lambda _name: "1")
    result = secagg.measure(Options(scratch=tmp_path))
    found = tables(result)
    assert [table.row_count for table in found][-1] == len(TARGETS)
    what, _, seen = (list(column.cells) for column in found[-1].columns)
    by_name = dict(zip(what, seen, strict=True))
    assert by_name["10 masks made, 1e6, against Flower"] == "5.0 (5.0 to 5.0) x"
    assert by_name["10 masks made and added, 1e7"] == "4.0 (4.0 to 4.0) GB/s"  # 10 masks of 40 MB in 100 ms
    assert "and 60 per partner" in by_name["bytes up, the most over all sizes"]  # 4 partners, 1e5
    assert by_name["extra client memory a parameter, n = 10, 1e8"] == "6.0 (6.0 to 6.0) B"
    baselines = [cell for cell in result["cells"] if cell["engine"] != "ours" and cell["partners"]]
    beyond = {(cell["kind"], cell["partners"]) for cell in baselines if cell["length"] * cell["partners"] > 10**7}
    assert beyond == {("client", 100)}
    assert max(cell["length"] for cell in baselines) == 10**6
    secagg.plot(result, tmp_path / "plot.html")
    assert "100,000,000" in (tmp_path / "plot.html").read_text(encoding="utf-8")


def _invented(cells: list[Cell]) -> list[list[dict[str, Any]]]:
    """Returns runs of which every figure follows from the cell: 10 ns a parameter for ours, 5 times as much else."""
    return [
        [
            {
                "cpu_seconds": cell.length * (1e-8 if cell.engine == "ours" else 5e-8),
                "peak_bytes": 6 * cell.length,
                **({"bytes_up": 4 * cell.length + 1240} if cell.kind == "client" else {}),
            }
        ]
        for cell in cells
    ]


def test_without_tenseal_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(secagg, "in_fresh_process", _invented)
    monkeypatch.setattr(secagg, "has_tenseal", lambda: False)
    result = secagg.measure(Options(scratch=tmp_path, quick=True))
    assert {cell["engine"] for cell in result["cells"]} == {"ours", "flower"}
    assert "tenseal" not in result["packages"]
    assert "pip install tenseal" in str(tables(result)[0].caption)


def test_a_cell_that_fails_is_named_with_its_error() -> None:
    with pytest.raises(HushclickError, match=r"(?s)kind='juggle'.*KeyError: 'juggle'"):
        secagg.in_fresh_process([Cell("ours", "juggle", 10)])


@pytest.mark.parametrize(("partners", "dropped"), [(4, 1), (9, 1), (10, 2), (100, 20)])
def test_a_fifth_drops_and_one_at_least(partners: int, dropped: int) -> None:
    assert secagg.num_dropped(partners) == dropped
