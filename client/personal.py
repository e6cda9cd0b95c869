"""A partner's own small correction of a delivered model, fitted on its own clicks, and kept with it.

It is fitted after the model was released, by the partner, for the partner: it is no part of training, no message has a
place for it, and no budget is charged. It holds its users' clicks without noise, so neither it nor what it scores is to
leave the partner. Inside private training it would be a leak: the gradient of one user would then depend, through the
personal part, on clicks of others that no noise covers.

Legend: N rows, H hidden width.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from scipy.optimize import minimize
from scipy.special import expit

from client.erasure import Erased
from client.partner import PartnerConfig
from client.retention import PERSONAL
from common.calibration import Scale, fit_scale, logit
from common.config import STRICT
from common.features import UserRows, make_batch
from common.metrics import log_loss
from common.model.click_model import ClickModel, forward, with_text_states
from common.runfolder import write_atomically
from common.scoring import batches, chunks
from common.split import stable_hash

Floats = NDArray[np.float64]
Kind = Literal["scale", "head"]

PERSONAL_VERSION = 1
FITTED_SHARE = 0.8  # of the users; the others say whether it is any good


@checked(frozen=True, config=STRICT)
class Personal:
    """A correction, as it is kept.

    Attributes:
        version: of the format.
        kind: "scale" (a line over the logit of a click) or "head" (also other weights of the last layer).
        made_of: hash of the model, the log, its card, the list of the erased and the settings: others are fitted anew.
        used: whether it was better on the users that it was not fitted on; else predictions are left as they are.
        scale: the line.
        weights: added to the last layer's weights for a click, H of them; empty for a "scale".
        fitted_users: on how many.
        judged_users: on how many others.
        before: log loss of clicks on these others, as the model says.
        after: the same after the correction.
    """

    version: Annotated[int, Field(ge=PERSONAL_VERSION, le=PERSONAL_VERSION)]
    kind: Kind
    made_of: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    used: bool
    scale: Scale
    weights: tuple[float, ...]
    fitted_users: int
    judged_users: int
    before: float | None
    after: float | None

    def __call__(self, seen: "Seen") -> Floats:
        """Returns the corrected probability of a click, in a log like the training logs."""
        click_N = seen.click_N if not self.weights else expit(logit(seen.click_N) + seen.hidden_NH @ self.weights)
        return self.scale(click_N) if self.used else seen.click_N

    def facts(self) -> dict[str, Any]:
        """Returns what is said of it."""
        shown = ("kind", "used", "fitted_users", "judged_users", "before", "after")
        return {name: value for name, value in asdict(self).items() if name in shown}


@dataclass(frozen=True)
class Seen:
    """What a model makes of rows: the probability of a click, and the inputs of its last layer."""

    click_N: Floats
    hidden_NH: Floats


def look(model: ClickModel, features: UserRows) -> Seen:
    """Returns what the model makes of every row, in order."""
    features = with_text_states(model, features)
    row_N = np.arange(len(features.text_N))
    user_N = np.searchsorted(features.offset_U1, row_N, side="right") - 1
    inputs: list[torch.Tensor] = []
    handle = model.head.register_forward_hook(lambda _layer, given, _result: inputs.append(given[0]))
    clicks, hidden = [], []
    model.eval()
    try:
        with torch.no_grad():
            for group in batches(chunks(row_N, user_N)):
                batch = make_batch(features, group)
                click_BM = torch.sigmoid(forward(model, batch)[..., 0].double()).numpy()
                clicks.append(click_BM[batch.weight_BM > 0])
                hidden.append(inputs.pop().double().numpy()[batch.weight_BM > 0])
    finally:
        handle.remove()
    return Seen(np.concatenate(clicks), np.concatenate(hidden))


def fit(kind: Kind, penalty: float, seen: Seen, label_N: NDArray[Any], user_N: NDArray[Any], made_of: str) -> Personal:
    """Returns a correction fitted on four users in five, and whether it is better on the fifth.

    Args:
        kind: of the correction.
        penalty: on the squared length of the added weights, in rows: so many rows pull against it.
        seen: of the partner's own rows.
        label_N: their clicks.
        user_N: whose they are, by id.
        made_of: what tells this fit from another.
    """
    fitted_N = stable_hash(user_N, "personal") < FITTED_SHARE * 2.0**64
    weights: tuple[float, ...] = ()
    scale: Scale | None = None
    if kind == "head" and 0 < label_N[fitted_N].sum() < fitted_N.sum():
        change_H1 = _fit_head(seen, label_N.astype(np.float64), fitted_N, penalty)
        weights, scale = tuple(change_H1[:-1].tolist()), Scale(1.0, float(change_H1[-1]))
    elif kind == "scale":
        scale = fit_scale(label_N[fitted_N], seen.click_N[fitted_N], "platt")
    users = len(np.unique(user_N[fitted_N])), len(np.unique(user_N[~fitted_N]))
    line = scale or Scale(1.0)  # of clicks of one class nothing is learnt
    found = Personal(PERSONAL_VERSION, kind, made_of, True, line, weights, *users, None, None)
    if scale is None or fitted_N.all():
        return replace(found, used=False)
    before, after = (float(log_loss(label_N[~fitted_N], p_N[~fitted_N])) for p_N in (seen.click_N, found(seen)))
    return replace(found, used=after < before, before=before, after=after)


def _fit_head(seen: Seen, label_N: Floats, fitted_N: NDArray[np.bool_], penalty: float) -> Floats:
    """Returns the change of weights and bias of least penalised log loss, from the model's own logit on."""
    start_N, hidden_NH, label_N = logit(seen.click_N[fitted_N]), seen.hidden_NH[fitted_N], label_N[fitted_N]

    def loss(change_H1: Floats) -> tuple[float, Floats]:
        z_N = start_N + hidden_NH @ change_H1[:-1] + change_H1[-1]
        error_N = expit(z_N) - label_N
        value = np.sum(np.logaddexp(0.0, z_N) - label_N * z_N) + penalty / 2 * (change_H1[:-1] @ change_H1[:-1])
        gradient_H1 = np.append(error_N @ hidden_NH + penalty * change_H1[:-1], error_N.sum())
        return float(value), gradient_H1

    found = minimize(loss, np.zeros(hidden_NH.shape[1] + 1), jac=True, method="L-BFGS-B", options={"ftol": 1e-12})
    return np.asarray(found.x, np.float64)


class Kept:
    """The one correction that a partner keeps: `personal.json` in its state folder, for its owner alone."""

    def __init__(self, config: PartnerConfig) -> None:
        self._config = config
        self.path = Path(config.state) / PERSONAL

    def made_of(self, lineage: bytes) -> str:
        """Returns the hash of all that a correction of a model depends on."""
        config, listed = self._config, Path(self._config.state) / "erased" / "users.json"
        len(Erased(Path(config.state)))  # a list that cannot be relied on is refused
        data = [Path(config.clicks).read_bytes(), Path(config.card).read_bytes()]
        parts = [lineage, *data, listed.read_bytes() if listed.exists() else b""]
        parts.append(json.dumps([config.personal.kind, config.personal.penalty]).encode())
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def read(self, made_of: str) -> Personal | None:
        """Returns the correction that is there; None where there is none, or one of something else."""
        try:
            found = TypeAdapter(Personal).validate_json(self.path.read_bytes())
        except (FileNotFoundError, ValidationError):  # one that is damaged, or of another version, is fitted anew
            return None
        return found if found.made_of == made_of else None

    def write(self, personal: Personal) -> None:
        """Keeps a correction in the place of another."""
        write_atomically(self.path, (json.dumps(asdict(personal)) + "\n").encode(), mode=0o600)

    def forget(self) -> None:
        """Takes the correction off the disk."""
        self.path.unlink(missing_ok=True)
