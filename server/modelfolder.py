"""The model folder that a run leaves: trained parameters, what is needed to use them, and who vouches for them."""

import math
import uuid
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import safe_open
from safetensors.torch import save

from common.calibration import Calibration
from common.config import MACHINES_OWN, ModelConfig, to_table
from common.errors import ModelError
from common.keyfiles import load_ed25519, public_hex
from common.lineage import (
    LINEAGE,
    LINEAGE_VERSION,
    PARAMETERS,
    SETTINGS,
    SIGNATURE,
    STATISTICS,
    Base,
    Claim,
    Lineage,
    PartnerFacts,
    RoundFacts,
    dump_lineage,
    file_facts,
    read_model_folder,
    sign,
    verified,
)
from common.model.click_model import ClickModel
from common.model.saved import SETTINGS_VERSION
from common.pretrained import Pretrained
from common.runfolder import RunFolder, write_atomically, write_json
from common.vector import trainable


def num_parameters(folder: Path) -> int:
    """Returns the number of trained parameters in a model folder."""
    with safe_open(str(folder / PARAMETERS), framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (not a dict)


def save_model(
    folder: Path,
    model: ClickModel,
    config: ModelConfig,
    pretrained: Pretrained,
    run_id: str,
    rounds: int,
    statistics: bytes | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Writes `model.safetensors` (trained parameters only) and `config.json` (layout, base and its hash, run,
    calibration where there is one).

    Where features are made with private statistics, their release goes beside them: `statistics.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if statistics is not None:
        write_atomically(folder / STATISTICS, statistics)
    write_atomically(folder / PARAMETERS, save({name: parameter.detach() for name, parameter in trainable(model)}))
    table = {key: value for key, value in to_table(config).items() if key not in MACHINES_OWN}
    facts: dict[str, Any] = {
        "format": SETTINGS_VERSION,
        "model": table,
        "text_width": pretrained.width,
        "num_heads": model.head.out_features,
        "encoder": pretrained.spec,
        "encoder_sha256": pretrained.weights_sha256,
        "run_id": run_id,
        "rounds": rounds,
    }
    if calibration is not None:
        facts["calibration"] = asdict(calibration)
    write_json(folder / SETTINGS, facts)


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Returns what signs the run's model, or raises `ConfigError`: better before the rounds than after them."""
    return load_ed25519(
        path,
        "no key to sign the final model with; name the kit's signing.key as signing_key in server.toml (`hushclick"
        " provision` makes one; a simulation makes its own while it prepares)",
    )


def link_signing_key(folder: RunFolder, key: Path) -> None:
    """Lets the run folder's ServerApp find the key, of which there is no copy."""
    beside = folder.root / f".signing.{uuid.uuid4().hex}.part"
    beside.symlink_to(key.resolve())
    beside.replace(folder.signing_key)


def vouch(
    folder: Path,
    key: Ed25519PrivateKey,
    pretrained: Pretrained,
    run_id: str,
    layout: str,
    config_fingerprint: str,
    rounds: tuple[RoundFacts, ...],
    cards: dict[str, str],
    claim: Claim,
) -> dict[str, bytes]:
    """Writes `lineage.json` and `lineage.sig` beside a saved model, and returns all files of the signed model.

    What a server signed before it was started again stays as it is, byte for byte: partners have it already.
    """
    unsigned = [name for name in (PARAMETERS, SETTINGS, STATISTICS) if (folder / name).exists()]
    files = {name: (folder / name).read_bytes() for name in unsigned}
    facts = {name: file_facts(data) for name, data in files.items()}
    known = _signed_before(folder, key)
    if known and known.files == facts and (known.run_id, len(known.rounds)) == (run_id, len(rounds)):
        return read_model_folder(folder)
    lineage = dump_lineage(
        Lineage(
            format=LINEAGE_VERSION,
            hushclick=version("hushclick"),
            run_id=run_id,
            signed_by=public_hex(key),
            files=facts,
            base=Base(pretrained.spec, pretrained.weights_sha256, pretrained.fingerprint),
            layout=layout,
            config_fingerprint=config_fingerprint,
            rounds=rounds,
            partners={partner: PartnerFacts(card) for partner, card in cards.items()},
            privacy=claim,
        )
    )
    signature = sign(key, lineage)
    write_atomically(folder / LINEAGE, lineage)
    write_atomically(folder / SIGNATURE, signature)
    return files | {LINEAGE: lineage, SIGNATURE: signature}


def _signed_before(folder: Path, key: Ed25519PrivateKey) -> Lineage | None:
    """Returns the lineage of the model that is in the folder already; None where there is none that holds."""
    try:
        return verified(read_model_folder(folder), key.public_key())
    except ModelError:
        return None
