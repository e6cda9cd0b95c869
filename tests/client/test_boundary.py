"""What keeps the shim from the partner's data, tried with real users: only root can run these."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from other_users import SHIM, WORKER, as_user, ids, needs_other_users
from partner_folder import write_partner

from client import deploy
from client.boundary import boundary
from client.deployment import ClientConfig, load_client
from client.partner import PartnerConfig, dump_partner
from client.rpc.serving import WorkerServer
from common.cli import main
from common.errors import ConfigError

SECONDS = 600.0
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
CLI = [sys.executable, "-m", "common.cli"]
CLIENT = ClientConfig(name="shop", superlink="localhost:1", shim_user=SHIM)


@pytest.fixture
def home() -> Iterator[Path]:
    """A short folder that every user can pass through."""
    folder = Path("/tmp") / f"hushb-{os.getpid()}-{time.monotonic_ns() % 10**6}"
    folder.mkdir()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def partner(home: Path, tiny_encoder: Path) -> PartnerConfig:
    encoder = home / "encoder"  # pytest's own folders are closed to others
    shutil.copytree(tiny_encoder, encoder)
    for path in (encoder, *encoder.rglob("*")):
        path.chmod(0o755)
    return write_partner(home / "kit", encoder)


@needs_other_users
def test_promise_3_check_says_which_files_the_shims_user_can_read(partner: PartnerConfig, home: Path) -> None:
    kit = home / "kit"
    client = replace(CLIENT, worker=str(kit / "worker.toml"), node_key=str(kit / "node.key"))
    (kit / "worker.toml").write_text(dump_partner(partner), encoding="utf-8")
    kit.chmod(0o755)
    Path(partner.clicks).chmod(0o644)
    (kit / "worker.toml").chmod(0o600)
    there, says = boundary(client, partner)
    assert not there
    assert says.startswith(f"NO BOUNDARY, {SHIM} can read {partner.clicks} (chmod 700 on a folder above")
    Path(partner.clicks).chmod(0o640)  # no group of that user's
    assert boundary(client, partner) == (
        True,
        f"what Flower runs is user {SHIM}, the worker is root; {SHIM} can read none of the partner's 2 files",
    )
    os.chown(partner.clicks, -1, ids(SHIM)[1])
    assert partner.clicks in boundary(client, partner)[1]
    kit.chmod(0o700)
    assert boundary(client, partner)[0]


@needs_other_users
@pytest.mark.parametrize("name", ["worker.toml", "roster.toml", "card.toml", "client.toml", "ca.crt"])
def test_promise_3_check_says_which_files_the_shims_user_can_replace(
    name: str, partner: PartnerConfig, home: Path
) -> None:
    """Who can put another policy, roster or authority there need read nothing."""
    kit = home / "kit"
    kit.chmod(0o711)
    partner = replace(partner, roster=str(kit / "roster.toml"), card=str(kit / "card.toml"))
    client = replace(CLIENT, worker=str(kit / "worker.toml"), ca=str(kit / "ca.crt"))
    for path in (kit / name, *kit.iterdir()):
        path.touch()
        path.chmod(0o700 if path.is_dir() else 0o600)
    assert boundary(client, partner)[0]
    (kit / name).chmod(0o602)
    assert boundary(client, partner)[1].startswith(f"NO BOUNDARY, {SHIM} can replace {kit / name} (")
    (kit / name).chmod(0o600)
    kit.chmod(0o713)  # files can be renamed away, and others put in their place
    assert f"{kit / name}" in boundary(client, partner)[1].split("can replace", 1)[1]


@needs_other_users
def test_the_probe_is_given_nothing_of_roots_environment(
    partner: PartnerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_PASSWORD", "secret")
    seen: list[Any] = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda words, **more: seen.append(more) or real(words, **more))
    boundary(CLIENT, partner)
    (more,) = seen
    assert set(more["env"]) == {"PATH"}
    assert more["stdin"] == subprocess.DEVNULL


def test_root_gives_a_folder_away_after_what_lies_in_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its new owner could put a link to any file in the place of one that root is about to give away."""
    given: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        os, "chown", lambda path, *_ids, follow_symlinks=True: given.append((path.name, follow_symlinks))
    )
    monkeypatch.setattr(os, "getuid", lambda: 0)
    for name in ("node.key", "ca.crt"):
        (home / name).touch()
    client = replace(CLIENT, node_key=str(home / "node.key"), ca=str(home / "ca.crt"))
    deploy._node(client, "unix:/s", home)
    assert given == [("node.key", False), ("ca.crt", False), ("supernode", False)]


@needs_other_users
def test_a_socket_that_may_not_be_reached_is_not_called_a_worker_that_does_not_run(home: Path) -> None:
    """EACCES at the folder, and at the socket itself: both are said with the mend."""
    server = WorkerServer(f"unix:{home}/in/socket", lambda *_: RecordDict({"f": ConfigRecord({"x": 1})}), 10**6, 101)
    server.start()
    ask = f"from client.rpc.asking import why_not_serving; print(why_not_serving('unix:{home}/in/socket', '0'))"
    words = as_user(SHIM, [sys.executable, "-c", ask])

    def said() -> str:
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=home, env=ENVIRONMENT)
        return done.stdout.strip()

    denied = f"socket: permission denied, user {ids(SHIM)[0]} may not reach this partner's worker; set worker.group"
    assert said().startswith(denied)
    (home / "in").chmod(0o755)
    assert said().startswith(denied)
    (home / "in" / "socket").chmod(0o666)
    assert said() == ""
    server.stop(1)
    assert "is not running" in said()


@needs_other_users
def test_the_group_reaches_a_socket_whose_folders_the_worker_made(home: Path) -> None:
    """Under the worker's own umask, which keeps all others out of what it makes."""
    earlier = os.umask(0o077)
    try:
        server = WorkerServer(f"unix:{home}/a/b/socket", lambda *_: RecordDict(), 10**6, 101, str(ids(SHIM)[1]))
    finally:
        os.umask(earlier)
    modes = [(home / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/socket")]
    assert modes == [0o711, 0o750, 0o660]
    reach = ["test", "-w", f"{home}/a/b/socket"]
    assert subprocess.run(as_user(SHIM, reach), check=False).returncode == 0
    assert subprocess.run(as_user(WORKER, reach), check=False).returncode == 1
    server.stop(0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"worker_socket": "unix:socket"}, "worker that runs already: set start_worker = false"),
        ({"worker_owner": "games"}, "worker that runs already: set start_worker = false"),
        ({"start_worker": False, "worker_socket": "example.org:7000"}, "listens on this machine only"),
    ],
)
def test_keys_of_a_worker_that_runs_already_are_checked(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ClientConfig(name="shop", superlink="localhost:1", **change)


@pytest.mark.parametrize(
    ("own", "owner", "shim", "there", "says"),
    [
        (12, "13", "", True, "what Flower runs is user man, the worker is proxy"),
        (12, "4711", "", True, "the worker is 4711"),
        (12, "", "", False, "worker_owner is unset"),
        (12, "12", "", False, "worker_owner in client.toml is the same user"),
        (12, "no-such-user", "", False, "no such user on this machine"),
        (0, "13", "", False, "shim_user in client.toml is unset"),
        (0, "13", SHIM, True, f"what Flower runs is user {SHIM}, the worker is proxy"),
    ],
)
def test_containers_make_a_boundary_where_their_users_differ(
    own: int, owner: str, shim: str, there: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {0: "root", 12: "man", 13: "proxy", ids(SHIM)[0]: SHIM}

    def named(number: int) -> Any:
        return type("who", (), {"pw_name": names[number]})  # a KeyError where there is none, as pwd has it

    monkeypatch.setattr("os.getuid", lambda: own)
    monkeypatch.setattr("client.boundary.pwd.getpwuid", named)
    client = ClientConfig(
        name="a", superlink="localhost:1", start_worker=False, worker_socket="unix:/s", worker_owner=owner,
        shim_user=shim,
    )  # fmt: skip
    found, text = boundary(client, None)
    assert (found, found is not ("NO BOUNDARY" in text)) == (there, True)
    assert says in text


def test_a_socket_is_taken_from_the_files_folder(home: Path) -> None:
    path = home / "client.toml"
    path.write_text(
        'kit = 1\nname = "a"\nsuperlink = "localhost:1"\nstart_worker = false\nworker_socket = "unix:in/socket"\n',
        encoding="utf-8",
    )
    assert load_client(path).worker_socket == f"unix:{home}/in/socket"


@needs_other_users
def test_a_worker_of_another_user_that_comes_later_is_waited_for(
    partner: PartnerConfig, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As containers have it: the node's user cannot read worker.toml, the folder of the socket was there before."""
    kit, shared, node = home / "kit", home / "shared", home / "node"
    uid, gid = ids(WORKER)
    shared.mkdir()
    os.chown(shared, uid, ids(SHIM)[1])
    shared.chmod(0o2750)
    listen = f"unix:{shared}/socket"
    own = replace(partner, worker=replace(partner.worker, listen=listen, group=str(ids(SHIM)[1])))
    (kit / "worker.toml").write_text(dump_partner(own), encoding="utf-8")
    for path in (kit, *kit.rglob("*")):
        os.chown(path, uid, gid)
    kit.chmod(0o700)
    node.mkdir()
    main(["keys", "new", "--out", str(node)])
    (node / "ca.crt").write_text("none", encoding="ascii")
    (node / "client.toml").write_text(
        f'kit = 1\nname = "shop"\nsuperlink = "localhost:1"\nworker = "{kit}/worker.toml"\n'
        f'start_worker = false\nworker_socket = "{listen}"\nworker_owner = "{uid}"\n',
        encoding="utf-8",
    )
    for path in (node, *node.rglob("*")):
        os.chown(path, *ids(SHIM))
    environment = ENVIRONMENT | {"HUSHCLICK_CACHE": str(kit / "cache"), "HOME": str(home)}
    log = home / "client.log"
    with log.open("wb") as out:
        client = subprocess.Popen(
            as_user(SHIM, [*CLI, "client", str(node / "client.toml")]), stdout=out, stderr=out, env=environment,
            cwd=home,
        )  # fmt: skip
    worker = None
    try:
        wait(lambda: "waiting for the worker" in log.read_text(), log)
        with (home / "worker.log").open("wb") as out:
            worker = subprocess.Popen(
                # A group that the worker's user is no member of: the folder's own, by its setgid bit, is enough.
                as_user(WORKER, [*CLI, "worker", str(kit / "worker.toml")]), env=environment, cwd=home,
                stdout=out, stderr=out,
            )  # fmt: skip
        wait(lambda: "supernode" in log.read_text().lower() or worker.poll(), log, home / "worker.log")
    finally:
        for one in (client, worker):
            if one:
                one.send_signal(signal.SIGTERM)
        assert client.wait(SECONDS) == 0, log.read_text()
        if worker:
            worker.wait(SECONDS)
    said = log.read_text()
    assert said.startswith(f"what Flower runs is user {SHIM}, the worker is {WORKER}\n"), said
    assert said.count("waiting for the worker at") == 1, said
    assert "NO BOUNDARY" not in said


def wait(there: Callable[[], bool], *logs: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not there():
        assert time.monotonic() < deadline, "\n".join(log.read_text(errors="replace") for log in logs if log.exists())
        time.sleep(0.1)
