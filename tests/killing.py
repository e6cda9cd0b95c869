"""Kills a process at a chosen write to a folder, and what a power cut then takes away; Linux only (/proc).

`Killer` counts every call that changes a file under a folder: creating, writing, flushing, renaming, cutting and
removing. Python's own files are replaced by ones that write through `os.write`, so that no write goes past it; an audit
hook counts the files that are opened for writing by any other way (`Killer.missed`), which must be none.

What a kill leaves is what the calls did so far. What a power cut leaves depends on the disk; two extremes are played:
- "all": whatever was not flushed is gone, contents and names (a rename or a new file whose folder was not flushed);
- "data": names are there, contents that were not flushed are gone.
"""

# ruff: noqa: PTH100, PTH110, PTH112, PTH115, PTH119, PTH120 (Path is among what is replaced here)

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 77  # exit code of a process that was killed here
_WRITING = os.O_WRONLY | os.O_RDWR


class Killer:
    """Ends this process at one of its writes.

    Attributes:
        steps: what was done so far, as "call name-of-file".

    Args:
        folder: whose files count.
        at: number of the write, from 1; 0 = never.
        middle: die in the middle of it (writes only: half of the bytes), and not right after it.
        power: "" = a kill; "all" or "data" = a power cut.
    """

    def __init__(self, folder: Path, at: int, *, middle: bool = False, power: str = "") -> None:
        self.steps: list[str] = []
        self.missed: list[str] = []
        self._folder, self._at, self._middle, self._power = str(folder) + os.sep, at, middle, power
        self._flushed: dict[str, bytes] = {}  # path -> contents that no power cut takes away
        self._names: list[tuple[str, bytes | None]] = []  # path -> what was there before a name that may be lost
        self._real = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "ftruncate", "unlink")}
        self._opening = False

    def install(self) -> None:
        """From here on every write counts."""
        os.open, os.write, os.fsync = self._open, self._write, self._fsync  # type: ignore[assignment]
        os.replace, os.ftruncate, os.unlink = self._replace, self._ftruncate, self._unlink  # type: ignore[assignment]
        Path.open = self._path_open()  # type: ignore[method-assign, assignment]
        sys.addaudithook(self._audit)

    def _mine(self, path: Any) -> bool:
        return (os.path.abspath(os.fsdecode(path)) + os.sep).startswith(self._folder)

    def _path_of(self, descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def _step(self, call: str, path: str, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        if not self._mine(path):
            return act()
        self.steps.append(f"{call} {os.path.basename(path)}")
        here = len(self.steps) == self._at
        if here and self._middle:
            if half:
                half()
            self._die()
        result = act()
        if here:
            self._die()
        return result

    def _die(self) -> None:
        if self._power:
            self._cut_power()
        os._exit(KILLED)

    def _cut_power(self) -> None:
        for path, contents in self._flushed.items():
            if os.path.exists(path):
                self._put(path, contents)
        for path, before in reversed(self._names if self._power == "all" else []):
            if before is None:
                self._real["unlink"](path)
            else:
                self._put(path, before)

    def _put(self, path: str, contents: bytes) -> None:
        descriptor = self._real["open"](path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._real["write"](descriptor, contents)
        os.close(descriptor)

    def _contents(self, path: str) -> bytes:
        with io.open(path, "rb") as file:  # noqa: UP020 (not Path.open, which is replaced)
            return file.read()

    def _note_change(self, path: str) -> None:
        """Remembers what is flushed of a file that is about to change."""
        if self._mine(path) and path not in self._flushed:
            self._flushed[path] = self._contents(path)

    # --- the calls ------------------------------------------------------------------------------------------------

    def _open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        if not flags & _WRITING or not self._mine(path):
            return int(self._guarded(lambda: self._real["open"](path, flags, mode, **more)))
        where, new = os.path.abspath(os.fsdecode(path)), not os.path.exists(path)
        if new and not flags & os.O_CREAT:
            return int(self._guarded(lambda: self._real["open"](path, flags, mode, **more)))
        if new:
            self._names.append((where, None))
            self._flushed[where] = b""
        else:
            self._note_change(where)
        act = lambda: self._guarded(lambda: self._real["open"](path, flags, mode, **more))  # noqa: E731
        return int(self._step("create", where, act)) if new or flags & os.O_TRUNC else int(act())

    def _write(self, descriptor: int, data: Any) -> int:
        path = self._path_of(descriptor)
        if self._mine(path):
            self._note_change(path)
        half = memoryview(data)[: (len(data) + 1) // 2]
        act, part = lambda: self._real["write"](descriptor, data), lambda: self._real["write"](descriptor, half)
        return int(self._step("write", path, act, part))

    def _fsync(self, descriptor: int) -> None:
        path = self._path_of(descriptor)

        def act() -> None:
            self._real["fsync"](descriptor)
            if not os.path.isdir(path):
                self._flushed.pop(path, None)
            else:
                self._names = [(name, before) for name, before in self._names if os.path.dirname(name) != path]

        self._step("fsync", path, act)

    def _replace(self, source: Any, target: Any) -> None:
        source, target = (os.path.abspath(os.fsdecode(path)) for path in (source, target))

        def act() -> None:
            before = self._contents(target) if os.path.exists(target) else None
            self._real["replace"](source, target)
            self._names = [entry for entry in self._names if entry[0] != source]
            self._names.append((target, before))
            self._flushed.pop(target, None)
            if source in self._flushed:
                self._flushed[target] = self._flushed.pop(source)

        self._step("replace", target, act)

    def _ftruncate(self, descriptor: int, length: int) -> None:
        path = self._path_of(descriptor)
        self._note_change(path)
        self._step("ftruncate", path, lambda: self._real["ftruncate"](descriptor, length))

    def _unlink(self, path: Any, **more: Any) -> None:
        self._step("unlink", os.path.abspath(os.fsdecode(path)), lambda: self._real["unlink"](path, **more))

    def _path_open(self) -> Callable[..., Any]:
        real = Path.open

        def path_open(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if not set(mode) & set("wa+x") or not self._mine(path):
                return real(path, mode, *rest, **more)
            return _Unbuffered(path, mode.replace("b", ""), opener=lambda name, flags: os.open(name, flags, 0o666))

        return path_open

    def _guarded(self, act: Callable[[], Any]) -> Any:
        self._opening = True
        try:
            return act()
        finally:
            self._opening = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or self._opening or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        flags = arguments[2]
        if isinstance(flags, int) and flags & _WRITING and self._mine(arguments[0]):
            frame = sys._getframe(1)
            if frame.f_code.co_name != "path_open":
                self.missed.append(os.fsdecode(arguments[0]))


class _Unbuffered(io.FileIO):
    """A file of Python's whose writes go through `os.write`."""

    def write(self, data: Any) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(self.fileno(), view) :]
        return len(memoryview(data).cast("B"))
