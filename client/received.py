"""The finished models that a partner was given: signed by the key that it pinned, or not kept at all.

`state/models/RUN-ROUNDS/` holds the four files of a signed model. A folder is there as a whole or not at all, and is
never changed: a run that goes on gives another number of rounds.
"""

from collections.abc import Mapping
from pathlib import Path

from client.partner import PartnerConfig
from common.errors import ModelError, ProtocolError
from common.keyfiles import load_signing_public
from common.lineage import LINEAGE, Lineage, read_model_folder, verified
from common.model.saved import load_item_rates, load_model, require_base
from common.pretrained import Pretrained
from common.runfolder import write_folder


class Received:
    """One partner's finished models.

    Formal guarantees:
        - what is kept was signed by the pinned key, is of a run that this partner took part in, and is a model of the
          very layout and base that it trained;
        - what is refused leaves nothing on the disk.
    """

    def __init__(self, config: PartnerConfig, pretrained: Pretrained) -> None:
        self._config, self._pretrained = config, pretrained
        self.folder = Path(config.state) / "models"

    def keep(self, run_id: str, layout: str, files: Mapping[str, bytes]) -> Path:
        """Verifies a delivered model and writes it down; returns where it lies. The same again changes nothing.

        Raises:
            ProtocolError: naming what does not hold.
        """
        size, most = sum(map(len, files.values())), self._config.most_model_bytes
        if size > most:
            raise ProtocolError(f"a model of {size} bytes: this partner takes {most} at most")
        if not self._config.signing_key:
            raise ProtocolError("this partner has pinned no signing_key and takes no model")
        key = load_signing_public(Path(self._config.signing_key))
        try:
            lineage = verified(files, key)
            self._require_own(lineage, run_id, layout)
            _, config = load_model(files, lineage, self._pretrained)
            load_item_rates(files, config)
        except ModelError as error:
            raise ProtocolError(f"the model is refused: {error}") from None
        return self._write(lineage, files)

    def latest(self) -> Path:
        """Returns the folder of the model that was given last.

        Raises:
            ModelError: where none was.
        """
        found = [path for path in self.folder.glob("*-*") if (path / LINEAGE).is_file() and path.name[0] != "."]
        if not found:
            raise ModelError(
                f"{self.folder}: no model was delivered to this partner yet; name one with --model DIR, or wait for the"
                " end of a run"
            )
        return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def _require_own(self, lineage: Lineage, run_id: str, layout: str) -> None:
        if lineage.run_id != run_id:
            raise ModelError(f"the message is of run {run_id!r:.40}, the model of run {lineage.run_id}")
        require_base(lineage, self._pretrained)
        if lineage.layout != layout:
            raise ModelError(f"a layout {lineage.layout[:12]}, this partner trained {layout[:12]}")

    def _write(self, lineage: Lineage, files: Mapping[str, bytes]) -> Path:
        folder = self.folder / lineage.label
        if folder.exists():
            if read_model_folder(folder, self._config.most_model_bytes) != dict(files):
                raise ProtocolError(
                    f"another model of run {lineage.run_id} after {len(lineage.rounds)} rounds was delivered before"
                )
            return folder
        write_folder(folder, files)
        return folder
