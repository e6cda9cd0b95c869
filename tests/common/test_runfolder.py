"""Files that are replaced as a whole or not at all, JSON that any parser reads, and where things lie."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import HushclickError
from common.runfolder import RunFolder, jsonable, partner_name, write_atomically, write_json


def test_paths_are_below_the_root_distinct_and_not_created(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    names = [name for name, value in vars(RunFolder).items() if isinstance(value, property)]
    paths = [getattr(folder, name) for name in names] + [folder.partner(0), folder.partner(12)]
    assert len(names) >= 8
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path / "run") for path in paths)
    assert list(tmp_path.iterdir()) == []


def test_partner_names_sort_as_their_numbers() -> None:
    assert partner_name(7) == "partner-0007"
    names = [partner_name(number) for number in (0, 9, 10, 999, 1000, 9999)]
    assert names == sorted(names)
    assert partner_name(99_999) == "partner-99999"


def test_a_file_is_written_with_its_folders_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"
    write_atomically(path, b"")
    assert path.read_bytes() == b""
    assert [each.name for each in path.parent.iterdir()] == ["file.bin"]


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_the_earlier_file_and_no_rest(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    monkeypatch.setattr(where, refuse)
    with pytest.raises(
        HushclickError, match="the disk is full, make space there; the earlier file is untouched"
    ) as error:
        write_atomically(path, b"new" * 1000)
    assert str(path) in str(error.value)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file.bin"]


def test_a_kill_in_the_middle_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KeyboardInterrupt stands for any end of the process between writing and replacing."""

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append("replace"), replace(self, target))[1])
    write_atomically(tmp_path / "file.bin", b"x")
    assert order == ["fsync", "replace", "fsync"]  # the last one makes the rename itself last


@pytest.mark.parametrize("place", ["file/below", "file/a/b"])
def test_a_folder_that_cannot_be_made_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HushclickError, match="cannot be written"):
        write_atomically(tmp_path / place, b"x")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(HushclickError, match="cannot be written"):
        write_atomically(tmp_path / "file", b"x")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    contents = [bytes([letter]) * 50_000 for letter in b"abc"]
    write_atomically(path, contents[0])
    done, seen = threading.Event(), set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        write_atomically(path, contents[turn % 3])
    done.set()
    reader.join()
    assert seen <= set(contents)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (-float("inf"), None),
        (0.1, 0.1),
        (True, True),
        (None, None),
        (np.float32("nan"), None),
        (np.float64(2.5), 2.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.zeros((0,)), []),
        (np.array(4), 4),
        ((1, (2, float("nan"))), [1, [2, None]]),
        ({1: {"a": (np.inf,)}}, {"1": {"a": [None]}}),
        ("text", "text"),
    ],
    ids=repr,
)
def test_jsonable(value: Any, expected: Any) -> None:
    found = jsonable(value)
    assert found == expected
    assert type(found) is type(expected)


def test_json_is_strict_utf8_and_ends_with_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"auc": float("nan"), "title": "héé 点击", "rows": np.arange(2)})
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "点击" in text

    def refuse_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(text, parse_constant=refuse_constant) == {"auc": None, "title": "héé 点击", "rows": [0, 1]}
