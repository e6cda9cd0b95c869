"""A trained model's lineage: its files, run, base, partners and privacy cost; and the signature over it.

A model folder holds `model.safetensors`, `config.json`, `lineage.json` and `lineage.sig`, and `statistics.json` where
features are made with private statistics. The lineage names the SHA-256 of the other files; the signature is over the
very bytes of the lineage. So whoever has the public half of the signing
key can say that these files are the ones that the run's server vouches for. What the server says in a lineage of
privacy is its own claim: a partner's own ledger is what counts for that partner.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from common.config import STRICT
from common.errors import ModelError
from common.runfolder import jsonable

LINEAGE_VERSION = 1
PARAMETERS, SETTINGS, LINEAGE, SIGNATURE = "model.safetensors", "config.json", "lineage.json", "lineage.sig"
STATISTICS = "statistics.json"  # only where the model's features are made with private statistics
MODEL_FILES = frozenset({PARAMETERS, SETTINGS, LINEAGE, SIGNATURE})
MOST_MODEL_BYTES = 2**28  # what is read into memory at most, where nobody says otherwise

_DOMAIN = b"hushclick model lineage v1\0"
_SIGNATURE_DIGITS = 128

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, config=STRICT)
class FileFacts:
    """One file of the model."""

    sha256: Hash
    num_bytes: Count


@dataclass(frozen=True, config=STRICT)
class Base:
    """The frozen text encoder that the model sits on."""

    encoder: str  # as the server wrote it; where the files lie may differ elsewhere
    weights_sha256: Hash
    fingerprint: Hash  # of weights, configuration and tokenizer


@dataclass(frozen=True, config=STRICT)
class RoundFacts:
    """How many partners one round asked, and how many are in its sum."""

    round: Count
    asked: Count
    contributed: Count


@dataclass(frozen=True, config=STRICT)
class PartnerFacts:
    """What one partner said of itself when it joined."""

    card_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""  # of its data card; of no click


@dataclass(frozen=True, config=STRICT)
class Claim:
    """What the run's own configuration costs the users of one partner; None = no finite bound, or none is claimed.

    Attributes:
        basis: what it is computed from, and what it cannot know.
        rounds: the most rounds that any one partner was asked in.
        epsilon: upper bound by `accountant` at `delta`, for one `unit` under `adjacency`, against `protects_against`.
        user_epsilon: the same for a whole user with at most `impressions` training rows.
        views: epsilon against the server, another partner, and whoever breaks secure aggregation.
    """

    mode: str
    sentence: str
    basis: str
    rounds: Count
    epsilon: float | None = None
    delta: float | None = None
    unit: str = ""
    user_epsilon: float | None = None
    impressions: Count = 1
    adjacency: str = ""
    accountant: str = ""
    second_accountant: str = ""
    second_epsilon: float | None = None
    protects_against: tuple[str, ...] = ()
    views: dict[str, float | None] = field(default_factory=dict)
    fixed_seed: bool = False
    noise_multiplier: float | None = None
    sampling_rate: float | None = None
    clip: float | None = None
    steps: Count = 0


@dataclass(frozen=True, config=STRICT)
class Lineage:
    """What is signed."""

    format: Annotated[int, Field(ge=LINEAGE_VERSION, le=LINEAGE_VERSION)]
    hushclick: str  # release that wrote it
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]  # names folders
    signed_by: Hash  # public half of the key, hex
    files: dict[str, FileFacts]
    base: Base
    layout: Hash  # fingerprint of the model's layout
    config_fingerprint: Hash  # of the run's configuration
    rounds: tuple[RoundFacts, ...]
    partners: dict[str, PartnerFacts]
    privacy: Claim

    @property
    def label(self) -> str:
        """Run and number of rounds: a name for one model of one run."""
        return f"{self.run_id}-{len(self.rounds):06d}"


def file_facts(data: bytes) -> FileFacts:
    """Returns what a lineage says of a file."""
    return FileFacts(hashlib.sha256(data).hexdigest(), len(data))


def dump_lineage(lineage: Lineage) -> bytes:
    """Returns the bytes that are signed."""
    return (json.dumps(jsonable(asdict(lineage)), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def sign(key: Ed25519PrivateKey, lineage: bytes) -> bytes:
    """Returns the detached signature over a lineage's very bytes, as hex digits and a line break."""
    return key.sign(_message(lineage)).hex().encode() + b"\n"


def _message(lineage: bytes) -> bytes:
    # A domain of its own: no signature that the same key gives over anything else is one of a model.
    return _DOMAIN + hashlib.sha256(lineage).digest()


def verified(files: Mapping[str, bytes], key: Ed25519PublicKey) -> Lineage:
    """Returns the lineage of a model's files, every byte of which the holder of the key vouches for.

    Formal guarantees:
        - Nothing of the lineage is read before its signature holds.
        - The files are exactly those of a model, and each is the one that the lineage names.

    Raises:
        ModelError: naming what does not hold.
    """
    if set(files) not in (MODEL_FILES, MODEL_FILES | {STATISTICS}):
        raise ModelError(f"files {sorted(files)!r:.300}: a signed model has exactly {', '.join(sorted(MODEL_FILES))}")
    _require_signature(files[LINEAGE], files[SIGNATURE], key)
    lineage = parse_lineage(files[LINEAGE])
    if lineage.signed_by != key.public_bytes_raw().hex():
        raise ModelError(
            f"{LINEAGE}: says that {lineage.signed_by[:16]} signed it, which is not whose signature it has"
        )
    if set(lineage.files) != set(files) - {LINEAGE, SIGNATURE}:
        raise ModelError(f"{LINEAGE}: names the files {sorted(lineage.files)!r:.300}")
    for name, facts in sorted(lineage.files.items()):
        found = file_facts(files[name])
        if found != facts:
            raise ModelError(
                f"{name}: {found.num_bytes} bytes of SHA-256 {found.sha256[:16]}, signed were {facts.num_bytes} bytes"
                f" of {facts.sha256[:16]}: altered after it was signed"
            )
    return lineage


def _require_signature(lineage: bytes, signature: bytes, key: Ed25519PublicKey) -> None:
    text = signature.removesuffix(b"\n")
    try:
        if len(text) != _SIGNATURE_DIGITS:
            raise ValueError
        key.verify(bytes.fromhex(text.decode("ascii")), _message(lineage))
    except (ValueError, InvalidSignature):
        pinned = key.public_bytes_raw().hex()[:16]
        raise ModelError(
            f"{SIGNATURE}: no signature over {LINEAGE} by the key {pinned}: altered, or signed by another key"
        ) from None


def parse_lineage(data: bytes) -> Lineage:
    """Returns a lineage; its signature is for `verified` to look at.

    Raises:
        ModelError: for another format, or one that does not hold what it must.
    """
    try:
        table: Any = json.loads(data)
        version = table.get("format")
    except (ValueError, AttributeError, RecursionError):
        raise ModelError(f"{LINEAGE}: not a lineage: no JSON object") from None
    if type(version) is not int or version != LINEAGE_VERSION:
        raise ModelError(
            f"{LINEAGE}: format {version!r:.20}, this release of hushclick reads format {LINEAGE_VERSION}: use the"
            " release that wrote the model, or train it again"
        )
    try:
        return TypeAdapter(Lineage).validate_json(data)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ModelError(f"{LINEAGE}: {where:.80}: missing, unknown or not what it must be") from None


def read_model_folder(folder: Path, most_bytes: int = MOST_MODEL_BYTES) -> dict[str, bytes]:
    """Returns the files of a signed model in a folder, and no others; they are read once, so what is checked is used.

    Statistics are read where they are there; whether they have to be is what the signed lineage says.

    Raises:
        ModelError: where one is missing or unreadable, or they are larger together than `most_bytes`.
    """
    found, left = {}, most_bytes
    names = MODEL_FILES | ({STATISTICS} if (folder / STATISTICS).exists() else set())
    for name in sorted(names):
        try:
            with (folder / name).open("rb") as file:
                found[name] = file.read(left + 1)
        except FileNotFoundError:
            raise ModelError(f"{folder}: no {name}: not the folder of a signed model") from None
        except OSError as error:
            raise ModelError(f"{folder / name}: cannot be read: {error.strerror}") from None
        left -= len(found[name])
        if left < 0:
            raise ModelError(f"{folder}: more than {most_bytes} bytes")
    return found
