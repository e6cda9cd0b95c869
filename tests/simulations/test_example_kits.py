"""The example consortium's kits, and how they are dealt out among the containers' volumes."""

import shutil
from pathlib import Path

import pytest
import tomli_w

from client.partner import load_partner
from common.card import load_card
from common.clicks import read_clicks
from common.config import load_config
from common.errors import ConfigError
from common.secagg.roster import load_roster
from server.deployment import load_deployment, node_keys
from simulations import compose
from simulations.filled_kits import Example, fill_kits

RUN = {
    "data": {"source": "generated", "partners": 4, "generator": {"users": 80, "items": 30, "impressions_per_user": 6}},
    "round": {"num_rounds": 2, "local_steps": 1},
    "privacy": {"epsilon": 8.0, "delta": 1e-3, "sampling_rate": 0.5},
}


@pytest.fixture
def config(tmp_path: Path, tiny_encoder: Path) -> Path:
    path = tmp_path / "deploy.toml"
    path.write_text(tomli_w.dumps(RUN | {"model": {"encoder": f"path:{tiny_encoder}"}}), encoding="utf-8")
    return path


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """Who was given what: this machine has none of the containers' users."""
    given: dict[Path, str] = {}
    monkeypatch.setattr(shutil, "chown", lambda path, user, group: given.__setitem__(Path(path), f"{user}:{group}"))
    return given


def test_kits_are_whole_and_all_clicks_are_in_them(tmp_path: Path, config: Path) -> None:
    names = ("a", "b", "c", "d")
    example = Example(names, ("localhost",), 8443, {"a": {"worker": {"metrics_port": 9123}}}, {"host": "0.0.0.0"})
    kits = fill_kits(load_config(config), example, tmp_path)
    partners = {name: load_partner(kits / "partners" / name / "worker.toml") for name in names}
    assert partners["a"].worker.metrics_port == 9123
    assert partners["b"].worker.metrics_port == 0
    rows = [read_clicks(Path(one.clicks), load_card(Path(one.card))).rows for one in partners.values()]
    users = [set(part["user"]) for part in rows]
    assert sum(map(len, users)) == len(set.union(*users))  # each user is one partner's
    deployment = load_deployment(kits / "server" / "server.toml")
    assert deployment.host == "0.0.0.0"
    assert list(node_keys(deployment)) == list(names)
    held_out = read_clicks(Path(deployment.clicks), load_card(Path(deployment.card))).rows
    assert len(set.union(*users) | set(held_out["user"])) == 80
    assert [member.name for member in load_roster(Path(deployment.roster)).members] == list(names)


def test_another_number_of_partners_is_refused(tmp_path: Path, config: Path) -> None:
    example = Example(("a", "b", "c"), ("localhost",), 8443, {}, {})
    with pytest.raises(ConfigError, match=r"data\.partners = 4: this example has 3"):
        fill_kits(load_config(config), example, tmp_path)


def test_each_file_goes_to_the_one_user_that_reads_it(tmp_path: Path, config: Path, owners: dict[Path, str]) -> None:
    volumes = tmp_path / "volumes"
    assert compose.prepare(config, [], volumes)
    found = {str(path.relative_to(volumes)): owners[path] for path in volumes.rglob("*") if path in owners}
    for name in compose.PARTNERS:
        mine = {path: owner for path, owner in found.items() if path.startswith(f"{name}-") and "/" in path}
        assert {path for path, owner in mine.items() if owner == "shim:shim"} == {
            f"{name}-shim/superexec",
            f"{name}-shim/runtime-ca.crt",
        }
        assert {path for path in mine if path.endswith((".key", ".pem", ".parquet"))} == {
            f"{name}-node/node.key",
            f"{name}-node/runtime.key",
            f"{name}-kit/identity.pem",
            f"{name}-clicks/clicks.parquet",
        }
        assert mine[f"{name}-node/node.key"] == "node:node"
        assert mine[f"{name}-kit/identity.pem"] == mine[f"{name}-clicks/clicks.parquet"] == "worker:worker"
    assert {path: owner for path, owner in found.items() if path.endswith("server.key")} == {
        "proxy-tls/server.key": "proxy:proxy",
        "superlink-tls/server.key": "superlink:superlink",
    }
    assert found["server/signing.key"] == "server:server"
    assert not any("ca.key" in path for path in found)
    assert {path.stat().st_mode & 0o777 for path in owners if path.is_file()} == {0o400}
    assert {path.stat().st_mode & 0o777 for path in owners if path.is_dir()} == {0o500}


def test_what_is_prepared_stays(tmp_path: Path, config: Path, owners: dict[Path, str]) -> None:
    volumes = tmp_path / "volumes"
    compose.prepare(config, [], volumes)
    before = {path: path.read_bytes() for path in volumes.rglob("*") if path.is_file()}
    assert not compose.prepare(config, [], volumes)
    assert before == {path: path.read_bytes() for path in volumes.rglob("*") if path.is_file()}
    assert owners


def test_a_wrong_setting_is_one_line(
    tmp_path: Path, config: Path, owners: dict[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = compose.main([str(config), "--set", "data.partners=3", "--volumes", str(tmp_path / "volumes")])
    assert code == 2
    assert "set data.partners = 4" in capsys.readouterr().err
    assert not owners
