"""What two partners compare: their users' identifiers, spelt alike, and the key of a session."""

from pathlib import Path

from client.erasure import Erased
from client.overlap.points import normalised
from client.partner import PartnerConfig, PartnerOverlap
from common.card import load_card
from common.clicks import read_clicks
from common.errors import ConfigError, DataError
from common.secagg.keys import KEY_BYTES, derive


def read_identifiers(config: PartnerConfig) -> list[str]:
    """Returns the distinct identifiers of this partner's users, normalised, in ascending order.

    They are the lines of `overlap.identifiers` where it is set, else the users of the click log; without those that
    asked to be erased.

    Raises:
        DataError: where they cannot be read.
    """
    fold_case = config.overlap.fold_case
    others = Erased(Path(config.state)).others(_texts(config), fold_case=fold_case)
    found = {normalised(text, fold_case=fold_case) for text in others}
    return sorted(found - {""})


def session_key(policy: PartnerOverlap, session: str, asker: str, answerer: str) -> bytes:
    """Returns the key under which identifiers become points: of `overlap.secret`, and for one session of one pair.

    Without a secret anybody can derive it, and the masks alone hide the identifiers.
    """
    return derive(load_secret(policy), bytes.fromhex(session), "overlap", asker, answerer)


def load_secret(policy: PartnerOverlap) -> bytes:
    """Returns the secret that this partner shares with those in `overlap.partners`; no bytes where it is unset.

    Raises:
        ConfigError: for a file that cannot be read, that others can read, or that does not hold 64 hex digits.
    """
    if not policy.secret:
        return b""
    path = Path(policy.secret)
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii").strip()
        secret = bytes.fromhex(text)
    except OSError as error:
        raise ConfigError(f"overlap.secret: {path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"overlap.secret: {path}: must hold {2 * KEY_BYTES} hex digits and nothing else") from None
    if len(text) != 2 * KEY_BYTES:
        raise ConfigError(f"overlap.secret: {path}: must hold {2 * KEY_BYTES} hex digits and nothing else")
    if mode & 0o077:
        raise ConfigError(f"overlap.secret: {path}: mode {mode & 0o777:04o}: others can read it; chmod 600 it")
    return secret


def _texts(config: PartnerConfig) -> list[str]:
    if not config.overlap.identifiers:
        rows = read_clicks(Path(config.clicks), load_card(Path(config.card)), allow_one_class=True).rows
        return [str(user) for user in rows["user"].unique()]
    path = Path(config.overlap.identifiers)
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"overlap.identifiers: {path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"overlap.identifiers: {path}: cannot be read: {error.strerror}") from None
