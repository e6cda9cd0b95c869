"""A server that hands out a model which is not the run's: refused with a reason, and nothing is written."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from flwr.app import Array
from hostile.hostile_server import HostileServer, Refused, partners
from signed_models import KEY, OTHER, Files, altered, model_for, pin, resigned, with_file

from client.desk import forget_workers
from common.config import read_toml
from common.lineage import LINEAGE, PARAMETERS, SETTINGS, SIGNATURE, read_model_folder
from common.message_types import QUERY_JOIN, QUERY_MODEL, REFUSED
from common.messages import JoinTask, ModelTask

RUN = "run"


def configure(home: Path, **keys: Any) -> None:
    path = home / "partner.toml"
    path.write_text(tomli_w.dumps(read_toml(path) | keys), encoding="utf-8")


@pytest.fixture
def server(tmp_path: Path, tiny_encoder: Path) -> Iterator[HostileServer]:
    with partners(tmp_path / "run", tiny_encoder, 3, real=1) as found:
        pin(found.folder(1))
        configure(found.folder(1), signing_key="signing.pub")
        found.ask(1, QUERY_JOIN, JoinTask(RUN).to_record())
        yield found


@pytest.fixture
def files(server: HostileServer, tmp_path: Path) -> Files:
    return model_for(server.worker(1), tmp_path / "model")


def hand_out(server: HostileServer, files: Files, run_id: str = RUN) -> None:
    assert not server.ask(1, QUERY_MODEL, ModelTask(run_id, files).to_record())


def kept(server: HostileServer) -> list[str]:
    models = server.folder(1) / "state" / "models"
    return sorted(path.name for path in models.iterdir()) if models.exists() else []


def refused(server: HostileServer, files: Files, says: str, run_id: str = RUN) -> None:
    before = server.facts(1)
    with pytest.raises(Refused, match=says) as error:
        hand_out(server, files, run_id)
    assert error.value.code == REFUSED
    assert server.facts(1) == before


def test_the_honest_model_is_kept_byte_for_byte_and_once(server: HostileServer, files: Files) -> None:
    hand_out(server, files)
    assert kept(server) == ["run-000002"]
    folder = server.folder(1) / "state" / "models" / "run-000002"
    assert read_model_folder(folder) == files
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    hand_out(server, files)  # a server that was started again
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", [LINEAGE, SIGNATURE, PARAMETERS, SETTINGS])
def test_a_file_that_was_altered_is_refused(name: str, server: HostileServer, files: Files) -> None:
    data = files[name]
    says = f"{name}: .* altered after it was signed" if name in (PARAMETERS, SETTINGS) else "no signature over"
    refused(server, files | {name: bytes([data[0] ^ 1]) + data[1:]}, says)
    refused(server, files | {name: b""}, says)


def test_another_key_than_the_pinned_one_is_refused(server: HostileServer, files: Files) -> None:
    theirs = resigned(files, lambda table: table.update(signed_by=OTHER.public_key().public_bytes_raw().hex()), OTHER)
    refused(server, theirs, "altered, or signed by another key")
    assert kept(server) == []


LIES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("another run", lambda table: table.update(run_id="other"), "is of run 'run', the model of run other"),
    ("a run that is a path", lambda table: table.update(run_id="../../../escape"), "run_id"),
    ("an older version", lambda table: table.update(format=0), "format 0, this release"),
    ("a newer version", lambda table: table.update(format=2), "format 2, this release"),
    ("another base", lambda table: table["base"].update(fingerprint="e" * 64), "the model was trained on"),
    ("another layout", lambda table: table.update(layout="e" * 64), "this partner trained"),
    ("a file elsewhere", lambda table: table["files"].update({"../x": table["files"][SETTINGS]}), "names the files"),
]


@pytest.mark.parametrize(("change", "says"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_lie_under_the_right_key_is_refused(
    change: Callable[[dict[str, Any]], object], says: str, server: HostileServer, files: Files
) -> None:
    refused(server, altered(files, change), "no signature over")
    refused(server, resigned(files, change), says)
    assert kept(server) == []


def test_parameters_of_no_such_model_are_refused_under_the_right_key(server: HostileServer, files: Files) -> None:
    refused(server, with_file(files, PARAMETERS, b"garbage"), "cannot be read as safetensors")
    other = json.loads(files[SETTINGS])
    other["model"]["hidden"] += 1
    refused(server, with_file(files, SETTINGS, json.dumps(other).encode()), "another layout")


def test_a_model_of_a_run_that_the_partner_took_no_part_in_is_refused(
    server: HostileServer, files: Files, tmp_path: Path
) -> None:
    theirs = model_for(server.worker(1), tmp_path / "theirs", run_id="theirs")
    refused(server, theirs, "took no part in it", run_id="theirs")
    refused(server, files, "took no part in it", run_id="theirs")
    refused(server, theirs, "is of run 'run', the model of run theirs")  # replayed under this run's name
    server.restart()  # and joined nothing since
    refused(server, files, "took no part in it")
    server.ask(1, QUERY_JOIN, JoinTask(RUN).to_record())
    hand_out(server, files)


def test_another_model_for_the_same_rounds_is_refused_and_one_of_more_rounds_is_kept_beside(
    server: HostileServer, files: Files, tmp_path: Path
) -> None:
    hand_out(server, files)
    refused(server, model_for(server.worker(1), tmp_path / "b", seed=2), "another model of run run after 2 rounds")
    hand_out(server, model_for(server.worker(1), tmp_path / "c", seed=2, rounds=3))
    assert kept(server) == ["run-000002", "run-000003"]


def test_a_model_over_the_policys_size_is_refused(server: HostileServer, files: Files) -> None:
    size = sum(map(len, files.values()))
    configure(server.folder(1), most_model_bytes=size - 1)
    forget_workers()
    server.ask(1, QUERY_JOIN, JoinTask(RUN).to_record())
    refused(server, files, f"a model of {size} bytes: this partner takes {size - 1} at most")


def test_a_partner_that_pinned_no_key_takes_no_model(server: HostileServer, files: Files) -> None:
    configure(server.folder(1), signing_key="")
    forget_workers()
    server.ask(1, QUERY_JOIN, JoinTask(RUN).to_record())
    refused(server, files, "has pinned no signing_key")


def test_a_key_that_is_gone_is_the_partners_own_affair(server: HostileServer, files: Files) -> None:
    (server.folder(1) / "signing.pub").unlink()
    refused(server, files, r"refused \(ConfigError\); this partner's own log says why")


@pytest.mark.parametrize("name", ["../../escape", "/tmp/escape", "state/lock", ""])
def test_a_name_outside_the_list_is_refused_before_anything_is_read(
    name: str, server: HostileServer, files: Files
) -> None:
    refused(server, files | {name: b"x"}, "a message with the arrays")
    refused(server, {name: b"x"}, "a message with the arrays")
    fewer = {key: data for key, data in files.items() if key != SIGNATURE}
    refused(server, fewer, "a message with the arrays")
    assert not (server.root.parent / "escape").exists()


@pytest.mark.parametrize(
    "array",
    [
        Array("|u1", (3,), "numpy.raw", b"ab"),
        Array("|u1", (1, 2), "numpy.raw", b"ab"),
        Array("<f4", (1,), "numpy.raw", b"abcd"),
        Array("|u1", (2,), "numpy.ndarray", b"ab"),
        Array("|u1", (2**31 - 1,), "numpy.raw", b""),
    ],
    ids=str,
)
def test_files_that_are_not_bytes_are_refused(array: Array, server: HostileServer, files: Files) -> None:
    record = ModelTask(RUN, files).to_record()
    record["hushclick.arrays"][SETTINGS] = array
    with pytest.raises(Refused, match=r"array config.json"):
        server.ask(1, QUERY_MODEL, record)
    assert kept(server) == []


def test_a_disk_that_refuses_leaves_nothing(
    server: HostileServer, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("common.runfolder.os.fsync", full)
        with pytest.raises(Refused, match="own log says why"):
            hand_out(server, files)
    assert kept(server) == []
    hand_out(server, files)
    assert kept(server) == ["run-000002"]


def test_the_model_is_no_word_of_the_partners_data(server: HostileServer, files: Files) -> None:
    """Promise 1: what a partner answers to a delivery is an empty record."""
    hand_out(server, files)
    assert server.traffic[-1].body == b""
    assert server.charged(1) == 0


def test_the_signer_of_the_tests_is_not_the_pinned_one_by_accident(server: HostileServer, tmp_path: Path) -> None:
    pin(server.folder(1), OTHER)
    with pytest.raises(Refused, match="signed by another key"):
        hand_out(server, model_for(server.worker(1), tmp_path / "model", key=KEY))
    hand_out(server, model_for(server.worker(1), tmp_path / "other", key=OTHER))
