"""The benchmark of counts of shared users: it counts what was planted, and notices where a count is wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import overlap
from benchmarks.measuring import Options
from client.overlap.exchange import Overlap
from common.errors import HushclickError


def test_quick_mode_has_every_step_and_the_bytes_of_the_files(tmp_path: Path) -> None:
    result = overlap.measure(Options(scratch=tmp_path, quick=True))
    (cell,) = result["cells"]
    assert (cell["users"], cell["points"], cell["shared"]) == (500, 1024, 125)
    assert set(cell["seconds"]) == {"ask", "answer", "count"}
    # 32 bytes a point, and a signed header of less than a kilobyte
    assert 0 < cell["request_bytes"] - 32 * 1024 < 1000
    assert 0 < cell["response_bytes"] - 32 * 2048 < 1200
    (table,) = overlap.tables(result)
    assert table.row_count == 1


def test_a_wrong_count_gives_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = Overlap.count

    def one_more(own: Overlap, path: Path) -> Any:
        counted = count(own, path)
        return replace(counted, shared=counted.shared + 1)

    monkeypatch.setattr(Overlap, "count", one_more)
    with pytest.raises(HushclickError, match="126 shared users counted, and 125 were planted"):
        overlap.measure(Options(scratch=tmp_path, quick=True))
