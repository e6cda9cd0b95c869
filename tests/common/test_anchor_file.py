"""`anchors.jsonl`: appended to, read back, torn by a crash, and damaged."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.anchors import AnchorFile
from common.errors import LedgerError

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "anchors.jsonl"


def test_what_is_appended_is_read_back_oldest_first_and_the_last_of_each_is_known(path: Path) -> None:
    file = AnchorFile(path)
    assert (file.read(), file.last()) == ({}, {})
    file.append("run", 1, {"shop": A, "bank": B, "new": ""})
    file.append("run", 2, {"shop": C})
    assert {name: [kept.anchor for kept in anchors] for name, anchors in file.read().items()} == {
        "bank": [B],
        "shop": [A, C],
    }
    assert file.last() == {"bank": B, "shop": C}
    assert abs(file.read()["shop"][0].time - datetime.now(UTC)) < timedelta(minutes=1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["run_id"], line["round"], line["anchors"]) for line in lines] == [
        ("run", 1, {"bank": B, "shop": A}),
        ("run", 2, {"shop": C}),
    ]


def test_nothing_is_written_where_there_is_nothing_to_keep(path: Path) -> None:
    AnchorFile(path).append("run", 1, {"shop": ""})
    assert not path.exists()


def test_a_line_torn_at_any_byte_is_passed_over_and_cut_off_by_the_next(path: Path) -> None:
    AnchorFile(path).append("run", 1, {"shop": A})
    first = path.read_bytes()
    AnchorFile(path).append("run", 2, {"shop": B})
    whole = path.read_bytes()
    for cut in range(len(first), len(whole)):
        path.write_bytes(whole[:cut])
        assert AnchorFile(path).last() == {"shop": A}
        AnchorFile(path).append("run", 3, {"shop": C})
        assert path.read_bytes().startswith(first)
        assert [kept.anchor for kept in AnchorFile(path).read()["shop"]] == [A, C]
    path.write_bytes(first[:20])  # nothing else is there
    AnchorFile(path).append("run", 3, {"shop": C})
    assert AnchorFile(path).last() == {"shop": C}


def test_a_line_is_flushed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    AnchorFile(path).append("run", 1, {f"partner-{number}": A for number in range(1000)})
    assert len(flushed) == 1  # one for all partners


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "{}",
        "7",
        "",
        json.dumps({"time": "2027-01-01T00:00:00+00:00", "anchors": {"shop": "a"}}),
        json.dumps({"time": "2027-01-01T00:00:00+00:00", "anchors": {"shop": 7}}),
        json.dumps({"time": "2027-01-01T00:00:00+00:00", "anchors": [A]}),
        json.dumps({"time": "yesterday", "anchors": {"shop": A}}),
    ],
)
def test_a_damaged_line_is_named(path: Path, line: str) -> None:
    AnchorFile(path).append("run", 1, {"shop": A})
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(LedgerError, match=r"anchors\.jsonl line 2: not a line of anchors; restore the file, or remove"):
        AnchorFile(path).last()


def test_a_folder_in_its_place_is_said(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be read"):
        AnchorFile(tmp_path).read()
    with pytest.raises(LedgerError, match="cannot be written"):
        AnchorFile(tmp_path).append("run", 1, {"shop": A})
