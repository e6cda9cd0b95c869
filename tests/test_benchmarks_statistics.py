"""The benchmark of private statistics in quick mode: its figures agree with each other, and are of nothing else."""

import json
from pathlib import Path

import pytest

from benchmarks import statistics
from benchmarks.measuring import Options
from common.errors import UsageError
from common.runfolder import jsonable


def test_a_release_is_measured_between_none_and_exact(tiny_encoder: Path, tmp_path: Path) -> None:
    options = Options(scratch=tmp_path, quick=True, encoder=f"path:{tiny_encoder}", only=("releases",))
    result = json.loads(json.dumps(jsonable(statistics.measure(options)), allow_nan=False))
    assert {one["mode"] for one in result["releases"]} == {"distributed", "local"}
    for one in result["releases"]:
        (run,) = one["runs"]
        assert one["share"]["median"] == pytest.approx(
            (run["auc"] - result["none"]) / (result["exact"] - result["none"])
        )
        assert one["epsilon"] == 2.0
        assert one["noise_multiplier"] == pytest.approx(1.99, abs=0.01)
    (table,) = statistics.tables(result)
    assert table.row_count == 2


def test_without_its_clicks_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--movietweetings DIR"):
        statistics.measure(Options(scratch=tmp_path))
