"""Quantised tensors are written as float16 safetensors: a block of rows at a time, the same bytes everywhere.

A quantised weight is q d (+ m) with a half-precision d (and m) and q of a few bits. float16 keeps 11 bits of it, which
is far finer than the steps of q; bfloat16 would keep 8, and float32 would double the file. What the source holds in
full precision (biases, norms) stays float32. The writer is our own, since the layout of the library's output may change
with its version, and partners compare the file's hash.

Shape letters: R rows, B bytes of a quantised row, C columns.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import PretrainedError

_ROWS = 8192  # dequantised at once: tens of megabytes
_ALIGNMENT = 8


@dataclass(frozen=True)
class Weight:
    """One tensor as the source has it.

    Attributes:
        name: as the model class of transformers calls it.
        stored: uint8 [R, B] of quantised rows, or float32 of any shape.
        kind: name of the GGML type of quantised rows, such as Q4_0; empty for float32.
    """

    name: str
    stored: npt.NDArray[Any]
    kind: str = ""


def write_weights(path: Path, weights: Sequence[Weight]) -> None:
    """Writes a safetensors file: float32 tensors first, then float16, each by name; a function of `weights` alone.

    Raises:
        PretrainedError: when a value does not fit float16, or is not a number.
    """
    ordered = sorted(weights, key=lambda weight: (bool(weight.kind), weight.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for weight in ordered:
        shape, size = _shape(weight), 2 if weight.kind else 4
        end = position + size * int(np.prod(shape))
        header[weight.name] = {
            "dtype": "F16" if weight.kind else "F32",
            "shape": shape,
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for weight in ordered:
            for part in _parts(weight):
                file.write(part)


def _shape(weight: Weight) -> list[int]:
    if not weight.kind:
        return list(weight.stored.shape)
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_from_byte_shape

    return list(quant_shape_from_byte_shape(weight.stored.shape, GGMLQuantizationType[weight.kind]))


def _parts(weight: Weight) -> Iterator[bytes]:
    for start in range(0, len(weight.stored), _ROWS):
        rows = weight.stored[start : start + _ROWS]
        with np.errstate(over="ignore"):  # refused below, by name
            values = dequantised(rows, weight.kind).astype("<f2") if weight.kind else rows.astype("<f4")
        if not np.isfinite(values).all():
            raise PretrainedError(f"{weight.name}: holds values that are not finite in {values.dtype}")
        yield values.tobytes()


def dequantised(stored_RB: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.float32]:
    """Returns quantised rows as float32 [R, C].

    q d is exact in float32 (11 bits times at most 8), and adding m rounds once: the result does not depend on whether a
    machine fuses the two.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values_RC: npt.NDArray[np.float32] = dequantize(stored_RB, GGMLQuantizationType[kind])
    return values_RC


def shortest(value: float) -> float:
    """Returns the shortest decimal that is this float32: 1e-12, where a double would show 9.99999996e-13."""
    return float(str(np.float32(value)))
