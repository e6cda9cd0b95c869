"""What lies in a folder of pretrained weights: which files decide an encoding, and their hashes."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.conversion.centre import CENTRE
from common.errors import PretrainedError

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "vocab.json",
)
# What a tokenizer may read beside its vocabulary; `load_text_encoder` refuses one that reads more.
_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "bpe.codes",
    "emoji.json",
    "normalizer.json",
    "entity_vocab.json",
    "byte_maps.json",
    "word_shape.json",
    "word_pronunciation.json",
    "tekken.json",
)
_VERSIONS = ("tokenizer.*.json", "*.model")  # such as tokenizer.4.0.0.json, which fast_tokenizer_files may name
_PROMPTS = "config_sentence_transformers.json"  # the file in which sentence-transformers keeps prefixes
_LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_WIDTH_KEYS = ("hidden_size", "dim", "n_embd", "d_model")  # BERT and most others, DistilBERT, GPT-2, others


@dataclass(frozen=True)
class Pretrained:
    """One located encoder.

    Attributes:
        spec: as the user wrote it.
        folder: where its files are.
        weights: names of the safetensors files, sorted.
        files: names of all files that decide an encoding: config, weights, tokenizer, prefix, centre; sorted.
        weights_sha256: hash of the weights file; of several shards, the SHA-256 of their sorted hex hashes, one a
            line (`sha256sum *.safetensors | cut -c1-64 | sort | sha256sum` gives the same).
        fingerprint: SHA-256 over names and hashes of `files`: another tokenizer is another encoder.
        width: entries of one encoded text (E).
        prefix: what stands before each text, as some encoders were trained ("query: "); mostly empty.
        layers: transformer layers, one above the other; 0 where config.json does not say.
    """

    spec: str
    folder: Path
    weights: tuple[str, ...]
    files: tuple[str, ...]
    weights_sha256: str
    fingerprint: str
    width: int
    prefix: str = ""
    layers: int = 0


def read_folder(spec: str, folder: Path) -> Pretrained:
    """Returns what lies in a folder, all of it hashed.

    Raises:
        PretrainedError: for missing or pickled weights, or a missing tokenizer.
    """
    config = _read_json(folder / "config.json", spec)
    weights, prefix = _weights(folder, spec), _prefix(folder, spec)
    others = ["config.json", *_tokenizer_files(folder, spec), *([_PROMPTS] if prefix else [])]
    others += [CENTRE] if (folder / CENTRE).is_file() else []
    hashes = {file: sha256_of(folder / file, spec) for file in (*weights, *others)}
    weights_sha256 = hashes[weights[0]] if len(weights) == 1 else _lines_hash(sorted(hashes[file] for file in weights))
    fingerprint = _lines_hash(f"{file} {digest}" for file, digest in sorted(hashes.items()))
    files = tuple(sorted(hashes))
    layers = next((config[key] for key in _LAYER_KEYS if isinstance(config.get(key), int)), 0)
    width = _width(config, spec)
    return Pretrained(spec, folder, weights, files, weights_sha256, fingerprint, width, prefix, layers)


def _weights(folder: Path, spec: str) -> tuple[str, ...]:
    """Returns the names of the safetensors files, in sorted order."""
    if (folder / "adapter_config.json").exists():
        raise PretrainedError(f"{spec}: holds an adapter (adapter_config.json); merge it into the weights first")
    if (folder / _WEIGHTS).is_file():
        return (_WEIGHTS,)
    if (folder / _INDEX).is_file():
        table = _read_json(folder / _INDEX, spec).get("weight_map")
        shards = sorted(set(map(str, table.values()))) if isinstance(table, dict) else []
        if not shards or any(Path(file).name != file or not file.endswith(".safetensors") for file in shards):
            raise PretrainedError(f"{spec}: {_INDEX} must name safetensors files of its own folder")
        return tuple(shards)
    if any(folder.glob("*.bin")):
        raise PretrainedError(f"{spec}: only pickled weights (.bin), which can run code; convert them to safetensors")
    raise PretrainedError(f"{spec}: no weights; {_WEIGHTS} or {_INDEX} must be in the folder")


def _tokenizer_files(folder: Path, spec: str) -> tuple[str, ...]:
    if not any((folder / file).is_file() for file in _VOCABULARIES):
        # transformers would go on with an empty tokenizer, and every text would look the same
        raise PretrainedError(f"{spec}: no tokenizer files; one of {', '.join(_VOCABULARIES)} must be in the folder")
    names = {*_VOCABULARIES, *_SETTINGS, *(path.name for pattern in _VERSIONS for path in folder.glob(pattern))}
    if (folder / "sentencepiece.bpe.model").is_file():
        names.add("dict.txt")  # BARTpho reads both; without the first it is of the program that trained the encoder
    return tuple(sorted(file for file in names if (folder / file).is_file()))


def _prefix(folder: Path, spec: str) -> str:
    """Returns what stands before each text: the prompt that sentence-transformers would use where none is named."""
    if not (folder / _PROMPTS).is_file():
        return ""
    table = _read_json(folder / _PROMPTS, spec)
    name, prompts = table.get("default_prompt_name"), table.get("prompts")
    if not name:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise PretrainedError(f"{spec}: {_PROMPTS} names the default prompt {name!r:.40} and does not hold it")
    return str(prompts[name])


def read_centre(pretrained: Pretrained) -> list[float] | None:
    """Returns what is taken off each state, E numbers; None where the folder holds no centre.

    Raises:
        PretrainedError: when the file holds something else.
    """
    if CENTRE not in pretrained.files:
        return None
    values = _read_json(pretrained.folder / CENTRE, pretrained.spec).get("centre")
    numbers = isinstance(values, list) and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    if not isinstance(values, list) or not numbers or len(values) != pretrained.width:
        raise PretrainedError(f'{pretrained.spec}: {CENTRE} must hold {pretrained.width} numbers as "centre"')
    return [float(value) for value in values]


def _read_json(path: Path, spec: str) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PretrainedError(f"{spec}: no {path.name} in the folder") from None
    except (OSError, ValueError):
        raise PretrainedError(f"{spec}: {path.name} cannot be read as JSON") from None
    return table if isinstance(table, dict) else {}


def _width(config: dict[str, Any], spec: str) -> int:
    for key in _WIDTH_KEYS:
        if isinstance(config.get(key), int) and config[key] > 0:
            return int(config[key])
    raise PretrainedError(f"{spec}: config.json gives no width; expected one of {', '.join(_WIDTH_KEYS)}")


def sha256_of(path: Path, spec: str) -> str:
    """Returns the hash (hex) of a file, or raises `PretrainedError`."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PretrainedError(f"{spec}: {path.name} cannot be read: {error.strerror}") from None


def _lines_hash(lines: Iterable[str]) -> str:
    """Returns the SHA-256 of lines of text."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
