"""Label-only privacy: click labels are flipped where rows are read, and nobody behind it ever sees a true one.

Randomised response: a label is kept with probability 1 - f = e^epsilon / (1 + e^epsilon) and flipped with f. Everything
that comes after, features of a user's own past too, is made of the flipped labels alone, so it is post-processing and
needs no clip, no noise and no count of steps.

A label is flipped once for ever: by a function of a secret key and of the row's user, item and time, and the answer is
kept (`state/labels/ID.drawn`). A second, independent draw of one label would cost a second epsilon. And a label that is
changed in the log after it was read, as when a click arrives late, keeps its first answer: the same flip of another
label would show that it was changed.

The loss stays unbiased: the logistic loss is linear in the label, so its unbiased estimate (Natarajan et al. 2013,
lemma 1) is the same loss at (label - f) / (1 - 2 f), which lies outside [0, 1].

Legend: N rows, K kept answers.
Source: Warner 1965, "Randomized Response"; Ghazi, Golowich, Kumar, Manurangsi, Zhang 2021, "Deep Learning with Label
Differential Privacy", section 3; Natarajan, Dhillon, Ravikumar, Tewari 2013, "Learning with Noisy Labels", section 4;
Erlingsson, Pihur, Korolova 2014, "RAPPOR", section 2 (a permanent answer).
"""

import hashlib
import hmac
import os
import struct
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.partner import PartnerConfig
from client.sent import exclusive
from common.card import DataCard
from common.errors import ConfigError, LedgerError
from common.keyfiles import write_private
from common.privacy.ledger import Ledger
from common.runfolder import write_atomically

DRAWN_VERSION = 1

_KEY_BYTES = 32
_HEAD = struct.Struct("<8sII32s")  # magic, version, generation, SHA-256 of the words
_MAGIC = b"HCLABELS"
_ONE = np.uint64(1)
_LOST = "labels would be drawn anew, which costs their epsilon again: restore the folder from a copy"


class NoisyLabels:
    """The flipped click labels of one partner.

    Formal guarantees (mode "label", the key unknown, HMAC-SHA-256 a pseudo-random function):
        - of one row's click, what `flipped` returns over all calls, restarts and changes of the log is one answer of
          randomised response, which is (epsilon, 0)-differentially private under replacement of that click;
        - answers of different rows are independent, and a row's answer depends on no other row's label;
        - of a user, at most `privacy.max_impressions_per_user` rows a generation have one.

    Args:
        config: the partner's own; its state folder keeps the key and the answers.
        card: the data card that the rows are read by.

    Raises:
        LedgerError: from `flipped`, where key or answers are damaged.
    """

    def __init__(self, config: PartnerConfig, card: DataCard) -> None:
        self._config, self._folder, self._naming = config, Path(config.state) / "labels", _naming(card)
        # Rounded up: a label is never flipped with less than is accounted for.
        self._threshold = np.uint64(min(2**63, int(np.ceil(config.privacy.flip_probability * 2.0**64))))

    def identity(self) -> str:
        """Returns how the ledger tells these labels from others: a hash of the key, and the generation."""
        with exclusive(self._folder):
            key = self._key()
            return f"{_name(key)}:{max(1, self._read(key)[0])}"

    def flipped(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows with their flipped clicks, 0 or 1; of each user the latest that may have an answer.

        Args:
            rows: canonical rows of all users, in order of user and time.
        """
        if "purchased" in rows:
            raise ConfigError(
                f'{self._config.name}: the data card maps a purchase, and privacy.mode = "label" protects click labels'
                " alone; take `purchased` out of the card's [columns]"
            )
        if "history" in rows:
            raise ConfigError(
                f'{self._config.name}: the data card maps a history, and privacy.mode = "label" protects click labels'
                " alone: that a row is a click of the past would say its label; take `history` out of the card's"
                " [columns], and its rows out of the log"
            )
        rows = rows.groupby("user", sort=False).tail(self._config.privacy.max_impressions_per_user)
        rows = rows.reset_index(drop=True)
        if rows.empty:  # everybody was erased
            return rows
        with exclusive(self._folder):
            clicked_N = self._answers(self._key(), rows)
        return rows.assign(clicked=clicked_N)

    def _answers(self, key: bytes, rows: pd.DataFrame) -> NDArray[np.int8]:
        """Returns what was answered for each row before, and for rows that are new an answer that is then kept."""
        id_N, uniform_N = _pseudo_random(key, rows)
        fresh_N = rows["clicked"].to_numpy(np.uint64) ^ (uniform_N < self._threshold)
        generation, word_K = self._read(key)
        self._require_kept(key, generation)
        place_N = np.searchsorted(word_K, id_N)
        found_N = np.append(word_K, ~np.uint64(0))[place_N]
        known_N = (found_N >> _ONE) == (id_N >> _ONE)
        answer_N = np.where(known_N, found_N & _ONE, fresh_N)
        if not known_N.all():
            self._write(key, generation + 1, np.sort(np.append(word_K, (id_N | answer_N)[~known_N])))
        return answer_N.astype(np.int8)

    def _require_kept(self, key: bytes, generation: int) -> None:
        """Refuses answers that are older than what the ledger says was answered: deleted, or from a backup.

        A label that changed in the log in between would be answered anew with the same flip, which shows the change.
        """
        for event in Ledger(Path(self._config.ledger), self._config.name).events():
            name, _, number = event.labels.partition(":")
            if name == _name(key) and int(number) > generation:
                raise LedgerError(
                    f"labels/{self._drawn(key).name}: the ledger knows answers that are not in it; {_LOST}"
                )

    def _key(self) -> bytes:
        """Returns the key of this partner's flips at this flip probability; made at the first use."""
        master = self._seeded() if self._config.privacy.fixed_seed is not None else self._kept()
        # With one key, flips at two probabilities would be nested, and both answers together could give a label away.
        # And a row's name is what the data card makes of the log: under another card the same click may have another
        # one, and so another draw, which is another release.
        named = b"hushclick labels v1" + struct.pack("<Q", int(self._threshold)) + self._naming
        return hmac.digest(master, named, "sha256")

    def _seeded(self) -> bytes:
        labels = ("labels", self._config.privacy.fixed_seed, self._config.name)
        return hashlib.sha256(repr(labels).encode()).digest()

    def _kept(self) -> bytes:
        path = self._folder / "key"
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            if any(self._folder.glob("*.drawn")):
                raise LedgerError(f"labels/key: is gone, and answers are there; {_LOST}") from None
            key, beside = os.urandom(_KEY_BYTES), path.with_name("key.new")
            beside.unlink(missing_ok=True)  # left by a kill, and never used
            write_private(beside, key)
            beside.replace(path)
        except OSError as error:
            raise LedgerError(f"labels/key: cannot be read ({error.strerror}); {_LOST}") from None
        if len(key) != _KEY_BYTES:
            raise LedgerError(f"labels/key: damaged; {_LOST}")
        return key

    def _read(self, key: bytes) -> tuple[int, NDArray[np.uint64]]:
        """Returns how often new rows came, and the kept answers: a row's id, and in its lowest bit the label."""
        path = self._drawn(key)
        try:
            data = path.read_bytes()
            magic, version, generation, digest = _HEAD.unpack_from(data)
        except FileNotFoundError:
            return 0, np.empty(0, np.uint64)
        except (OSError, struct.error):
            raise LedgerError(f"labels/{path.name}: cannot be read; {_LOST}") from None
        if magic == _MAGIC and version != DRAWN_VERSION:
            raise LedgerError(
                f"labels/{path.name}: version {version}, and this release reads {DRAWN_VERSION}; go on with the release"
                " that wrote it, or a later one"
            )
        body = data[_HEAD.size :]
        if magic != _MAGIC or hashlib.sha256(body).digest() != digest or len(body) % 8:
            raise LedgerError(f"labels/{path.name}: damaged; {_LOST}")
        return generation, np.frombuffer(body, "<u8").astype(np.uint64)

    def _write(self, key: bytes, generation: int, word_K: NDArray[np.uint64]) -> None:
        body = word_K.astype("<u8").tobytes()
        head = _HEAD.pack(_MAGIC, DRAWN_VERSION, generation, hashlib.sha256(body).digest())
        write_atomically(self._drawn(key), head + body, mode=0o600)

    def _drawn(self, key: bytes) -> Path:
        # Those of a seed need no key file, and say nothing of one.
        seeded = self._config.privacy.fixed_seed is not None
        return self._folder / f"{_name(key)}.{'seeded' if seeded else 'drawn'}"


def _naming(card: DataCard) -> bytes:
    """Returns the hash of what a data card says of user, item and time."""
    item = card.columns.item or card.columns.text  # without an item column, an item is the hash of its text
    return hashlib.sha256(repr((card.columns.user, item, card.columns.time, card.time.unit)).encode()).digest()


def unbiased(clicked_N: NDArray[np.int8], flip_probability: float) -> NDArray[np.float32]:
    """Returns estimates of the true labels whose mean over the flips is the label: (label - f) / (1 - 2 f)."""
    estimate_N: NDArray[np.float32] = ((clicked_N - flip_probability) / (1 - 2 * flip_probability)).astype(np.float32)
    return estimate_N


def _name(key: bytes) -> str:
    return hashlib.sha256(b"hushclick label key\0" + key).hexdigest()[:16]


def _pseudo_random(key: bytes, rows: pd.DataFrame) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Returns of each row an id, its lowest bit 0, and a number that is uniform to who has not the key."""
    digests = [
        hmac.digest(key, f"{len(user)}:{user}{len(item)}:{item}{time}".encode(), "sha256")[:16]
        for user, item, time in zip(rows["user"], rows["item"], rows["time"], strict=True)
    ]
    word_N2 = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2).astype(np.uint64)
    return word_N2[:, 0] & ~_ONE, word_N2[:, 1]
