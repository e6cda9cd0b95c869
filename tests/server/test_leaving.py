"""A partner leaves for good: what the others, the server and the SuperLink make of it."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import random_rows
from hostile.hostile_round import Round, sums_up
from hostile.hostile_server import partners
from kits import Operator, consortium

from client.participant import own_membership
from client.partner import load_partner
from common.card import canonical_card
from common.clicks import write_clicks
from common.config import load_config, to_table
from common.errors import ConfigError
from common.messages import JoinReply
from common.secagg.roster import load_roster
from server.control import Control
from server.deploy import prepare_folder
from server.deployment import load_deployment, node_keys
from server.joining import fitting


def without(name: str) -> dict[str, Any]:
    table = consortium()
    table["partners"] = [partner for partner in table["partners"] if partner["name"] != name]
    return table


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    one = Operator(tmp_path, capsys)
    one.provision(consortium())
    rows = random_rows(12)
    write_clicks(rows, one.kits / "server" / "central.parquet")
    (one.kits / "server" / "card.toml").write_text(tomli_w.dumps(to_table(canonical_card(rows))), encoding="utf-8")
    return one


class SuperLink:
    """Answers `flwr supernode` as a SuperLink does, and remembers who is on its list."""

    def __init__(self) -> None:
        self.listed: dict[str, str] = {}
        self.given = 0

    def ask(self, *words: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
        what, *rest = words[1:]
        if what == "register":
            self.given += 1
            self.listed[str(self.given)] = more[1]
            return {"node-id": str(self.given)}
        if what == "unregister":
            del self.listed[rest[0]]
        return {"nodes": [{"node-id": node} for node in self.listed]}


def test_its_node_is_taken_off_the_list_and_nobody_elses(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    link, deployment = SuperLink(), load_deployment(operator.kits / "server" / "server.toml")
    monkeypatch.setattr(Control, "_ask", lambda _, *words, more=(): link.ask(*words, more=more))

    def control() -> Control:  # a server that was started again
        return Control(operator.home / "flower", "127.0.0.1:1", Path(deployment.ca))

    control().know(node_keys(deployment))
    assert sorted(link.listed.values()) == ["shop-a", "shop-b", "shop-c", "shop-d"]
    before = dict(link.listed)
    operator.provision(without("shop-b"))
    control().know(node_keys(deployment))
    assert link.listed == {node: name for node, name in before.items() if name != "shop-b"}
    operator.provision(consortium())  # it comes back, with a new key
    control().know(node_keys(deployment))
    assert sorted(link.listed.values()) == ["shop-a", "shop-b", "shop-c", "shop-d"]


def test_a_run_that_was_begun_keeps_its_roster_and_the_mend_is_said(operator: Operator) -> None:
    path = operator.kits / "server" / "server.toml"
    first = prepare_folder(load_deployment(path))
    operator.provision(without("shop-b"))
    with pytest.raises(ConfigError, match=r"is of an earlier configuration; a changed run needs another folder \(run"):
        prepare_folder(load_deployment(path))
    path.write_text(path.read_text().replace('run = "run"', 'run = "run-2"'), encoding="utf-8")
    second = prepare_folder(load_deployment(path))
    assert second.root != first.root
    assert load_config(second.config).data.partners == 3
    assert [member.name for member in load_roster(second.roster).members] == ["shop-a", "shop-c", "shop-d"]


def test_the_leaver_is_no_member_of_the_new_roster_and_is_left_out_with_the_old_one(operator: Operator) -> None:
    old = load_roster(operator.kits / "server" / "roster.toml")
    operator.provision(without("shop-b"))
    server = operator.kits / "server"
    new, config = load_roster(server / "roster.toml"), load_config(server / "run.toml")
    assert new.hash != old.hash
    removed = operator.kits / "removed" / "shop-b"
    assert own_membership(load_partner(removed / "worker.toml"))[1].hash == old.hash
    (removed / "roster.toml").write_bytes((server / "roster.toml").read_bytes())
    with pytest.raises(ConfigError, match="has no member shop-b with the public key"):
        own_membership(load_partner(removed / "worker.toml"))
    replies = {
        name: JoinReply(name, 100, "layout", False, (old if name == "shop-b" else new).hash.hex())
        for name in ("shop-a", "shop-b", "shop-c", "shop-d")
    }
    assert sorted(fitting(config, replies, "layout", "", new)) == ["shop-a", "shop-c", "shop-d"]


def test_the_others_go_on_under_the_old_roster_without_it(tmp_path: Path, tiny_encoder: Path) -> None:
    """Until the run is over the operator need not change anything: whoever is silent is in no cohort's sum."""
    with partners(tmp_path, tiny_encoder, privacy={"epsilon": 200.0}) as server:
        sums_up(Round(server))
        sums_up(Round(server, numbers=(1, 3, 4), round=2), (1, 3, 4))
        assert server.charged(2) == 1
        assert [server.charged(number) for number in (1, 3, 4)] == [2, 2, 2]


def test_too_few_that_are_left_are_refused_when_provisioning(operator: Operator) -> None:
    table = without("shop-b")
    table["partners"] = table["partners"][:2]
    assert "at most the 2 partners" in operator.refused(table)
