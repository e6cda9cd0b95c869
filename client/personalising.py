"""The correction that goes with a delivered model at one partner: the one that is kept, or a new one of its own log."""

from pathlib import Path

from client.erasure import Erased
from client.partner import PartnerConfig
from client.personal import Kept, Personal, Seen, fit, look
from client.predicting import Usable, features_of, item_counts, read_rows
from common.card import load_card
from common.clicks import impressions_N
from common.errors import DataError
from common.lineage import LINEAGE


def personal_of(use: Usable, model: Path, partner: PartnerConfig | None) -> Personal | None:
    """Returns the partner's correction of a model, fitted and kept if it is not there yet; None where it wants none.

    Args:
        use: the model, verified.
        model: its folder.
        partner: whose; None = a model's folder alone.

    Raises:
        DataError: where the partner's own log has no row to fit it on.
    """
    if partner is None or partner.personal.kind == "none":
        return None
    kept = Kept(partner)
    lineage = (model / LINEAGE).read_bytes()
    made_of = kept.made_of(lineage)
    found = kept.read(made_of)
    if found is None:
        rows = read_rows(Path(partner.clicks), load_card(Path(partner.card)), Erased(Path(partner.state))).rows
        if not impressions_N(rows).any():
            raise DataError(f'{partner.clicks}: no row to fit personal.kind = "{partner.personal.kind}" on')
        seen = look(use.model, features_of(use, rows, item_counts(use, partner, own_log=True)))
        shown_N = impressions_N(rows)
        seen = Seen(seen.click_N[shown_N], seen.hidden_NH[shown_N])
        label_N, user_N = rows["clicked"].to_numpy()[shown_N], rows["user"].to_numpy()[shown_N]
        found = fit(partner.personal.kind, partner.personal.penalty, seen, label_N, user_N, made_of)
        _keep(kept, found, lineage)
    return found


def _keep(kept: Kept, found: Personal, lineage: bytes) -> None:
    """Keeps a correction, unless what it was fitted on changed meanwhile: whoever was erased since is still in it.

    `erase` lists first and then deletes; this writes first and then looks, so that one of the two sees the other. What
    was asked for before somebody was erased is still answered with it, once.
    """
    if kept.made_of(lineage) != found.made_of:
        return
    try:
        kept.write(found)
        changed = kept.made_of(lineage) != found.made_of
    except BaseException:
        kept.forget()
        raise
    if changed:
        kept.forget()
