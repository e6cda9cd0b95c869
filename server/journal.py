"""The last stage of a round, on disk: a restarted server finishes it, and asks nobody twice.

Two files beside the checkpoint: the masked sums with all that is public about them, written before anyone is asked for
a share, and one line per answer, flushed before it counts.

Legend: D parameters.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import CheckpointError
from common.runfolder import write_atomically
from common.secagg.coding import Coding
from common.secagg.unmasking import Sealed, Unmasking
from common.secagg.wire import Revealed

JOURNAL_VERSION = 1


class Journal:
    """The files `unmask.safetensors` and `unmask.jsonl` of one run folder."""

    def __init__(self, folder: Path) -> None:
        self._sums, self._lines = folder / "unmask.safetensors", folder / "unmask.jsonl"

    def begin(self, round_number: int, unmaskings: Sequence[Unmasking], *, after: bool = False) -> None:
        """Writes down the masked sums of a round, before anyone is asked for a share.

        Args:
            round_number: of the round.
            unmaskings: of all groups that were or will be asked.
            after: whether some were asked: their answers stay.
        """
        if not after:
            self._lines.unlink(missing_ok=True)
        arrays: dict[str, NDArray[Any]] = {}
        for place, unmasking in enumerate(unmaskings):
            arrays |= {f"sum.{place}": unmasking.sum_D, f"slots.{place}": unmasking.slots}
        facts = {
            "version": JOURNAL_VERSION,
            "round": round_number,
            "groups": [_facts(unmasking) for unmasking in unmaskings],
        }
        write_atomically(self._sums, save(arrays, {"facts": json.dumps(facts)}))

    def add(self, number: int, revealed: Revealed) -> None:
        """Writes down one participant's shares."""
        line = {"number": number, "owners": revealed.owners, "shares": revealed.shares.hex()}
        with self._lines.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def load(self, round_number: int) -> list[Unmasking] | None:
        """Returns what was written down of this round, the shares taken in; None where nothing was.

        Raises:
            CheckpointError: for a journal of another version.
        """
        try:
            with safe_open(str(self._sums), framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["facts"])
                self._require_version(facts.get("version", JOURNAL_VERSION))  # earlier ones said none
                if facts["round"] != round_number:
                    return None
                found = [
                    _unmasking(table, file.get_tensor(f"sum.{place}"), file.get_tensor(f"slots.{place}"))
                    for place, table in enumerate(facts["groups"])
                ]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None  # nothing was asked yet, or nothing that could be finished
        for number, revealed in self._answers():
            for unmasking in found:
                if number in unmasking.sealed:
                    unmasking.add(number, revealed)
        return found

    def end(self) -> None:
        """Deletes what was written down: the round is in the checkpoint."""
        for path in (self._sums, self._lines):
            path.unlink(missing_ok=True)

    def _require_version(self, version: Any) -> None:
        if version != JOURNAL_VERSION:
            raise CheckpointError(
                f"{self._sums}: version {version!r:.20}, and this release reads {JOURNAL_VERSION}; finish the round"
                " with the release that wrote it, or remove the file and lose that round"
            )

    def _answers(self) -> list[tuple[int, Revealed]]:
        """Returns the answers written down whole; the last line may be half a line."""
        try:
            lines = self._lines.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        tables = [json.loads(line) for line in lines]
        return [(table["number"], Revealed(tuple(table["owners"]), bytes.fromhex(table["shares"]))) for table in tables]


def _facts(unmasking: Unmasking) -> dict[str, Any]:
    return {
        "session": unmasking.session.hex(),
        "context": unmasking.context.hex(),
        "threshold": unmasking.threshold,
        "bits": unmasking.coding.bits,
        "clip": unmasking.coding.clip,
        "third": unmasking.third,
        "units": list(unmasking.expected_units.items()),
        "mask_keys": [[number, key.hex()] for number, key in unmasking.mask_keys.items()],
        "sealed": [
            [
                number,
                sorted(sealed.boxes),
                [[holder, text.hex()] for holder, text in sealed.commitments.items()],
                sealed.seed_commitment.hex(),
            ]
            for number, sealed in unmasking.sealed.items()
        ],
    }


def _unmasking(table: dict[str, Any], sum_D: Any, slots: Any) -> Unmasking:
    sealed = {
        # The boxes went where they belong; who got one is all that is still needed.
        number: Sealed(
            dict.fromkeys(recipients, b""),
            {holder: bytes.fromhex(text) for holder, text in commitments},
            bytes.fromhex(seed),
        )
        for number, recipients, commitments, seed in table["sealed"]
    }
    return Unmasking(
        session=bytes.fromhex(table["session"]),
        context=bytes.fromhex(table["context"]),
        threshold=table["threshold"],
        coding=Coding(table["bits"], table["clip"]),
        mask_keys={number: bytes.fromhex(key) for number, key in table["mask_keys"]},
        sealed=sealed,
        third=tuple(table["third"]),
        expected_units=dict(table["units"]),
        sum_D=np.array(sum_D),
        slots=np.array(slots),
    )
