"""What the report says beyond clicks: purchases, the next item, calibrated probabilities, and which model was kept.

Each is a pure function of the recorded metrics, and shows nothing where nothing is recorded.
"""

from typing import Any

from server.report_numbers import Json, bounds, bracketed, figure, interval, number, table, text, whole, with_bounds
from server.report_tables import Row, Table, columns, prose

_PURCHASE = (
    ("auc", "AUC", "chance that a purchase outscores a row without one"),
    ("pr_auc", "PR-AUC", "area under precision and recall; guessing gives the base rate"),
    ("base_rate", "Base rate", "share of held-out impressions, clicked or not, that were bought"),
    ("log_loss", "Log loss", "mean penalty, in nats, over all rows; lower is better"),
    ("ne", "NE", "log loss over that of always saying the base rate; 1 = no better"),
    ("calibration_ratio", "Calibration ratio", "mean prediction over observed rate; 1 = right on average"),
    ("ece", "ECE", "mean distance of predicted and observed rate over equal-mass bins"),
    ("brier", "Brier", "mean squared error of the probabilities; lower is better"),
)
_RANKS = (("hit_10", "Hit@10"), ("mrr", "MRR"), ("ndcg_10", "nDCG@10"))
_SIDES = (
    ("before", "Clicks, as the model says"),
    ("after", "Clicks, calibrated"),
    ("purchase_before", "Purchases, as the model says"),
    ("purchase_after", "Purchases, calibrated"),
)


def purchase_table(final: Json) -> Table:
    """Returns the figures of p(purchase) over all rows."""
    found = table(final, "purchase")
    rows = [
        Row(name, (figure(found.get(key), 4), bounds(interval(found, key), 4), meaning))
        for key, name, meaning in _PURCHASE
    ]
    given = table(found, "given_click")
    if given:
        meaning = f"of purchases given a click, on the {whole(found.get('clicks'))} clicked rows alone"
        rows.append(Row("AUC given a click", (figure(given.get("auc"), 4), "", meaning)))
    heads = (*columns("Figure", "Value", "95 % interval"), *prose("Meaning"))
    note = f"{whole(found.get('purchases'))} purchases in {whole(found.get('rows'))} rows."
    return Table("Purchases, over all held-out rows", heads, tuple(rows) if found else (), note=note if found else "")


def next_item_table(final: Json) -> Table:
    """Returns where the clicked item stands among all known ones, beside two floors."""
    found, heads = table(final, "next_item"), columns("Ranked by", *(name for _, name in _RANKS))
    if not found:
        return Table("Next item", heads, ())
    rows = [Row("This model, by p(click)", tuple(with_bounds(found, key) for key, _ in _RANKS))]
    for name, said in (("popularity", "Clicks so far in the held-out log"), ("random", "Chance")):
        floor = table(found, "floors", name)
        rows.append(Row(said, tuple(figure(floor.get(key)) for key, _ in _RANKS)))
    return Table("Next item", heads, tuple(rows), note=_about(found))


def _about(found: Json) -> str:
    candidates, drawn = table(found, "candidates"), number(found.get("clicks_with_drawn_candidates")) or 0
    among = (
        f"For {whole(drawn)} of them a drawn share of the items stands in for all." if drawn else "None is left out."
    )
    return (
        f"{whole(found.get('clicks'))} of {whole(found.get('of_clicks'))} held-out clicks; each item is sought among"
        f" those known by then that the user was not shown before ({whole(candidates.get('least'))} to"
        f" {whole(candidates.get('most'))}). {among} Hit@10: share found in the first ten; MRR: mean of 1 over the"
        " place; nDCG@10: the same idea with a slower discount, of the first ten. Brackets: 95 % intervals, over users."
    )


def calibrated_table(final: Json) -> Table:
    """Returns raw and calibrated probabilities on the users that the calibration was not fitted on."""
    found = table(final, "calibrated")
    rows = tuple(
        Row(
            name,
            (
                with_bounds(table(found, key), "log_loss", 4),
                with_bounds(table(found, key), "calibration_ratio"),
                figure(table(found, key).get("ece"), 4),
            ),
        )
        for key, name in _SIDES
        if table(found, key)
    )
    click = table(found, "click")
    line = bracketed(f"slope {figure(click.get('slope'))}", f"intercept {figure(click.get('intercept'))}")
    note = (
        f"Method {text(found.get('method'))}, {line}, fitted on {whole(found.get('fitted_rows'))} rows of"
        f" {whole(found.get('fitted_users'))} held-out users; these figures are of the {whole(found.get('rows'))} rows"
        f" of {whole(found.get('users'))} others."
    )
    heads = columns("Probability", "Log loss", "Calibration ratio", "ECE")
    return Table("Calibrated probabilities", heads, rows, note=note if rows else "")


def course_lines(final: Json) -> list[str]:
    """Returns, as sentences, which model was kept and what its figures are of."""
    lines = []
    averaging, stopping, stream = (table(final, name) for name in ("averaging", "early_stopping", "stream"))
    if averaging:
        lines.append(
            f"The model is the mean of the global models after {whole(averaging.get('models'))} rounds"
            f" ({text(averaging.get('kind'))}); they had been released, so it costs no privacy."
        )
    if stopping:
        lines.append(_stopping(stopping))
    if stream:
        lines.append(
            f"The training logs hold {figure(stream.get('model_unclicked_kept'))} of the unclicked rows, the held-out"
            f" log {figure(stream.get('log_unclicked_kept'))}. Estimated for all impressions: click rate"
            f" {figure(stream.get('base_rate'), 4)}, log loss {figure(stream.get('log_loss'), 4)}, calibration ratio"
            f" {figure(stream.get('calibration_ratio'))}."
        )
    return lines


def _stopping(found: Json) -> str:
    name = {"log_loss": "log loss", "auc": "AUC"}.get(text(found.get("figure")), text(found.get("figure")))
    kept = f"the model of round {whole(found.get('best_round'))} is kept ({name} {figure(found.get('best'), 4)})"
    what = "Rounds were judged on one half of the held-out users; the final figures and floors are of the other half."
    if found.get("stopped") is True:
        return (
            f"Stopped early, after round {whole(found.get('rounds_run'))}: {whole(found.get('patience'))} evaluations"
            f" were not better; {kept}, and the budget of {whole(found.get('rounds_not_run'))} rounds is not spent."
            f" {what}"
        )
    return f"Not stopped early: {kept}. {what}"


def lines(final: Json) -> list[str]:
    """Returns what a terminal shows of all this, one line each."""
    found = course_lines(final)
    purchase, calibrated, following = (table(final, name) for name in ("purchase", "calibrated", "next_item"))
    if purchase:
        found.append(
            f"Purchases: AUC {figure(purchase.get('auc'), 4)}, PR-AUC {figure(purchase.get('pr_auc'), 4)} (base rate"
            f" {figure(purchase.get('base_rate'), 4)}), log loss {figure(purchase.get('log_loss'), 4)}, calibration"
            f" ratio {figure(purchase.get('calibration_ratio'))}"
        )
    if calibrated:
        pair = [table(calibrated, side).get("log_loss") for side in ("before", "after")]
        found.append(
            f"Calibrated ({text(calibrated.get('method'))}): log loss {_to(pair)} on users that it did not see"
        )
    if following:
        popular = table(following, "floors", "popularity")
        found.append(
            f"Next item: hit@10 {figure(following.get('hit_10'))}, MRR {figure(following.get('mrr'))}, nDCG@10"
            f" {figure(following.get('ndcg_10'))} (by popularity {figure(popular.get('hit_10'))},"
            f" {figure(popular.get('mrr'))}, {figure(popular.get('ndcg_10'))})"
        )
    return found


def _to(pair: list[Any]) -> str:
    return f"{figure(pair[0], 4)} to {figure(pair[1], 4)}"
