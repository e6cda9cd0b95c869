"""The contract between shim and worker: what goes in comes out, and a hostile other side gets a refusal."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from client.rpc.asking import ask, is_serving, require_owner, user_number, why_not_serving
from client.rpc.pieces import PART_BYTES, VERSION, pieces_of, read_pieces, refusal_pieces
from client.rpc.refused import Refused
from client.rpc.serving import Limits, WorkerServer
from client.rpc.worker_pb2 import Array as ArrayHead
from client.rpc.worker_pb2 import Field, Head, Piece, Section
from client.rpc.worker_pb2_grpc import PartnerWorkerStub
from common.errors import ConfigError, HushclickError, LedgerError, ProtocolError

ROOT = Path(__file__).parents[2]
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(), st.booleans(), st.binary(max_size=300),
    st.lists(st.text(max_size=5), min_size=1, max_size=4),
)  # fmt: skip


def array(data: np.ndarray) -> Array:
    return Array(dtype=data.dtype.str, shape=tuple(data.shape), stype="numpy.raw", data=data.tobytes())


def same(one: RecordDict, other: RecordDict) -> bool:
    def plain(record: RecordDict) -> Any:
        return [
            (name, [(key, value.dtype, tuple(value.shape), value.data) for key, value in part.items()])
            if isinstance(part, ArrayRecord)
            else (name, list(part.items()), [type(value) for value in part.values()])
            for name, part in record.items()
        ]

    return bool(plain(one) == plain(other))


@settings(max_examples=60, deadline=None)
@given(fields=st.dictionaries(st.text(max_size=8), VALUES, max_size=6), sizes=st.lists(st.integers(0, 400), max_size=3))
def test_whatever_a_message_holds_comes_back(fields: dict[str, Any], sizes: list[int]) -> None:
    record = RecordDict({"f": ConfigRecord(fields)})
    if sizes:
        record["a"] = ArrayRecord({f"{n:02d}": array(np.arange(size, dtype="<u4")) for n, size in enumerate(sizes)})
    head, found = read_pieces(pieces_of(record, "train.mask"), 10**6)
    assert (head.type, head.version) == ("train.mask", 1)
    assert same(found, record)


def test_large_bodies_travel_in_parts() -> None:
    record = RecordDict({"a": ArrayRecord({"x": array(np.arange(700_000, dtype="<f4"))})})
    pieces = list(pieces_of(record))
    assert [len(piece.body) for piece in pieces[1:]] == [PART_BYTES, PART_BYTES, 2_800_000 - 2 * PART_BYTES]
    assert same(read_pieces(pieces, 2_800_000)[1], record)
    with pytest.raises(ProtocolError, match="a message of 2800000 bytes: at most 2799999"):
        read_pieces(pieces, 2_799_999)


def head(*sections: Section, version: int = VERSION) -> Piece:
    return Piece(head=Head(version=version, sections=sections))


BLOB = Section(name="f", fields=[Field(name="b", num_bytes=4)])


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([], "begins with its head"),
        ([Piece(body=b"x")], "begins with its head"),
        ([head(version=2)], "version 2 of the worker's contract, this is version 1: install the same release"),
        ([head(BLOB), Piece(body=b"123")], "a message of 3 bytes or more, its head announces 4"),
        ([head(BLOB), Piece(body=b"12345")], "a message of 5 bytes or more, its head announces 4"),
        ([head(BLOB), head(BLOB)], "a second head"),
        ([head(), Piece(body=b"1")], "its head announces 0"),
        ([head(BLOB, BLOB), Piece(body=b"12345678")], "record f: twice"),
        ([head(Section(name="f", fields=[Field(name="x")]))], "field x: without a value"),
        ([head(Section(name="f", fields=[Field(name="x", flag=True)] * 2))], "record f: a field twice"),
        ([head(Section(name="a", arrays=[ArrayHead(name="x", dtype="<f4")] * 2))], "record a: an array twice"),
        (
            [head(Section(name="a", arrays=[ArrayHead(name="x")], fields=[Field(name="y", flag=True)]))],
            "fields and arrays in one",
        ),
        ([head(Section(name="f", fields=[Field(name="b", num_bytes=2**62)]))], "at most 1000000"),
    ],
)
def test_what_is_not_of_the_contract_is_refused(pieces: list[Piece], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        read_pieces(pieces, 10**6)


def test_values_without_a_word_are_refused() -> None:
    for record in (RecordDict({"m": MetricRecord({"x": 1.0})}), RecordDict({"f": ConfigRecord({"x": [1, 2]})})):
        with pytest.raises(ProtocolError, match="contract"):
            list(pieces_of(record))


def test_a_refusal_has_a_code_and_a_text() -> None:
    found, record = read_pieces(refusal_pieces(101, "no"), 0)
    assert found.HasField("refusal")
    assert (found.refusal.code, found.refusal.text, len(record)) == (101, "no", 0)


def test_generated_code_is_that_of_the_contract(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    words = ["-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    words = [sys.executable, "-m", "grpc_tools.protoc", *words, "client/rpc/worker.proto"]
    subprocess.run(words, cwd=ROOT, check=True)
    for name in ("worker_pb2.py", "worker_pb2.pyi", "worker_pb2_grpc.py"):
        made = (tmp_path / "client/rpc" / name).read_text()
        assert made == (ROOT / "client/rpc" / name).read_text(), f"{name}: {' '.join(words[2:])}"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name is short enough for a socket's path."""
    folder = Path("/tmp") / f"hush-{os.getpid()}-{threading.get_ident() % 10**6}"
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


ECHO = RecordDict({"f": ConfigRecord({"x": 1})})


@pytest.fixture
def address(short: Path) -> Iterator[str]:
    def answer(message_type: str, content: RecordDict) -> RecordDict | Refused:
        return Refused(103, "exhausted") if message_type == "train.mask" else content

    server = WorkerServer(f"unix:{short}/in/socket", answer, 10**7, 101)
    server.start()
    yield f"unix:{short}/in/socket"
    server.stop(1)


def test_a_question_gets_its_answer_over_the_socket(address: str, short: Path) -> None:
    record = RecordDict({"a": ArrayRecord({"x": array(np.arange(10**6, dtype="<f4"))}), "f": ConfigRecord({"x": b"7"})})
    found, content = ask(address, "", "query.join", record, 20)
    assert not found.HasField("refusal")
    assert same(content, record)
    assert ask(address, "", "train.mask", ECHO, 20)[0].refusal.code == 103
    assert is_serving(address)
    assert (short / "in").stat().st_mode & 0o777 == 0o700
    assert (short / "in" / "socket").stat().st_mode & 0o777 == 0o600


def test_a_question_that_is_too_large_or_garbled_is_refused_and_the_next_one_answered(address: str) -> None:
    big = RecordDict({"f": ConfigRecord({"x": bytes(10**7 + 1)})})
    assert "at most 10000000" in ask(address, "", "query.join", big, 20)[0].refusal.text
    with grpc.insecure_channel(address) as channel:
        answer = list(PartnerWorkerStub(channel).Answer(iter([Piece(body=b"x")]), timeout=20))
    assert answer[0].head.refusal.code == 101
    assert ask(address, "", "query.join", ECHO, 20)[1]["f"]["x"] == 1


def test_a_second_worker_does_not_take_the_socket(address: str) -> None:
    with pytest.raises(ConfigError, match="another worker listens there"):
        WorkerServer(address, lambda *_: ECHO, 10, 101)
    assert is_serving(address)


def test_a_socket_that_a_killed_worker_left_is_taken_over(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(short / "socket"))
    server = WorkerServer(f"unix:{short}/socket", lambda *_: ECHO, 10**6, 101)
    server.start()
    assert ask(f"unix:{short}/socket", "", "query.join", ECHO, 20)[1]["f"]["x"] == 1
    server.stop(1)
    assert not (short / "socket").exists()


def test_no_worker_is_said_in_words(short: Path) -> None:
    with pytest.raises(HushclickError, match="worker is not running; start it"):
        ask(f"unix:{short}/socket", "", "query.join", ECHO, 5)
    assert not is_serving(f"unix:{short}/socket")


def test_promise_3_a_socket_of_another_user_is_not_asked(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = short / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        require_owner(path, "")
        require_owner(path, str(os.getuid()))
        with pytest.raises(HushclickError, match=r"belongs to user .* the worker's user is 12345"):
            require_owner(path, "12345")
        short.chmod(0o777)
        with pytest.raises(HushclickError, match="everybody can write to its folder"):
            require_owner(path, "")
    (short / "file").touch()
    with pytest.raises(HushclickError, match="is no socket"):
        require_owner(short / "file", "")
    with pytest.raises(HushclickError, match="no such user"):
        user_number("nobody-of-that-name")


def test_a_path_too_long_for_a_socket_and_a_file_in_its_place_are_refused(short: Path) -> None:
    with pytest.raises(ConfigError, match="too long for a socket"):
        WorkerServer(f"unix:{short}/{'x' * 100}", lambda *_: ECHO, 10, 101)
    (short / "file").touch()
    with pytest.raises(ConfigError, match="is a file; name a socket"):
        WorkerServer(f"unix:{short}/file", lambda *_: ECHO, 10, 101)


def test_workers_that_make_the_same_folder_at_once_all_start(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, make = threading.Barrier(2, timeout=30), Path.mkdir

    def at_once(path: Path, *args: Any, **options: Any) -> None:
        if path == short / "shared":
            both.wait()
        make(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", at_once)
    failed: list[Exception] = []

    def start(name: str) -> None:
        try:
            WorkerServer(f"unix:{short}/shared/{name}/socket", lambda *_: ECHO, 10, 101)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=start, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert all((short / "shared" / name).stat().st_mode & 0o777 == 0o700 for name in ("", "a", "b"))


def test_a_group_that_does_not_exist_is_refused(short: Path) -> None:
    with pytest.raises(ConfigError, match="no such group"):
        WorkerServer(f"unix:{short}/in/socket", lambda *_: ECHO, 10, 101, group="no-group-of-that-name")


def still(*pieces: Piece) -> Iterator[Piece]:
    """A stream of which nothing more comes, for longer than any test waits."""
    yield from pieces
    threading.Event().wait(300)


def test_half_a_question_does_not_hold_a_place_for_ever(short: Path) -> None:
    """Two half questions take both reading places; the next is answered once they have stood still for long enough."""
    limits = Limits(still_seconds=1.0, seconds=60.0)
    server = WorkerServer(f"unix:{short}/socket", lambda _, content: content, 10**6, 101, limits=limits)
    server.start()
    with grpc.insecure_channel(f"unix:{short}/socket") as channel:
        stub = PartnerWorkerStub(channel)
        halves = [stub.Answer(still(head(BLOB), Piece(body=b"12"))) for _ in range(3)]
        assert ask(f"unix:{short}/socket", "", "query.join", ECHO, 60)[1]["f"]["x"] == 1
        for half in halves:
            with pytest.raises(grpc.RpcError) as caught:
                list(half)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
    server.stop(1)


def test_a_question_that_trickles_is_broken_off_in_the_end(short: Path) -> None:
    """Each piece moves, none of them ends it."""
    limits = Limits(still_seconds=60.0, seconds=1.0)
    server = WorkerServer(f"unix:{short}/socket", lambda _, content: content, 10**6, 101, limits=limits)
    server.start()

    def trickle() -> Iterator[Piece]:
        yield head(BLOB)
        while True:
            time.sleep(0.05)
            yield Piece(body=b"")

    with grpc.insecure_channel(f"unix:{short}/socket") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(PartnerWorkerStub(channel).Answer(trickle(), timeout=60))
        assert caught.value.code() is grpc.StatusCode.CANCELLED
    server.stop(1)


def test_a_message_is_never_held_more_than_twice() -> None:
    """One field of 8 MiB in parts: what came, and the whole; a third copy would be seen."""
    record = RecordDict({"a": ArrayRecord({"x": array(np.zeros(2**21, "<f4"))})})
    pieces = list(pieces_of(record))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    _, found = read_pieces((Piece.FromString(piece.SerializeToString()) for piece in pieces), 10**8)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert same(found, record)
    assert peak < 2.4 * 2**23, peak / 2**23


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (LedgerError("audit.jsonl cannot be written (No space left on device)"), "refused (LedgerError); this partner"),
        (ZeroDivisionError("user-17 clicked"), "internal error: ZeroDivisionError"),
    ],
)
def test_whatever_fails_leaves_only_as_its_kind(short: Path, raised: Exception, says: str) -> None:
    def answer(_: str, __: RecordDict) -> RecordDict:
        raise raised

    server = WorkerServer(f"unix:{short}/socket", answer, 10**6, 101)
    server.start()
    found, content = ask(f"unix:{short}/socket", "", "query.join", ECHO, 20)
    server.stop(1)
    assert (found.refusal.code, len(content)) == (101, 0)
    assert found.refusal.text.startswith(says)
    assert "user-17" not in found.refusal.text
    assert "No space" not in found.refusal.text


def test_an_answer_that_the_contract_has_no_word_for_leaves_only_as_its_kind(short: Path) -> None:
    answer = RecordDict({"f": ConfigRecord({"x": [1, 2]})})
    server = WorkerServer(f"unix:{short}/socket", lambda *_: answer, 10**6, 101)
    server.start()
    found, _ = ask(f"unix:{short}/socket", "", "query.join", ECHO, 20)
    server.stop(1)
    assert found.refusal.text == "internal error: ProtocolError"


def test_a_worker_that_hangs_is_not_called_one_that_does_not_run(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(short / "socket"))
        hanging.listen()
        assert "does not answer, or broke off, though something listens" in why_not_serving(f"unix:{short}/socket", "")
    assert "is not running" in why_not_serving(f"unix:{short}/socket", "")
