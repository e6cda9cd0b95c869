"""Signed models of a worker's own layout, and ways to spoil them: by whoever altered them, and by the signer itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.worker import Worker
from common.config import ModelConfig
from common.keyfiles import public_hex, public_pem
from common.lineage import LINEAGE, SIGNATURE, Claim, RoundFacts, file_facts, sign
from common.model.click_model import build_model
from common.pretrained import Pretrained, locate
from common.vector import layout_fingerprint
from server.modelfolder import save_model, vouch

Files = dict[str, bytes]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
CLAIM = Claim(mode="local", sentence="epsilon 1.00", basis="by hand", rounds=2, epsilon=1.0, delta=1e-5)


def model_of(
    folder: Path,
    pretrained: Pretrained,
    config: ModelConfig,
    *,
    key: Ed25519PrivateKey = KEY,
    run_id: str = "run",
    rounds: int = 2,
    seed: int = 1,
    heads: int = 1,
) -> Files:
    """Writes a signed model as a server does, and returns its files."""
    model = build_model(config, pretrained.width, heads, seed)
    layout = layout_fingerprint(model, pretrained.fingerprint, config)
    save_model(folder, model, config, pretrained, run_id, rounds)
    facts = tuple(RoundFacts(number, 4, 3) for number in range(1, rounds + 1))
    return vouch(folder, key, pretrained, run_id, layout, "c" * 64, facts, {"shop": "d" * 64, "other": ""}, CLAIM)


def model_for(worker: Worker, folder: Path, **change: Any) -> Files:
    """Writes a signed model of a worker's own base and layout, and returns its files."""
    config = worker.config.model
    return model_of(folder, locate(config.encoder), config, **change)


def pin(home: Path, key: Ed25519PrivateKey = KEY) -> None:
    """Writes the public half that a partner pins."""
    (home / "signing.pub").write_bytes(public_pem(public_hex(key)))


def altered(files: Files, change: Callable[[dict[str, Any]], object]) -> Files:
    """Returns the files with another lineage under the signature of the first: what somebody on the way can do."""
    table = json.loads(files[LINEAGE])
    change(table)
    return files | {LINEAGE: json.dumps(table).encode()}


def resigned(files: Files, change: Callable[[dict[str, Any]], object], key: Ed25519PrivateKey = KEY) -> Files:
    """Returns the files with another lineage that is signed again: what a lying server can do."""
    spoilt = altered(files, change)
    return spoilt | {SIGNATURE: sign(key, spoilt[LINEAGE])}


def with_file(files: Files, name: str, data: bytes) -> Files:
    """Returns the files with another content of one, which the signed lineage names."""

    def change(table: dict[str, Any]) -> None:
        facts = file_facts(data)
        table["files"][name] = {"sha256": facts.sha256, "num_bytes": facts.num_bytes}

    return resigned(files | {name: data}, change)
