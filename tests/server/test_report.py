"""The report: every number as given, nothing loaded from anywhere, and no input that breaks it."""

import copy
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from behaviour_figures import BEHAVIOUR
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from common.errors import HushclickError
from common.runfolder import RunFolder, write_json
from server import report_numbers as numbers
from server.report import build_report, summary, write_report

NO_BREAK = "\N{NO-BREAK SPACE}"
SECTIONS = [
    "learning",
    "calibration",
    "floors",
    "slices",
    "privacy",
    "data",
    "cost",
    "problems",
    "configuration",
]
PLOTLY = "/* plotly.js */"
HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>"


def floor(auc: float, lead: float, private: bool = False, note: str = "") -> dict[str, Any]:
    return {
        "auc": auc,
        "log_loss": 0.8 - auc / 4,
        "ne": 1.2 - auc / 3,
        "intervals": {"auc": [auc - 0.015, auc + 0.016]},
        "difference": [lead, lead - 0.012, lead + 0.013],
        "private": private,
        "note": note,
    }


def one_round(number: int) -> dict[str, Any]:
    auc = 0.78 - 0.1 / number
    return {
        "round": number,
        "cohort": 6,
        "contributed": 6,
        "auc": auc,
        "log_loss": 0.6,
        "ne": 1.3 - 0.55 * auc,
        "intervals": {"auc": [auc - 0.02, auc + 0.02], "log_loss": [0.58, 0.62], "ne": [0.85, 0.89]},
        "epsilon": 3.0 + number,
        "timings": {"train_seconds": 1.25, "evaluate_seconds": 0.5},
        "bytes": {"down": 185424, "up": 185424},
    }


def a_slice(name: str, **figures: Any) -> dict[str, Any]:
    return {
        "slice": name,
        "rows": 2210,
        "users": 41,
        "click_rate": 0.4567,
        "auc": 0.7512,
        "log_loss": 0.612,
        "calibration_ratio": 1.043,
    } | figures


def full_metrics() -> dict[str, Any]:
    """Returns metrics of a plausible run of six partners and five rounds, two of them troubled."""
    rounds = [one_round(number) for number in range(1, 6)]
    rounds[2] |= {"contributed": 5, "failures": {"partner-0003": "took longer than 600 s"}}
    rounds[3] |= {"contributed": 2, "error": "2 contributions of at least 3", "failures": {"partner-0001": "no answer"}}
    return {
        "run_id": "3f9c1d5e8a7b4c2d",
        "title": "MovieLens over six partners",
        "rounds": rounds,
        "final": copy.deepcopy(BEHAVIOUR)
        | {
            "auc": 0.78149,
            "pr_auc": 0.7614,
            "base_rate": 0.4931,
            "log_loss": 0.5908,
            "ne": 0.8723,
            "calibration_ratio": 1.0214,
            "ece": 0.0143,
            "brier": 0.2012,
            "gauc": 0.7023,
            "uauc": 0.6881,
            "intervals": {"auc": [0.7638, 0.7991], "log_loss": [0.571, 0.612]},
            "rows": 20001,
            "users": 147,
            "rounds": 5,
            "slices": [
                *(a_slice(f"partner {number}") for number in range(6)),
                a_slice("new users", auc=0.702),
                a_slice("history: 1 to 4 positives"),
                {"slice": "domain Western", "rows": 31, "users": 9, "click_rate": 0.4},
            ],
            "calibration": {"predicted_B": [0.1, 0.4, 0.8], "observed_B": [0.12, 0.41, 0.77], "rows_B": [7, 7, 6]},
        },
        "floors": {
            "base_rate": floor(0.5, 0.281),
            "item_popularity": floor(0.705, 0.076, note="exact item means"),
            "logistic_regression": floor(0.776, 0.005),
            "local_only": floor(0.8, -0.019),
        },
        "privacy": {
            "mode": "local",
            "unit": "user",
            "epsilon": 7.9711,
            "delta": 1e-5,
            "adjacency": "add_remove",
            "accountant": "PLD",
            "second_accountant": "PRV",
            "second_epsilon": 7.9871,
            "protects_against": ["the server", "other partners"],
            "sentence": "epsilon 7.98 at delta 1e-05 for one user added or removed (PLD; PRV 7.99)",
            "fixed_seed": False,
            "noise_multiplier": 1.55,
            "sampling_rate": 0.5,
            "clip": 1.0,
            "steps": 20,
            "assumption": "No person is a user of two partners: then one epsilon counts. Otherwise they add up.",
            "partners": {f"partner-{n:04d}": {"epsilon": 7.9 + n / 100, "steps": 20, "rounds": 5} for n in range(6)},
            "more_users": "With ten times the users the noise would be a tenth.",
            "aggregation": "secure",
        },
        "timings": {
            "read_seconds": 0.61,
            "encode_seconds": 48.2,
            "train_seconds": 151.19,
            "server_seconds": 170.0,
            "total_seconds": 200.0,
        },
        "data": {
            "source": "movielens",
            "partners": 6,
            "users": 671,
            "rows": 100004,
            "users_per_partner": [300, 150, 90, 60, 41, 30],
            "rows_per_partner": [44700, 22350, 13410, 8940, 6109, 4495],
            "click_rate_per_partner": [0.45, 0.47, 0.5, 0.52, 0.49, 0.51],
            "rows_dropped": {"duplicate": 12, "time cannot be read": 3},
            "cut_time": 1260759144,
            "split": "time",
            "texts": {"encoded": 9027, "reused": 0},
            "items": 9066,
        },
        "machine": {"cores": 2, "python": "3.11.7", "torch": "2.13.0"},
    }


class Page(HTMLParser):
    """What a browser would find in the page: tags, tables by caption, scripts, styles and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self._rows: list[list[str]] = []
        self._inside: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in ("meta", "link", "line", "img"):
            self._inside.append(tag)
        if tag == "table":
            self._caption, self._rows = "", []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.tables[self._caption] = self._rows
        if tag in self._inside:
            del self._inside[len(self._inside) - 1 - self._inside[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        if inside == "script":
            self.scripts[-1] += data
        elif inside == "style":
            self.styles.append(data)
        else:
            self.words.append(data)
            if "caption" in self._inside:
                self._caption += data
            elif {"td", "th"} & set(self._inside):
                self._rows[-1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))  # no-break spaces become spaces too

    def table(self, start: str) -> dict[str, list[str]]:
        """Returns row heading -> cells of the table whose caption starts so."""
        (rows,) = [rows for caption, rows in self.tables.items() if caption.startswith(start)]
        return {row[0]: [cell.replace(NO_BREAK, " ") for cell in row[1:]] for row in rows}

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def chart(self, name: str) -> list[dict[str, Any]]:
        """Returns the traces that the page gives to plotly for one chart."""
        (script,) = [script for script in self.scripts if f'"{name}"' in script and "newPlot" in script]
        start = script.index("[", script.index("newPlot"))
        traces: list[dict[str, Any]] = json.JSONDecoder().raw_decode(script[start:])[0]
        return traces


def page(metrics: dict[str, Any], config: str = "[round]\nnum_rounds = 5\n") -> Page:
    return Page(build_report(metrics, config))


@pytest.fixture(scope="module", autouse=True)
def _short_plotly() -> Iterator[None]:
    """Most tests read what surrounds plotly.js, and need not parse its megabytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.report.get_plotlyjs", lambda: PLOTLY)
        yield


@pytest.fixture(scope="module")
def full() -> Page:
    return page(full_metrics())


# --- numbers -----------------------------------------------------------------------------------------------------


def test_sections_come_in_order_under_one_title(full: Page) -> None:
    assert [attributes["id"] for attributes in full.attributes("h2")] == SECTIONS
    assert len(full.attributes("h1")) == 1
    assert full.attributes("html")[0]["lang"] == "en-GB"


def test_summary_says_how_good_against_what_and_at_which_price() -> None:
    start, floors, price = (line.replace(NO_BREAK, " ") for line in summary(full_metrics()))
    assert start.startswith("After 5 rounds over 6 partners with 671 users")
    assert "in 78.1 % of such pairs" in start
    assert "0.781, 95 % interval 0.764 to 0.799" in start
    assert "20,001 held-out rows of 147 users" in start
    assert "ahead of the base rate (0.500) by 0.281 (+0.269 to +0.294)" in floors
    assert "not told apart from logistic regression (0.776): difference −0.007 to +0.018" in floors
    assert price.startswith("Privacy: epsilon 7.98 at delta 1e-05 for one user added or removed (PLD; PRV")
    assert price.endswith("Assumption: No person is a user of two partners: then one epsilon counts.")


def test_a_worse_model_is_called_worse() -> None:
    metrics = full_metrics()
    metrics["floors"] = {"item_popularity": floor(0.8, -0.019)}
    assert "behind item popularity (0.800) by 0.019" in summary(metrics)[1]


def test_floors_are_shown_as_given(full: Page) -> None:
    shown = full.table("This model and its floors")
    assert shown["This model"] == ["0.781 [0.764 to 0.799]", "0.591", "0.872", "", "yes"]
    lead = "+0.076 [+0.064 to +0.089]"
    assert shown["Item popularity"] == ["0.705 [0.690 to 0.721]", "0.624", "0.965", lead, "no"]
    assert shown["Each partner alone"][3] == "−0.019 [−0.031 to −0.006]"
    assert "Item popularity : exact item means" in full.text


def test_every_final_figure_has_its_value_and_meaning(full: Page) -> None:
    shown = full.table("Every figure")
    assert shown["AUC"][:2] == ["0.781", "0.764 to 0.799"]
    assert {name: cells[0] for name, cells in shown.items() if name != "Figure"} == {
        "AUC": "0.781",
        "PR-AUC": "0.761",
        "Base rate": "0.493",
        "Log loss": "0.591",
        "NE": "0.872",
        "Calibration ratio": "1.021",
        "ECE": "0.014",
        "Brier": "0.201",
        "GAUC": "0.702",
        "UAUC": "0.688",
    }
    assert all(cells[2] for cells in shown.values())


def test_slate_figures_appear_where_there_are_slates() -> None:
    metrics = full_metrics()
    metrics["final"] |= {"mrr": 0.512, "ndcg_5": 0.643}
    shown = page(metrics).table("Every figure")
    assert shown["MRR"][0] == "0.512"
    assert shown["nDCG@5"][0] == "0.643"


def test_slices_are_shown_and_small_ones_have_no_auc(full: Page) -> None:
    assert full.table("By partner")["partner 5"] == ["2,210", "41", "45.7 %", "0.751", "0.612", "1.043"]
    others = full.table("By kind")
    assert others["new users"][3] == "0.702"
    assert others["domain Western"] == ["31", "9", "40.0 %", "–", "–", "–"]


def with_people() -> dict[str, Any]:
    """Returns metrics with groups of people, one of them too small and one kept back, and their gaps."""
    metrics = full_metrics()
    metrics["final"]["slices"] += [
        a_slice("age: 18-24", of="sensitive:age", intervals={"auc": [0.71, 0.79], "calibration_ratio": [0.9, 1.2]}),
        {"slice": "age: 90 and over", "of": "sensitive:age", "hidden": "under 20 users"},
        {"slice": "age: 65-89", "of": "sensitive:age", "hidden": "kept back"},
    ]
    gap = {"figure": "auc", "gap": 0.0712, "interval": [0.031, 0.112], "highest": "age: 18-24", "lowest": "age: 25-64"}
    metrics["final"]["fairness"] = {
        "sensitive": ["age", "gender"],
        "least_users": 20,
        "least_rows": 50,
        "columns": [
            {"column": "age", "groups": ["age: 18-24", "age: 25-64"], "gaps": [gap | {"by_lot": 0.04}]},
            {"column": "gender", "groups": [], "gaps": [], "why": "fewer than two groups are large enough"},
        ],
    }
    return metrics


def test_groups_of_people_have_a_table_and_hidden_ones_no_number() -> None:
    shown = page(with_people())
    people = shown.table("By group of people")
    assert people["age: 18-24"] == [
        "2,210",
        "41",
        "45.7 %",
        "0.751 [0.710 to 0.790]",
        "0.612",
        "1.043 [0.900 to 1.200]",
    ]
    assert people["age: 90 and over"] == ["under 20 users", "", "", "", "", ""]
    assert people["age: 65-89"] == ["kept back", "", "", "", "", ""]
    assert "as the small one could be worked out from it and the total" in shown.text
    assert "age: 18-24" not in shown.table("By kind")
    assert "kept back" not in page(full_metrics()).text


def test_gaps_between_people_are_shown_beside_those_of_chance(full: Page) -> None:
    shown = page(with_people())
    gaps = shown.table("Largest gaps")
    assert gaps["age: AUC"] == ["age: 18-24", "age: 25-64", "+0.071 [+0.031 to +0.112]", "0.040"]
    assert gaps["gender"] == ["fewer than two groups are large enough", "", "", ""]
    assert "of under 20 users or 50 rows, and people of whom nothing is stated, are not compared" in shown.text
    assert "No feature is made of them" in shown.text
    assert not [caption for caption in full.tables if caption.startswith("Largest gaps")]


def test_privacy_table_says_what_the_guarantee_rests_on(full: Page) -> None:
    shown = {name: cells[0] for name, cells in full.table("What the guarantee").items()}
    assert shown["Epsilon"] == "7.98"  # 7.9711, rounded up
    assert shown["Second accountant"] == "PRV: epsilon 7.99"
    assert shown["Adjacency"] == "one user added or removed"
    assert shown["Delta"] == "1e-05"
    assert shown["Protects against"] == "the server, other partners"
    assert shown["Noise multiplier"] == "1.55"
    assert shown["Sampling rate (q)"] == "0.5"
    assert shown["Steps"] == "20"
    assert shown["Noise from a fixed seed"] == "no"
    assert shown["Budget"] == "not recorded"
    assert f"here {math.ceil(math.exp(7.9711)):,}." in full.text
    assert "With ten times the users the noise would be a tenth." in full.text


def test_no_epsilon_stands_without_its_scope(full: Page) -> None:
    scope = (
        "Unit: user; adjacency: one user added or removed; delta: 1e-05; accountant: PLD;"
        " second accountant: PRV (7.99); protects against: the server, other partners."
    )
    assert full.text.count(scope) == 3  # the chart, the rounds, the partners
    assert f"From 7.90 to 7.95 over 6 partners. {scope}" in full.text


def test_data_and_what_was_dropped(full: Page) -> None:
    shown = {name: cells[0] for name, cells in full.table("The rows behind").items()}
    assert shown["Rows"] == "100,004"
    assert shown["Cut between training and held-out rows"] == "2009-12-14 02:52 UTC"
    assert shown["Users of a partner"] == "30 to 300, median 75"  # the mean of 60 and 90
    assert shown["Texts encoded, and taken from the cache"] == "9,027, 0"
    assert shown["Items"] == "9,066"
    assert full.table("Rows dropped") == {"Reason": ["Rows"], "Duplicate": ["12"], "Time cannot be read": ["3"]}


def test_no_dropped_row_is_another_thing_than_no_count() -> None:
    assert "No row was dropped." in page({"data": {"rows_dropped": {}}}).text
    assert "No count of dropped rows is recorded." in page({"data": {"rows": 7}}).text


def test_time_is_shared_over_phases_that_do_not_hold_each_other(full: Page) -> None:
    shown = full.table("Time by phase")
    assert shown["Training"] == ["2 min 31 s", "75.6 %"]  # 151.19 of 0.61 + 48.2 + 151.19 = 200
    assert shown["Encoding texts"] == ["48.2 s", "24.1 %"]
    assert shown["Total"] == ["3 min 20 s", ""]


def test_bytes_are_summed_and_shared(full: Page) -> None:
    shown = full.table("Bytes")
    assert shown["To the partners"] == ["927.1 kB", "185.4 kB", "30.9 kB"]  # 5 x 185424, over 5 and over 5 x 6
    assert shown["From the partners"][2] == "37.1 kB"  # over 6 + 6 + 5 + 2 + 6 = 25 contributions


def test_failures_are_listed_by_round(full: Page) -> None:
    (rows,) = [rows for caption, rows in full.tables.items() if caption == "Rounds with failures"]
    assert rows[1:] == [
        ["3", "partner-0003", "took longer than 600 s"],
        ["4", "the round", "2 contributions of at least 3"],
        ["4", "partner-0001", "no answer"],
    ]


def test_rounds_configuration_and_footer(full: Page) -> None:
    assert full.table("Round by round")["2"][:3] == ["6", "6", "0.730 [0.710 to 0.750]"]
    assert "[round] num_rounds = 5" in full.text
    assert "Run 3f9c1d5e8a7b4c2d. Cores: 2; Python: 3.11.7; Torch: 2.13.0." in full.text


def test_charts_hold_the_numbers_given(full: Page) -> None:
    metrics = full_metrics()
    auc = {trace.get("name"): trace for trace in full.chart("chart-auc")}
    assert auc["This model"]["x"] == [1, 2, 3, 4, 5]
    assert auc["This model"]["y"] == [record["auc"] for record in metrics["rounds"]]
    assert [0.705, 0.705] in [trace["y"] for trace in full.chart("chart-auc")]
    epsilon = full.chart("chart-epsilon")[0]
    assert epsilon["y"] == [4, 5, 6, 7, 8]
    assert epsilon["customdata"] == ["4.00", "5.00", "6.00", "7.00", "8.00"]
    diagonal, points = full.chart("chart-calibration")
    assert diagonal["x"] == diagonal["y"]
    assert (points["x"], points["y"]) == ([0.1, 0.4, 0.8], [0.12, 0.41, 0.77])
    assert full.chart("chart-users")[0]["y"] == metrics["data"]["users_per_partner"]
    assert full.chart("chart-time")[0]["x"] == [0.61, 48.2, 151.19]


def test_the_band_is_the_outline_of_the_intervals(full: Page) -> None:
    band = full.chart("chart-auc")[0]
    highs = [record["intervals"]["auc"][1] for record in full_metrics()["rounds"]]
    lows = [record["intervals"]["auc"][0] for record in full_metrics()["rounds"]]
    assert band["y"] == [*highs, *reversed(lows), None]
    assert band["x"] == [1, 2, 3, 4, 5, 5, 4, 3, 2, 1, None]


def test_the_band_is_cut_where_a_round_has_no_interval() -> None:
    metrics = full_metrics()
    del metrics["rounds"][1]["intervals"]
    metrics["rounds"][3]["intervals"]["auc"] = [None, 0.8]
    band = page(metrics).chart("chart-auc")[0]
    assert band["x"] == [0.85, 1.15, 1.15, 0.85, None, 2.85, 3.15, 3.15, 2.85, None, 4.85, 5.15, 5.15, 4.85, None]


# --- what is missing ---------------------------------------------------------------------------------------------


def test_an_empty_run_says_what_is_missing() -> None:
    empty = page({}, "")
    assert [attributes["id"] for attributes in empty.attributes("h2")] == SECTIONS
    for line in (
        "No final AUC is recorded",
        "an unrecorded number of partners",
        "Privacy: not recorded.",
        "Privacy is not recorded",
        "No round with figures is recorded.",
        "No calibration bins are recorded.",
        "Neither final figures nor floors are recorded.",
        "No slices are recorded.",
        "No partner's own epsilon is recorded.",
        "Nothing about the data is recorded.",
        "No timings are recorded.",
        "No byte counts are recorded.",
        "No rounds are recorded.",
        "No configuration is recorded.",
    ):
        assert line in empty.text
    assert {cells[0] for cells in empty.table("What the guarantee").values()} == {"Value", "not recorded"}
    assert len(build_report({}, "")) < 50_000  # no chart, no plotly.js


def test_keys_that_are_null_are_as_good_as_missing() -> None:
    missing = dict.fromkeys(full_metrics())
    assert build_report(missing, "") == build_report({}, "")


def test_figures_without_intervals_are_shown_without() -> None:
    metrics = full_metrics()
    for record in (metrics["final"], *metrics["rounds"], *metrics["floors"].values()):
        record.pop("intervals")
    metrics["floors"]["base_rate"]["difference"] = [0.281, None, None]
    del metrics["floors"]["local_only"]["difference"]
    shown = page(metrics)
    assert shown.table("This model")["This model"][0] == "0.781"
    assert shown.table("This model")["Base rate"][3] == "+0.281"
    assert shown.table("This model")["Each partner alone"][3] == "–"
    assert shown.chart("chart-auc")[0]["x"] == []
    assert "0.281 above the base rate (0.500), with no interval recorded" in shown.text
    assert "no interval recorded" in summary(metrics)[0]


JUNK = st.sampled_from([None, "", "text", True, -1, 0, 1e308, 10**400, math.inf, math.nan, [], [None], [1, "a"], {}])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the path of every value inside nested tables and lists."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inside for found in places(item, (*path, key)))]


PLACES = places(full_metrics())[1:]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=6))
def test_no_value_of_the_wrong_kind_breaks_the_report(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    metrics = full_metrics()
    for path, junk in changes:
        record: Any = metrics
        try:
            for key in path[:-1]:
                record = record[key]
            record[path[-1]] = junk
        except (TypeError, KeyError, IndexError):
            continue  # an earlier change has replaced what lay around it
    html = build_report(metrics, "")
    assert "</html>" in html
    json.dumps(Page(html).scripts)


@pytest.mark.parametrize("junk", ["text", -1, [[1]], {}, {"a": {"b": [1]}}])
def test_no_top_level_value_breaks_the_report(junk: Any) -> None:
    for key in full_metrics():
        assert "</html>" in build_report(full_metrics() | {key: junk}, "")


def test_a_single_round_and_a_single_bin_are_drawn() -> None:
    metrics = full_metrics()
    metrics["rounds"] = metrics["rounds"][:1]
    metrics["final"]["calibration"] = {"predicted_B": [0.0], "observed_B": [0.0], "rows_B": [20]}
    shown = page(metrics)
    assert shown.chart("chart-auc")[0]["x"] == [0.85, 1.15, 1.15, 0.85, None]
    assert shown.chart("chart-calibration")[1]["customdata"] == ["20"]


# --- banners -----------------------------------------------------------------------------------------------------

LOCAL = {"mode": "local", "epsilon": 2.0, "aggregation": "secure", "fixed_seed": False}


@pytest.mark.parametrize(
    ("privacy", "titles"),
    [
        (LOCAL, []),
        (LOCAL | {"fixed_seed": True}, ["The noise is reproducible"]),
        (LOCAL | {"aggregation": "plain"}, ["The server sees each partner's update"]),
        ({"mode": "none"}, ["No privacy"]),
        ({"mode": "none", "aggregation": "plain"}, ["No privacy", "The server sees each partner's update"]),
        (LOCAL | {"epsilon": None}, ["No finite epsilon"]),
        (LOCAL | {"epsilon": math.inf}, ["No finite epsilon"]),
        ({}, ["Privacy is not recorded"]),
        (
            LOCAL | {"fixed_seed": True, "aggregation": "plain"},
            ["The noise is reproducible", "The server sees each partner's update"],
        ),
    ],
)
def test_banners(privacy: dict[str, Any], titles: list[str]) -> None:
    html = build_report({"privacy": privacy}, "")
    assert re.findall(r'<div class="banner[^>]*><strong>(.*?)</strong>', html) == [
        title.replace("'", "&#39;") for title in titles
    ]
    assert html.count('class="banner grave"') == sum("server" not in title for title in titles)
    if titles:
        assert html.index('class="banner') < html.index('id="learning"')


def test_the_note_on_aggregation_replaces_the_general_text() -> None:
    shown = page({"privacy": LOCAL | {"aggregation": "plain", "aggregation_note": "Updates are noised already."}})
    assert "Updates are noised already." in shown.text
    assert "reaches the server by itself" not in shown.text


def test_a_model_whose_noise_is_known_is_not_called_private() -> None:
    for change, said in (({"fixed_seed": True}, "no: fixed seed"), ({"mode": "none"}, "no"), ({"epsilon": None}, "–")):
        metrics = full_metrics()
        metrics["privacy"] |= change
        assert page(metrics).table("This model")["This model"][-1] == said


def test_without_privacy_its_settings_do_not_apply() -> None:
    shown = page({"privacy": {"mode": "none"}})
    assert shown.table("What the guarantee")["Epsilon"][0] == "does not apply"
    assert "Privacy: none; updates" in shown.text


# --- safety ------------------------------------------------------------------------------------------------------


def hostile_metrics() -> dict[str, Any]:
    metrics = full_metrics()
    metrics |= {"title": HOSTILE, "run_id": HOSTILE}
    metrics["rounds"][2]["failures"] = {HOSTILE: HOSTILE}
    metrics["final"]["slices"][0]["slice"] = HOSTILE
    metrics["final"]["slices"].append({"slice": HOSTILE, "of": "sensitive:x", "hidden": HOSTILE})
    hostile_gap = {"figure": HOSTILE, "highest": HOSTILE, "lowest": HOSTILE}
    metrics["final"]["fairness"] = {"columns": [{"column": HOSTILE, "gaps": [hostile_gap]}]}
    metrics["floors"][HOSTILE] = floor(0.6, 0.1, note=HOSTILE)
    metrics["privacy"] |= {"sentence": HOSTILE, "more_users": HOSTILE, "partners": {HOSTILE: {"epsilon": 1.0}}}
    metrics["data"] |= {"source": HOSTILE, "rows_dropped": {HOSTILE: 1}, HOSTILE: HOSTILE}
    metrics["timings"][HOSTILE] = 3.0
    metrics["machine"][HOSTILE] = HOSTILE
    return metrics


def test_text_from_a_run_is_never_markup() -> None:
    html = build_report(hostile_metrics(), f"[output]\ntitle = '''{HOSTILE}'''")
    shown = Page(html)
    assert HOSTILE not in html
    assert not shown.attributes("img")
    assert len(shown.scripts) == len(page(full_metrics()).scripts)
    assert HOSTILE in shown.text  # as text it is there


def test_labels_in_charts_are_never_markup() -> None:
    """Plotly reads tags, links among them, in labels; so what comes from a run is escaped once more."""
    labels = page(hostile_metrics()).chart("chart-time")[0]["y"]
    assert labels[-1].startswith("&lt;script&gt;")


@pytest.mark.parametrize("metrics", [full_metrics(), hostile_metrics(), {}])
def test_nothing_is_loaded_from_anywhere(metrics: dict[str, Any]) -> None:
    shown = page(metrics)
    links = [
        (tag, name, value)
        for tag, attributes in shown.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "background", "formaction")
    ]
    assert links == [("link", "href", "data:,")]
    assert not [tag for tag, _ in shown.tags if tag in ("iframe", "object", "embed", "base", "form", "audio", "video")]
    for code in (*shown.scripts, *shown.styles):
        assert not re.search(r"https?://(?!evil\.example)|//[a-z]+\.|fetch\(|XMLHttp|import[ (]|@import|url\(", code)


def test_a_policy_in_the_page_forbids_loading(full: Page) -> None:
    policies = [meta["content"] for meta in full.attributes("meta") if "http-equiv" in meta]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "http" not in policies[0]
    assert "*" not in policies[0]
    assert "connect-src" not in policies[0]


def test_plotly_is_inlined_once(monkeypatch: pytest.MonkeyPatch, full: Page) -> None:
    assert full.scripts.count(PLOTLY) == 1
    monkeypatch.setattr("server.report.get_plotlyjs", get_plotlyjs)
    html = build_report(full_metrics(), "")
    assert html.count(get_plotlyjs()) == 1
    assert len(html) < len(get_plotlyjs()) + 200_000


def test_equal_runs_give_equal_pages_and_are_left_as_they_were() -> None:
    metrics = full_metrics()
    kept = copy.deepcopy(metrics)
    assert build_report(metrics, "x = 1") == build_report(kept, "x = 1")
    assert metrics == kept


# --- reading it --------------------------------------------------------------------------------------------------


def test_tables_and_charts_can_be_read_without_eyes(full: Page) -> None:
    assert len(full.tables) == len(full.attributes("table")) >= 10
    assert all(full.tables)
    assert {heading.get("scope") for heading in full.attributes("th")} == {"col", "row"}
    images = [attributes for attributes in full.attributes("div") if attributes.get("role") == "img"]
    assert len(images) == len(full.attributes("figure")) == 8
    assert all(len(image["aria-label"]) > 20 for image in images)
    assert "AUC by round (higher is better): 0.680 in round 1, 0.760 in round 5." in images[0]["aria-label"]
    ids = [attributes["id"] for _, attributes in full.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_abbreviations_are_explained(full: Page) -> None:
    for meaning in ("area under the ROC curve", "normalised entropy", "expected calibration error", "nats"):
        assert meaning in full.text


def test_of_many_partners_thirty_are_shown_and_all_are_counted() -> None:
    metrics = full_metrics()
    metrics["final"]["slices"] = [a_slice(f"partner {number}") for number in range(1000)]
    metrics["privacy"]["partners"] = {f"p{n}": {"epsilon": 1 + n / 1000} for n in range(1000)}
    metrics["data"]["users_per_partner"] = list(range(1000))
    shown = page(metrics)
    assert len(shown.table("By partner")) == len(shown.table("Epsilon by partner")) == 1 + 30
    assert "30 of 1,000 slices are shown" in shown.text
    assert "30 of 1,000 partners are shown" in shown.text
    assert "From 1.00 to 2.00 over 1,000 partners." in shown.text  # 1.999, rounded up
    assert shown.chart("chart-users")[0]["y"] == list(range(999, -1, -1))


def test_of_many_rounds_the_latest_are_listed() -> None:
    metrics = {"rounds": [one_round(number) for number in range(1, 301)]}
    shown = page(metrics)
    assert list(shown.table("Round by round"))[1] == "101"
    assert len(shown.chart("chart-auc")[1]["x"]) == 300


@pytest.mark.parametrize(
    ("value", "written"),
    [(7.9711, "7.98"), (7.98, "7.98"), (0.0, "0.00"), (0.001, "0.01"), (math.inf, "infinite"), (None, "–"), ("7", "–")],
)
def test_epsilon_is_rounded_up(value: Any, written: str) -> None:
    assert numbers.epsilon(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0.00 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (99.9, "99.9 s"),
        (99.96, "1 min 40 s"),
        (119.6, "2 min 00 s"),
        (7440.0, "2 h 04 min"),
        (None, "–"),
        (True, "–"),
    ],
)
def test_durations(value: Any, written: str) -> None:
    assert numbers.duration(value).replace(NO_BREAK, " ") == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (185424, "185.4 kB"), (999_960, "1.0 MB"), (2.5e12, "2.5 TB")],
)
def test_sizes(value: float, written: str) -> None:
    assert numbers.size(value).replace(NO_BREAK, " ") == written


# --- the file ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    write_json(folder.metrics, full_metrics())
    folder.config.write_text("[round]\nnum_rounds = 5\n", encoding="utf-8")
    return folder


def test_the_report_is_written_beside_the_metrics(folder: RunFolder) -> None:
    assert write_report(folder) == folder.report
    metrics = json.loads(folder.metrics.read_text(encoding="utf-8"))
    assert folder.report.read_text(encoding="utf-8") == build_report(metrics, "[round]\nnum_rounds = 5\n")
    assert not list(folder.root.glob(".*part"))


def test_text_that_utf8_cannot_hold_is_replaced(folder: RunFolder) -> None:
    folder.metrics.write_text('{"title": "half a \\ud83d pair"}', encoding="utf-8")
    assert "half a ? pair" in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; a run writes it when it ends: let it finish, or resume it"),
        (b'{"rounds": [', "not JSON"),
        (b"\xff\xfe{}", "not UTF-8 text"),
        (b"[1, 2]", "holds no JSON object"),
    ],
)
def test_unreadable_metrics_are_named_with_the_mend(folder: RunFolder, content: bytes | None, said: str) -> None:
    folder.metrics.unlink()
    if content is not None:
        folder.metrics.write_bytes(content)
    with pytest.raises(HushclickError, match=re.escape(said)) as raised:
        write_report(folder)
    assert str(folder.metrics) in str(raised.value)
    assert "resume it" in str(raised.value)
    assert not folder.report.exists()


def test_a_missing_configuration_is_named(folder: RunFolder) -> None:
    folder.config.unlink()
    with pytest.raises(HushclickError, match=r"config\.toml: no such file"):
        write_report(folder)
