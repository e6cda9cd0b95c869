"""Every error that Hushclick raises on purpose, as one tree.

```
HushclickError                  exit code 1; its text is for the user and never holds data
├── UsageError                  2  a command line that cannot be understood
│   └── ConfigError             2  a TOML key, type or value that is wrong: names key, value and bound
├── DataError                   1  a click log that cannot be used: names the column or the count
├── PretrainedError             1  weights that are missing, of another hash, or not what they say
├── ModelError                  1  a trained model that is unsigned, altered, or of another version or base
├── ProtocolError               1  a message that this role must not accept
│   └── TooFewPartners          1  a round with fewer contributions than its minimum
├── CheckpointError             1  a run folder that cannot be resumed
├── Stopped                     1  Ctrl-C; the text says whether and how the run can go on
├── LedgerError                 1  a ledger that is damaged or in use by another writer
└── BudgetExhausted             3  a reservation that the partner's own budget refuses
```

Texts name the value, the bound and the mend, and never a user's data: they may cross a network.
"""

import errno
from typing import ClassVar


class HushclickError(Exception):
    """The root: whatever a user can cause ends as one of these, without a traceback."""

    exit_code: ClassVar[int] = 1


class UsageError(HushclickError):
    """A command line that cannot be understood."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration that is refused; the text has one line per offending key."""


class DataError(HushclickError):
    """A click log that cannot be used at all (single bad rows are dropped and counted instead)."""


class PretrainedError(HushclickError):
    """Pretrained weights that are missing, altered, or would be silently random."""


class ModelError(HushclickError):
    """A trained model that must not be used: unsigned, altered, or of another version or base."""


class ProtocolError(HushclickError):
    """A message whose shape, fingerprint, round or sender this role must not accept."""


class TooFewPartners(ProtocolError):
    """A round that ended with fewer contributions than the minimum; nothing was aggregated."""


class CheckpointError(HushclickError):
    """A run folder that cannot be resumed: missing, half-written or of another configuration."""


class Stopped(HushclickError):
    """A run that its user stopped with Ctrl-C."""


class LedgerError(HushclickError):
    """A ledger that is damaged, of another version, or locked by another writer."""


class BudgetExhausted(HushclickError):
    """A reservation that would take the partner over the epsilon which it set itself."""

    exit_code = 3


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def disk_says(error: OSError) -> str:
    """Returns what the system said of a file, with the mend where the disk is full."""
    said = error.strerror or type(error).__name__
    return f"{said}: the disk is full, make space there" if error.errno in _FULL else said
