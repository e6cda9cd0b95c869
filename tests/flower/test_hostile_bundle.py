"""Promise 3 with everything real: a hostile bundle through Flower to a shim of another user, and a worker behind it.

`hostile_bundle/` is what a hostile server sends: code. It reports what it got. The same bundle then meets a partner
that set no `shim_user`, where the files are open to it, and `check` says so: the attempts can succeed.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from deployments import Deployment
from kits import Operator
from other_users import SHIM, for_all_users, ids, needs_other_users
from simulated_runs import run, small_config

from client.rpc.asking import ask, is_serving
from common.auditlog import read_audit_log
from common.cli import main
from common.config import fingerprint, load_config, read_toml
from common.message_types import QUERY_JOIN
from common.messages import JoinReply, JoinTask
from common.runfolder import RunFolder
from server.checkpoint import load_checkpoint
from server.control import Control
from server.deployment import load_deployment, node_keys
from server.superlink import own_link

BUNDLE = Path(__file__).with_name("hostile_bundle")
SECRETS = ("clicks.parquet", "ledger.jsonl", "identity.pem", "node.key", "worker.toml", "client.toml", "state", ".")
_NOT_A_FIELD = r"^101 a message with the fields .*'{}'"
REFUSALS = {
    "mask before advertise": "^101 round 9, attempt 0: not under way here",
    "unmask before consistency": "^101 out of order: this attempt is after SHARE, not MASK",
    "a plain update": "^101 this partner gives nothing unmasked",
    "exact counts": "^101 this partner gives nothing unmasked",
    "its key": "^101 a message of type 'query.identity': this partner answers none such",
    "a cohort of one": "^101 1 participants: secure aggregation needs at least 3",
    "another model layout": "^101 model layout 000000000000, this partner has",
    "a model of another length": "^101 a vector of shape",
    "more steps": "^101 local_steps = 1000000: this partner allows at most 64",
    "a larger weight": "^101 weight = 1.0: this partner's weight in the roster is",
    "another run": "^101 run, round, attempt, weight, length or update_bound differ",
    "a larger clip": "^101 update_bound = 8.0: this partner's aggregation.update_bound is 4",
    "fewer bits": "^101 bits = 8: 3 participants use 28, and this partner allows",
    "noise_multiplier of the server's": _NOT_A_FIELD.format("noise_multiplier"),
    "epsilon of the server's": _NOT_A_FIELD.format("epsilon"),
    "clip of the server's": _NOT_A_FIELD.format("clip"),
    "a round that is allowed": "^got$",  # all of the above were one change away from this
    "the same round again": "^101 out of order: this attempt is after MASK, not SHARE",
    "unmask after mask": "^101 UNMASK before CONSISTENCY",
    "the same attempt again": "^101 round 1, attempt 0: attempt 0 was begun already",
    "the round again for another model": "^101 round 1 was answered for another model; it is not answered again",
    "noise": "^got$",  # of an honest question that follows
    "oversized": "^a message of 1099511627776 bytes: at most 1073741824",
    "halves": "^got$",  # likewise
}


@pytest.fixture
def attacked(capsys: pytest.CaptureFixture[str], tiny_encoder: Path) -> Iterator[Deployment]:
    """Kits in a folder that everybody can pass through, but for those of mode 0700."""
    root = Path("/tmp") / f"hushx-{os.getpid()}"
    root.mkdir()
    config = small_config(tiny_encoder, 3, 1)
    run(config, root / "simulated")
    found = Deployment(root, Operator(root, capsys), config, RunFolder(root / "simulated"))
    for folder in (root, found.kits, found.kits / "partners"):
        folder.chmod(0o755)
    (found.kits / "partners" / found.names[0]).chmod(0o700)
    (root / "public").write_text("everybody's", encoding="utf-8")
    (root / "public").chmod(0o644)
    yield found
    found.end()
    shutil.rmtree(root)


def known(deployment: Deployment, name: str) -> dict[str, Any]:
    """What the hostile server has, and what it wants."""
    kits, victim = deployment.kits, deployment.names[0]
    config = load_config(kits / "server" / "run.toml")
    trained = load_checkpoint(
        deployment.root / "simulated" / "checkpoint.safetensors",
        fingerprint(load_config(deployment.root / "simulated" / "config.toml")),
    )
    rounds = config.round
    return {
        "run": name,
        "victim": victim,
        "roster": (kits / "server" / "roster.toml").read_text(encoding="utf-8"),
        "identities": {
            name: (kits / "partners" / name / "identity.pem").read_text(encoding="ascii")
            for name in deployment.names[1:]
        },
        "length": len(trained.model_D),
        "bound": config.aggregation.update_bound,
        "colluders": config.aggregation.colluders,
        "plan": {
            "local_steps": rounds.local_steps, "client_optimiser": rounds.client_optimiser,
            "learning_rate": rounds.learning_rate, "weight_decay": rounds.weight_decay,
        },
        "paths": {name: str(kits / "partners" / victim / name) for name in SECRETS}
        | {"public": str(deployment.root / "public"), "socket's folder": str(deployment.socket(0).parent)},
    }  # fmt: skip


def attack(control: Control, deployment: Deployment, name: str) -> dict[str, Any]:
    """Sends the bundle as whoever reaches the control API can, and returns what it reports."""
    facts, out = deployment.root / f"{name}.known.json", deployment.root / f"{name}.json"
    facts.write_text(json.dumps(known(deployment, name)), encoding="utf-8")
    control._ask("run", str(BUNDLE), more=("--run-config", f'known="{facts}" out="{out}"'))
    deployment.wait_until(out.exists, "the hostile bundle's report")
    text = out.read_text(encoding="utf-8")
    assert not text.startswith("ERROR"), text
    report: dict[str, Any] = json.loads(text)
    return report


def boundary_of(client: Path, capsys: pytest.CaptureFixture[str]) -> tuple[bool, str]:
    """Returns what `hushclick check` says of the boundary."""
    capsys.readouterr()
    main(["check", str(client), "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    return next((one["ok"], one["says"]) for one in checks if one["what"] == "boundary")


@needs_other_users
@pytest.mark.slow
def test_promise_3_a_hostile_bundle_gets_nothing_that_the_policy_does_not_give(
    attacked: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    victim, socket = attacked.names[0], f"unix:{attacked.socket(0)}"
    kit = attacked.kits / "partners" / victim
    attacked.change(kit / "worker.toml", ("worker", "group", str(ids(SHIM)[1])))
    server = load_deployment(attacked.kits / "server" / "server.toml")
    home = attacked.root / "flower"
    with own_link(server, home) as link:  # no gate: whoever sends this is behind it
        control = Control(home, link.address, Path(server.ca))
        control.know(node_keys(server))
        attacked.point(victim, link.address.replace("127.0.0.1", "localhost"))
        settings = read_toml(kit / "client.toml")
        (kit / "client.toml").write_text(tomli_w.dumps(settings | {"shim_user": SHIM}), encoding="utf-8")
        client = attacked.start_client(victim, wrap=for_all_users)
        attacked.wait_until(lambda: is_serving(socket), "the worker")
        assert boundary_of(kit / "client.toml", capsys)[0]
        report = attack(control, attacked, "shim")
        require_nothing_got(report, attacked)
        head, content = ask(socket, "", QUERY_JOIN, JoinTask("after").to_record(), 120)
        assert JoinReply.from_record(content).partner == victim, head
        client.send_signal(signal.SIGTERM)
        assert client.wait(120) == 0
        assert "NO BOUNDARY" not in (attacked.root / "client-0.log").read_text()

        (kit / "client.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
        there, says = boundary_of(kit / "client.toml", capsys)
        assert not there
        assert says.startswith("NO BOUNDARY, shim_user in client.toml is unset")
        attacked.start_client(victim)
        attacked.wait_until(lambda: is_serving(socket), "the worker")
        open_to_all = attack(control, attacked, "none")
    assert open_to_all["user"] == os.getuid()
    assert set(open_to_all["files"].values()) == {"got"}, open_to_all["files"]
    assert "NO BOUNDARY" in (attacked.root / "client-1.log").read_text()


def require_nothing_got(report: dict[str, Any], deployment: Deployment) -> None:
    """Every attempt at the partner's own fails as it should; what is anybody's, or is allowed, is there."""
    kit = deployment.kits / "partners" / deployment.names[0]
    allowed = {"read public", "read own node key", "read socket's folder"}
    assert report["user"] == ids(SHIM)[0]
    assert {name for name, said in report["files"].items() if said == "got"} == allowed, report["files"]
    assert set(report["files"].values()) == {"got", "PermissionError"}, report["files"]
    assert report["asked"].keys() == REFUSALS.keys()
    for name, said in report["asked"].items():
        assert re.search(REFUSALS[name], said), (name, said)
    ledger = deployment.ledger(deployment.names[0])
    ledger.verify()
    assert [(event.run_id, event.round) for event in ledger.events()] == [("shim", 1)]  # the allowed one
    audit = read_audit_log(kit / "state" / "audit.jsonl")
    reasons = [record["reason"] for record in audit if record["what"] == "refused"]
    for said in report["asked"].values():
        if said.startswith("101 "):
            assert said.removeprefix("101 ") in reasons, said
