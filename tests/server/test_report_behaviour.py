"""What report and terminal say beyond clicks: each number as given, and nothing where nothing is recorded."""

import copy
import re
from typing import Any

from behaviour_figures import BEHAVIOUR

from server import report_behaviour as behaviour
from server.report import build_report


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def page(final: dict[str, Any]) -> str:
    return plain(re.sub(r"<[^>]+>", " ", build_report({"final": final}, "")))


def test_purchases_are_of_all_rows() -> None:
    found = behaviour.purchase_table(BEHAVIOUR)
    cells = {row.head: tuple(map(plain, row.cells)) for row in found.rows}
    assert cells["AUC"][:2] == ("0.7134", "0.6500 to 0.7700")
    assert cells["PR-AUC"][0] == "0.1211"
    assert cells["Base rate"][0] == "0.0469"
    assert cells["AUC given a click"] == ("0.5500", "", "of purchases given a click, on the 276 clicked rows alone")
    assert found.note == "58 purchases in 1,234 rows."


def test_the_next_item_stands_beside_its_floors_with_its_sizes() -> None:
    found = behaviour.next_item_table(BEHAVIOUR)
    cells = [(row.head, tuple(map(plain, row.cells))) for row in found.rows]
    assert cells == [
        ("This model, by p(click)", ("0.169 [0.100 to 0.250]", "0.126", "0.117")),
        ("Clicks so far in the held-out log", ("0.250", "0.132", "0.135")),
        ("Chance", ("0.180", "0.090", "0.080")),
    ]
    assert "200 of 276 held-out clicks" in found.note
    assert "(31 to 60)" in found.note
    assert "None is left out" in found.note
    drawn = copy.deepcopy(BEHAVIOUR)
    drawn["next_item"]["clicks_with_drawn_candidates"] = 40
    assert "For 40 of them a drawn share of the items stands in for all" in behaviour.next_item_table(drawn).note


def test_calibration_says_on_whom_it_was_fitted_and_on_whom_judged() -> None:
    found = behaviour.calibrated_table(BEHAVIOUR)
    assert [row.head for row in found.rows] == ["Clicks, as the model says", "Clicks, calibrated"]
    assert [plain(cell) for cell in found.rows[1].cells] == ["0.5109", "1.010", "0.0200"]
    assert "slope 0.812 [intercept" in plain(found.note)
    assert "fitted on 600 rows of 61 held-out users; these figures are of the 634 rows of 59 others" in found.note


def test_the_course_is_said_in_sentences() -> None:
    averaged, stopped, stream = map(plain, behaviour.course_lines(BEHAVIOUR))
    assert averaged.startswith("The model is the mean of the global models after 3 rounds (exponential)")
    assert (
        "Stopped early, after round 5: 2 evaluations were not better; the model of round 3 is kept (log loss 0.4730)"
        in stopped
    )
    assert "the budget of 7 rounds is not spent" in stopped
    assert "final figures and floors are of the other half" in stopped
    assert "hold 0.250 of the unclicked rows, the held-out log 1.000" in stream
    went_on = copy.deepcopy(BEHAVIOUR)
    went_on["early_stopping"]["stopped"] = False
    assert plain(behaviour.course_lines(went_on)[1]).startswith("Not stopped early: the model of round 3 is kept")


def test_a_terminal_has_the_figures_in_a_line_each() -> None:
    said = list(map(plain, behaviour.lines(BEHAVIOUR)))
    assert said[3] == (
        "Purchases: AUC 0.7134, PR-AUC 0.1211 (base rate 0.0469), log loss 0.1882, calibration ratio 1.068"
    )
    assert said[4] == "Calibrated (platt): log loss 0.5203 to 0.5109 on users that it did not see"
    assert said[5].startswith("Next item: hit@10 0.169, MRR 0.126, nDCG@10 0.117 (by popularity 0.250")
    assert behaviour.lines({}) == []


def test_the_page_has_them_all_and_nothing_of_what_is_not_recorded() -> None:
    titles = ("Purchases, over all held-out rows", "Next item", "Calibrated probabilities", "Stopped early")
    shown = page(BEHAVIOUR)
    assert all(title in shown for title in titles)
    without = page({"auc": 0.7})
    assert not any(title in without for title in titles)
