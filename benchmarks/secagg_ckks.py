"""CKKS in TenSEAL, with the parameters that NVFlare provisions; every client holds the same secret key.

A client encrypts and serialises its update; the server deserialises and adds; a client decrypts the sum. Making and
sending keys, weighting and NVFlare's own messages are left out, and so is the server's product with 1 / clients.

Source: NVFlare, `HEBuilder` (degree 8192, coefficient moduli of 60, 40 and 40 bits, scale 2^40, symmetric encryption),
`HEModelEncryptor` and `HEInTimeAccumulateWeightedAggregator`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tenseal as ts  # type: ignore[import-untyped,import-not-found,unused-ignore]

from benchmarks.secagg_cell import Cell, Meter, check_close, update

_DEGREE = 8192
_MODULI_BITS = (60, 40, 40)
_SCALE = 2.0**40
_DISTINCT = 2  # ciphertexts, sent in turn by all clients: adding costs the same whatever they hold
_TOLERANCE = 1e-6  # per added ciphertext


def _context() -> tuple[Any, Any]:
    """Returns the clients' context, with the secret key, and the server's, without."""
    context = ts.context(
        ts.SCHEME_TYPE.CKKS,
        poly_modulus_degree=_DEGREE,
        coeff_mod_bit_sizes=list(_MODULI_BITS),
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    context.generate_relin_keys()
    context.global_scale = _SCALE
    public = context.serialize(save_public_key=False, save_secret_key=False, save_galois_keys=False)
    return context, ts.context_from(public, n_threads=1)


def client(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts encrypting, serialising, and decrypting a sum of two."""
    private, _ = _context()
    update_D = update(cell.length, seed=1)
    meter.start()
    with meter.counting():
        upload = ts.ckks_vector(private, update_D).serialize()
    num_bytes = len(upload)
    upload = _doubled(private, upload)
    with meter.counting():
        sum_D = np.array(ts.ckks_vector_from(private, upload).decrypt(), dtype=np.float32)
    check_close(sum_D, 2 * update_D, 2 * _TOLERANCE, "CKKS: a client's sum")
    return {"bytes_up": num_bytes}


def _doubled(private: Any, upload: bytes) -> bytes:
    vector = ts.ckks_vector_from(private, upload)
    return bytes((vector + vector).serialize())


def server(cell: Cell, meter: Meter) -> dict[str, float]:
    """Counts deserialising and adding each arriving vector, and serialising the sum."""
    private, public = _context()
    updates = [update(cell.length, seed) for seed in range(_DISTINCT)]
    uploads = [ts.ckks_vector(private, update_D).serialize() for update_D in updates]
    present = cell.partners - cell.dropped
    meter.start()
    with meter.counting():
        total = ts.ckks_vector_from(public, uploads[0])
        for number in range(1, present):
            total += ts.ckks_vector_from(public, uploads[number % _DISTINCT])
        answer = total.serialize()
    expected_D = sum(updates[number % _DISTINCT].astype(np.float64) for number in range(present))
    check_close(ts.ckks_vector_from(private, answer).decrypt(), expected_D, present * _TOLERANCE, "CKKS: the sum")
    return {}


KINDS: dict[str, Callable[[Cell, Meter], dict[str, float]]] = {"client": client, "server": server}
