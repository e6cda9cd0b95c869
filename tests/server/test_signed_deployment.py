"""A deployment's server: the key that signs is looked at before the rounds, has no copy, and fills the registry."""

from pathlib import Path

import pytest
import tomli_w
from conftest import random_rows
from kits import Operator, consortium
from signed_models import model_of

from client.partner import load_partner
from common.card import canonical_card
from common.config import ModelConfig, read_toml, to_table
from common.errors import ConfigError
from common.keyfiles import load_signing_public
from common.pretrained import locate
from common.registry import Registry
from common.runfolder import RunFolder
from server.deploy import prepare_folder, register
from server.deployment import ServerDeployment, load_deployment
from server.modelfolder import load_signing_key


@pytest.fixture
def home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The server's kit, with held-out clicks."""
    operator = Operator(tmp_path, capsys)
    operator.provision(consortium())
    folder, rows = operator.kits / "server", random_rows(40)
    rows.to_parquet(folder / "central.parquet", index=False)
    (folder / "card.toml").write_text(tomli_w.dumps(to_table(canonical_card(rows))), encoding="utf-8")
    return folder


def deployment_of(home: Path, **keys: str) -> ServerDeployment:
    path = home / "server.toml"
    path.write_text(tomli_w.dumps(read_toml(path) | keys), encoding="utf-8")
    return load_deployment(path)


def test_a_kit_names_the_key_at_both_ends(home: Path) -> None:
    assert read_toml(home / "server.toml")["signing_key"] == "signing.key"
    public = load_signing_key(home / "signing.key").public_key()
    for name in ("shop-a", "shop-b", "shop-c", "shop-d"):
        worker = load_partner(home.parent / "partners" / name / "worker.toml")
        assert load_signing_public(Path(worker.signing_key)) == public


def test_a_server_without_its_key_does_not_start(home: Path) -> None:
    (home / "signing.key").rename(home / "moved.key")
    with pytest.raises(ConfigError, match=r"signing.key: no key to sign the final model with; name the kit's"):
        prepare_folder(load_deployment(home / "server.toml"))
    assert not (home / "run").exists()
    (home / "moved.key").chmod(0o644)
    with pytest.raises(ConfigError, match="others can read this key"):
        prepare_folder(deployment_of(home, signing_key="moved.key"))


def test_the_run_folder_finds_the_key_and_has_no_copy_of_it(home: Path) -> None:
    folder = prepare_folder(load_deployment(home / "server.toml"))
    assert folder.signing_key.is_symlink()
    assert folder.signing_key.resolve() == (home / "signing.key").resolve()
    public = load_signing_key(home / "signing.key").public_key()
    assert load_signing_key(folder.signing_key).public_key() == public
    (home / "signing.key").rename(home / "moved.key")
    again = prepare_folder(deployment_of(home, signing_key="moved.key"))  # at the next start
    assert load_signing_key(again.signing_key).public_key() == public
    assert not list(folder.root.glob(".*.part"))


def test_a_finished_run_puts_its_model_into_the_registry_once(home: Path, tiny_encoder: Path) -> None:
    folder, key = RunFolder(home / "run"), load_signing_key(home / "signing.key")
    model_of(folder.model, locate(f"path:{tiny_encoder}"), ModelConfig(width=4, hidden=6), key=key)
    register(load_deployment(home / "server.toml"), folder)  # none is named
    named = deployment_of(home, registry="registry")
    assert named.registry == str(home / "registry")
    for _ in range(2):
        register(named, folder)
    registry = Registry(home / "registry")
    assert registry.numbers() == [1]
    assert registry.version(1, key.public_key()).lineage.run_id == "run"
    assert registry.promoted() is None  # that is for the operator to say
