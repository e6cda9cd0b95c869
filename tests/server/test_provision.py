"""`hushclick provision`: whole kits that load with their own loaders, secrets where they belong, and every mistake."""

import stat
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from kits import PARTNERS, RUN, Operator, consortium, is_private, write

from client.deployment import ClientConfig, load_client
from client.identity import load_identity, new_identity
from client.participant import own_membership
from client.partner import load_partner
from common.card import load_card
from common.cli import main
from common.config import Config, load_config
from common.errors import ConfigError
from common.keyfiles import load_node_key, load_signing_public, public_hex, public_line
from common.secagg.roster import load_roster
from server.deployment import load_deployment, node_keys
from server.provision.consortium import load_consortium
from server.provision.plan import planned_run, rounds_of_the_busiest
from simulations.spending import with_noise

NAMES = [name for name, _ in PARTNERS]


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(tmp_path, capsys)


def test_every_file_of_a_kit_loads_and_fits_the_others(operator: Operator) -> None:
    result = operator.provision(consortium())
    assert result["attention"] == []
    deployment = load_deployment(operator.kits / "server" / "server.toml")
    roster = load_roster(Path(deployment.roster))
    assert roster.hash.hex() == result["roster"]
    assert [(member.name, member.weight) for member in roster.members] == [
        *(("shop-a", 1.0), ("shop-b", 0.5), ("shop-c", 0.25), ("shop-d", 1.0))
    ]
    assert list(node_keys(deployment)) == NAMES
    signing = load_pem_private_key(Path(deployment.signing_key).read_bytes(), None)
    for name in NAMES:
        client = load_client(operator.partner(name) / "client.toml")
        assert (client.name, client.host, client.port) == (name, "localhost", 8443)
        worker = load_partner(Path(client.worker))
        assert worker.name == name
        _, own = own_membership(worker)  # refuses an identity that is not the roster's
        assert own.hash == roster.hash
        assert load_card(Path(worker.card)).columns.user == "user_id"
        line = public_line(load_node_key(Path(client.node_key)).public_key())
        assert node_keys(deployment)[name].read_text().split()[:2] == line.split()
        assert load_signing_public(Path(client.signing_key)) == signing.public_key()
    assert load_partner(operator.partner("shop-c") / "worker.toml").declared_users == 300


def test_private_files_are_their_owners_alone_and_in_one_place_each(operator: Operator) -> None:
    operator.provision(consortium())
    private = operator.private_files()
    assert {str(path.relative_to(operator.kits)) for path in private} == {
        *("ca/ca.key", "server/server.key", "server/signing.key"),
        *(f"partners/{name}/{file}" for name in NAMES for file in ("identity.pem", "node.key")),
    }
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert len(set(private.values())) == len(private)
    everything = {path: path.read_bytes() for path in operator.kits.rglob("*") if path.is_file()}
    for path, secret in private.items():
        body = b"".join(secret.splitlines()[1:-1])[-60:]  # base64 of the end of the secret
        holders = [other for other, data in everything.items() if body in b"".join(data.splitlines())]
        assert holders == [path]
    for path in operator.kits.rglob("*"):
        assert is_private(path) == (path.suffix in (".key", ".pem")), path


def test_the_server_gets_the_run_with_its_partners_and_noise(operator: Operator) -> None:
    operator.provision(consortium())
    config = load_config(operator.kits / "server" / "run.toml")
    assert config.data.partners == 4
    for name in NAMES:
        worker = load_partner(operator.partner(name) / "worker.toml")
        assert worker.privacy == config.privacy
        assert replace(worker.model, cache="") == replace(config.model, cache="")
        assert worker.aggregation.least_participants == 3


def test_a_kit_of_shared_noise_guarantees_the_parts_that_the_run_counts_on(operator: Operator) -> None:
    run = {"round": {"local_steps": 1}, "privacy": {"mode": "distributed", "noise_multiplier": 2.0}}
    operator.provision(consortium(), run=run)
    worker = load_partner(operator.partner("shop-a") / "worker.toml")
    # n = 4, c = 1: a majority of floor(5 / 2) + 1 = 3 contribute, and one of them may tell.
    assert (worker.aggregation.least_participants, worker.noise_shares) == (3, 2)


@pytest.mark.parametrize("cohort", [0, 3])
def test_noise_is_calibrated_over_the_busiest_partners_steps(tmp_path: Path, cohort: int) -> None:
    run = {"round": {"num_rounds": 6, "partners_per_round": cohort}, "privacy": {"sampling_rate": 0.05}}
    listed = load_consortium(write(tmp_path, consortium(), run))
    planned = planned_run(listed)
    assert planned.privacy.noise_multiplier is not None
    busiest = rounds_of_the_busiest(planned, listed.names)
    assert busiest == 6 if cohort == 0 else 4 <= busiest <= 6
    # The simulation's own calibration, over just these rounds and all partners in each.
    rounds = replace(planned.round, num_rounds=busiest, partners_per_round=0)
    same = replace(planned, round=rounds, privacy=replace(planned.privacy, noise_multiplier=None))
    assert with_noise(same).privacy.noise_multiplier == planned.privacy.noise_multiplier


def test_equal_weights(operator: Operator) -> None:
    operator.provision(consortium(), run=RUN | {"aggregation": {"weights": "equal"}})
    assert {member.weight for member in load_roster(operator.kits / "server" / "roster.toml").members} == {1.0}


def test_keys_that_a_partner_made_itself_are_taken_and_not_made(
    operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "at the partner"
    assert main(["keys", "new", "--out", str(home)]) == 0
    capsys.readouterr()
    public = tomllib.loads((home / "public.toml").read_text())
    table = consortium()
    table["partners"][1] |= public
    result = operator.provision(table)
    kit = operator.partner("shop-b")
    assert not [path for path in kit.iterdir() if is_private(path)]
    assert result["partners"]["shop-b"]["made_here"] == []
    assert not any("shop-b" in note for note in result["notes"])
    assert any("shop-a, shop-c, shop-d were made here" in note for note in result["notes"])
    for path in kit.iterdir():  # unpacked beside its keys
        (home / path.name).write_bytes(path.read_bytes())
    own_membership(load_partner(home / "worker.toml"))
    assert "hushclick keys new --out ." in (kit / "README.md").read_text()
    assert "comes without identity.pem and node.key" in (kit / "README.md").read_text()
    assert "could have kept it" not in (kit / "README.md").read_text()
    assert "could have kept it" in (operator.partner("shop-a") / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES[:1])
def test_a_readme_has_three_commands(operator: Operator, name: str) -> None:
    operator.provision(consortium())
    text = (operator.partner(name) / "README.md").read_text()
    commands = [line for line in text.splitlines() if line.startswith("hushclick ")]
    assert commands == [
        *("hushclick keys show identity.pem", "hushclick check client.toml", "hushclick client client.toml")
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "x\n"}, "name"),
        ({"name": "a" * 49}, "at most 48"),
        ({"run": "nowhere.toml"}, "no such file"),
        ({"days": 0}, "days = 0"),
        ({"kit": 2}, "kit = 2"),
        ({"colour": "red"}, "unknown key"),
        ({"partners": []}, "partners"),
        ({"server": {"host": []}}, "server.host"),
        ({"server": {"host": "https://x"}}, "not a host"),
        ({"server": {"host": "*.example.org"}}, "no wildcard"),
        ({"server": {"host": "x:8000"}}, "not a host"),
        ({"server": {"host": "example.org", "port": 0}}, "server.port = 0"),
        ({"server": {"host": "1.2.3.400"}}, "not a host"),
        ({"server": {"host": ""}}, "not a host"),
    ],
)
def test_a_wrong_consortium_is_refused_and_nothing_is_written(
    operator: Operator, change: dict[str, Any], says: str
) -> None:
    assert says in operator.refused(consortium(**change))
    assert not operator.kits.exists()


@pytest.mark.parametrize(
    "name", ["../shop", "..", ".", "", "a/b", "/etc", "a\\b", "a\n", "a\0b", " a", "-a", "ü", "a" * 65, "a:b"]
)
def test_a_name_that_would_leave_the_folder_is_refused(operator: Operator, name: str) -> None:
    table = consortium()
    table["partners"][0]["name"] = name
    assert "partners" in operator.refused(table)
    assert not operator.kits.exists()


@pytest.mark.parametrize(
    ("partner", "says"),
    [
        ({"name": "shop-b"}, "the name shop-b is there twice"),
        ({"name": "SHOP-B"}, "the name shop-b is there twice"),
        ({"declared_users": 0}, "greater than or equal to 1"),
        ({"identity_public_key": "ab"}, "identity_public_key"),
        ({"identity_public_key": "AB" * 32}, "identity_public_key"),
        ({"node_public_key": "ssh-ed25519 AAAA"}, "partners.shop-a.node_public_key: not an ECDSA public key"),
        ({"node_public_key": "ecdsa-sha2-nistp384 AAAA"}, "not an ECDSA public key"),
        ({"node_public_key": ""}, "not an ECDSA public key"),
    ],
)
def test_a_wrong_partner_is_refused(operator: Operator, partner: dict[str, Any], says: str) -> None:
    table = consortium()
    table["partners"][0] |= partner
    assert says in operator.refused(table)
    assert not operator.kits.exists()


def test_an_ed25519_node_key_is_refused_here_and_not_by_flower_later(operator: Operator) -> None:
    table = consortium()
    table["partners"][0]["node_public_key"] = (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPQ1XXFvDWvRH8FoTPUQ7ymTk1IYqTVyDWPeHLkCOTh"
    )
    assert "the only kind that Flower takes" in operator.refused(table)


@pytest.mark.parametrize("key", ["identity_public_key", "node_public_key"])
def test_two_partners_with_one_key_are_refused(
    operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert main(["keys", "new", "--out", str(tmp_path / "k")]) == 0
    capsys.readouterr()
    public = tomllib.loads((tmp_path / "k" / "public.toml").read_text())
    table = consortium()
    for number in (0, 2):
        table["partners"][number][key] = public[key]
    if key == "node_public_key":
        table["partners"][2][key] += " another comment"
    assert "is there twice; every partner needs its own" in operator.refused(table)
    assert not operator.kits.exists()


def test_a_key_that_was_issued_to_another_partner_is_refused(operator: Operator) -> None:
    issued = operator.provision(consortium())
    table = consortium()
    table["partners"][3]["identity_public_key"] = issued["partners"]["shop-a"]["identity_public_key"]
    kept = operator.private_files()
    assert "shop-d and shop-a have the same identity key" in operator.refused(table)
    assert operator.private_files() == kept


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ({"privacy": {"fixed_seed": 7}}, "whoever knows it can remove the noise"),
        ({"data": {"measure_click_rate": True}, "privacy": {"mode": "none"}}, "a deployment measures nothing"),
        ({"simulation": {"dropout_rate": 0.1}}, "real partners play no faults"),
        ({"privacy": {"delta": 0.001}}, "a delta of 1 / users"),
        ({"aggregation": {"min_partners": 5}}, "at most the 4 partners"),
        ({"privacy": {"epsilon": -1}}, "greater than 0"),
    ],
)
def test_a_run_that_no_deployment_should_do_is_refused(operator: Operator, run: dict[str, Any], says: str) -> None:
    assert says in operator.refused(consortium(), run=run)
    assert not operator.kits.exists()


@pytest.mark.parametrize(
    ("file", "load"),
    [
        ("server/server.toml", load_deployment),
        ("server/roster.toml", load_roster),
        ("partners/shop-a/client.toml", load_client),
        ("partners/shop-a/worker.toml", load_partner),
    ],
)
def test_a_file_of_another_kit_version_is_refused(operator: Operator, file: str, load: Any) -> None:
    operator.provision(consortium())
    path = operator.kits / file
    table = tomllib.loads(path.read_text())
    assert table["kit"] == 1
    for version in (2, "1", True):
        path.write_text(tomli_w.dumps(table | {"kit": version}))
        with pytest.raises(ConfigError, match="this version of hushclick reads kit 1; install the version that wrote"):
            load(path)


def test_a_server_or_client_file_without_a_version_is_refused(tmp_path: Path) -> None:
    for load in (load_deployment, load_client):
        (tmp_path / "x.toml").write_text('name = "a"\n')
        with pytest.raises(ConfigError, match="kit: missing"):
            load(tmp_path / "x.toml")


def test_a_record_of_another_version_is_refused(operator: Operator) -> None:
    operator.provision(consortium())
    record = operator.kits / "issued.json"
    record.write_text(record.read_text().replace('"kit": 1', '"kit": 2'))
    assert "reads kit 1" in operator.refused(consortium())
    record.write_text("{")
    assert "restore it from a backup" in operator.refused(consortium())


def test_client_addresses() -> None:
    assert ClientConfig("a", "[::1]:8000").host == "::1"
    assert ClientConfig("a", "[::1]:8000").superlink == "[::1]:8000"
    assert ClientConfig("a", "Hush.Example.ORG:443").superlink == "hush.example.org:443"
    for wrong in ("hush", "hush:0", "hush:99999", "https://hush:1", "::1:80", ":80", "a b:80", "hush:８０"):
        with pytest.raises(ConfigError, match="superlink"):
            ClientConfig("a", wrong)


def test_what_was_made_by_hand_in_the_way_is_never_overwritten(operator: Operator) -> None:
    """An identity that lies there already, unrecorded, is adopted: an earlier run may have been stopped after it."""
    home = operator.partner("shop-a")
    home.mkdir(parents=True)
    public = new_identity(home / "identity.pem")
    kept = (home / "identity.pem").read_bytes()
    result = operator.provision(consortium())
    assert result["partners"]["shop-a"]["identity_public_key"] == public
    assert (home / "identity.pem").read_bytes() == kept
    assert public_hex(load_identity(home / "identity.pem")) == public


def test_the_default_run_is_a_run(operator: Operator) -> None:
    """A consortium may leave everything at its default."""
    assert Config().aggregation.min_partners <= len(NAMES)
    operator.provision(consortium(), run={"privacy": {"noise_multiplier": 1.0}})


def test_no_set_no_folder_no_kit(operator: Operator) -> None:
    assert "takes no --set" in operator.refused(consortium(), "--set", "name=x")
