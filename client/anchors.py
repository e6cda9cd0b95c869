"""Where the ledger last stood, kept outside the ledger: a ledger that was cut or restored by itself is refused.

The head in the clear lies in the partner's state folder. What others keep for the partner is the blinded anchor
(`common.privacy.chain.Chain.anchor`), in `anchors.jsonl` of the server's run folder (`common.anchors`).
"""

import json
import os
import re
from pathlib import Path

from common.errors import LedgerError, disk_says
from common.privacy.chain import LedgerHead

_VERSION = 1
_HASH = re.compile(r"[0-9a-f]{64}")
_MEND = "compare the ledger with another anchor (budget show LEDGER --anchor ...), and remove the file if it is whole"


class HeadFile:
    """The head of a ledger as its partner last reserved, `ledger-head.json` in the state folder; or of another chain.

    It is written behind the ledger, under the ledger's lock, and read before it. So a kill at any moment leaves a head
    that the ledger contains, and never a false alarm.

    Args:
        folder: the partner's state folder.
        name: of the file.
    """

    def __init__(self, folder: Path, name: str = "ledger-head.json") -> None:
        self._path = folder / name

    def read(self) -> LedgerHead | None:
        """Returns the head that was kept last, None before the first.

        Raises:
            LedgerError: where the file is damaged or cannot be read.
        """
        try:
            found = json.loads(self._path.read_bytes())
            version, num_records, digest = found["version"], found["num_records"], found["sha256"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise LedgerError(f"{self._path.name}: damaged; {_MEND}") from None
        if version != _VERSION:
            raise LedgerError(f"{self._path.name}: version {version!r:.80}, and this release reads {_VERSION}; {_MEND}")
        if type(num_records) is not int or type(digest) is not str or not _HASH.fullmatch(digest):
            raise LedgerError(f"{self._path.name}: damaged; {_MEND}")
        return LedgerHead(num_records, digest)

    def keep(self, head: LedgerHead) -> None:
        """Puts a head in the place of the last one, flushed before it is there under its name.

        The folder is not flushed: what a power cut may bring back is an earlier head, which the ledger contains too.

        Raises:
            LedgerError: where the disk refuses; nothing may be released then.
        """
        facts = {"version": _VERSION, "num_records": head.num_records, "sha256": head.sha256}
        beside = self._path.with_name(f"{self._path.name}.part")  # one writer at a time, by the ledger's lock
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(json.dumps(facts).encode())
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except OSError as error:
            raise LedgerError(
                f"{self._path.name}: cannot be written ({disk_says(error)}), so nothing may be released"
            ) from None
