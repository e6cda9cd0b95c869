"""The benchmark of the evaluation at the partners in quick mode: its figures agree with each other."""

import json
from pathlib import Path

from benchmarks import evaluation
from benchmarks.measuring import Options
from common.runfolder import jsonable


def test_errors_are_of_noise_bins_and_clip_together(tiny_encoder: Path, tmp_path: Path) -> None:
    options = Options(scratch=tmp_path, quick=True, encoder=f"path:{tiny_encoder}")
    result = json.loads(json.dumps(jsonable(evaluation.measure(options)), allow_nan=False))
    assert 0.3 < result["exact_auc"] < 0.9
    assert 0 < result["clicks"] < result["rows"]
    by_epsilon = [one for one in result["by_epsilon"] if (one["mode"], one["bins"]) == ("distributed", 64)]
    assert [one["epsilon"] for one in by_epsilon] == [0.5, 1.0, 2.0, 4.0, 8.0]
    noises = [one["noise_multiplier"] for one in by_epsilon]
    assert noises == sorted(noises, reverse=True)
    assert len({one["error_without_noise"] for one in by_epsilon}) == 1
    whole = [one for one in result["by_setting"] if (one["max_rows"], one["clip"]) == (16, 16.0)]
    errors = [abs(one["error_without_noise"]) for one in whole]
    assert errors[-1] < max(errors[0], 0.005)  # a hundred bins and no clip: nothing but ties is left
    assert [table.row_count for table in evaluation.tables(result)] == [20, 25]
