"""TOML in, frozen dataclasses out: every mistake names key, value and bound, and nothing is guessed.

The properties walk over the declared fields themselves, so that a new key is tested from the day it is declared.
"""

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types as bounds
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import (
    AggregationConfig,
    Config,
    DataConfig,
    GeneratorConfig,
    ModelConfig,
    OutputConfig,
    PrivacyConfig,
    RoundConfig,
    ServerConfig,
    SimulationConfig,
    apply_override,
    dump_config,
    fingerprint,
    load_config,
    parse_config,
    read_toml,
    to_table,
)
from common.errors import ConfigError
from common.messages import TrainTask

SECTIONS = (
    *(DataConfig, ModelConfig, RoundConfig, PrivacyConfig, AggregationConfig),
    *(ServerConfig, SimulationConfig, OutputConfig),
)
# No two values of this one contradict each other, so that single fields can be changed freely.
LOOSE = Config(
    data=DataConfig(partners=65_536, path="log.csv", card="card.toml"),
    privacy=PrivacyConfig(mode="none"),
    aggregation=AggregationConfig(min_partners=3),
    simulation=SimulationConfig(attack="boost", attackers=1),
)


def refusal(table: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as refused:
        parse_config(table)
    return str(refused.value)


def leaves(kind: type = Config, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any, list[Any]]]:
    """Returns every leaf key as (path, bare type, bounds)."""
    found = []
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        place = (*path, name)
        if dataclasses.is_dataclass(annotation):
            found += leaves(annotation, place)
        else:
            found.append((place, *bare(annotation)))
    return found


def bare(annotation: Any) -> tuple[Any, list[Any]]:
    """Returns a type without its bounds, and the bounds."""
    if get_origin(annotation) is typing.Annotated:
        kind, *extras = get_args(annotation)
        inner, more = bare(kind)
        return inner, more + [bound for extra in extras for bound in getattr(extra, "metadata", [extra])]
    options = [part for part in get_args(annotation) if part is not type(None)]
    if type(None) in get_args(annotation) and len(options) == 1:
        return bare(options[0])
    return annotation, []


LEAVES = leaves()
CHANGEABLE = [leaf for leaf in LEAVES if get_origin(leaf[1]) is not Literal or len(get_args(leaf[1])) > 1]
NAMES = [".".join(path) for path, _, _ in LEAVES]


def limits(found: list[Any]) -> dict[str, Any]:
    kinds = (bounds.Ge, bounds.Gt, bounds.Le, bounds.Lt)
    return {type(bound).__name__.lower(): dataclasses.astuple(bound)[0] for bound in found if isinstance(bound, kinds)}


def values_of(kind: Any, found: list[Any]) -> st.SearchStrategy[Any]:
    """Returns valid values of one key."""
    limit = limits(found)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        return st.lists(values_of(get_args(kind)[0], []), max_size=6)
    if kind is bool:
        return st.booleans()
    pattern = next((bound.pattern for bound in found if getattr(bound, "pattern", None)), None)
    if pattern:
        return st.from_regex(pattern, fullmatch=True)
    if kind is str:
        return st.text(st.characters(codec="utf-8"), max_size=12)
    if kind is int:
        low = limit.get("ge", limit.get("gt", 0))
        high = limit.get("le", limit.get("lt", 2**40) - 1)
        return st.integers(low, high)
    return st.floats(
        limit.get("ge", limit.get("gt", -1e300)),
        limit.get("le", limit.get("lt", 1e300)),
        exclude_min="gt" in limit,
        exclude_max="lt" in limit,
    )


def table_of(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value


def base_of(path: tuple[str, ...]) -> Config:
    """Returns LOOSE, where partners evaluate if that is what a key is about."""
    if path[0] != "evaluation" or path[1] == "at":
        return LOOSE
    return dataclasses.replace(LOOSE, evaluation=dataclasses.replace(LOOSE.evaluation, at="partners"))


def with_value(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Returns the table of LOOSE with one key set."""
    table = to_table(base_of(path))
    inner = table
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return table


def _agree(table: dict[str, Any]) -> None:
    """Takes contradictions of labels, fine-tuning and the course of a run out of a table."""
    if table["privacy"]["mode"] == "label":
        table["privacy"] |= {"unit": "user", "epsilon": min(table["privacy"]["epsilon"], 20.0)}
        table["privacy"].pop("label_epsilon", None)
        table["data"]["generator"]["purchase_rate"] = 0.0
    if table["model"]["tune"] == "top_layers":
        table["model"]["tune_layers"] = max(table["model"]["tune_layers"], 1)
    if table["model"]["tune"] == "adalora":
        table["model"]["tune_final_rank"] = min(table["model"]["tune_final_rank"], 1.0)
        table["server"] |= {"optimiser": "fedavg", "averaging": "none"}
    if table["server"]["averaging"] == "tail":
        table["server"]["averaging"] = "uniform"
    if table["privacy"]["statistics_every"]:
        table["server"]["patience"] = 0


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Returns a table with some keys set to valid values, none of which contradict each other."""
    table: dict[str, Any] = to_table(LOOSE)
    for path, kind, found in draw(st.lists(st.sampled_from(LEAVES), max_size=12, unique_by=lambda leaf: leaf[0])):
        inner = table
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = draw(values_of(kind, found))
    table["data"]["partners"] = 65_536
    table["data"]["path"], table["data"]["card"] = table["data"]["path"] or "p", table["data"]["card"] or "c"
    table["round"]["partners_per_round"] = min(max(table["round"]["partners_per_round"], 3), 65_536)
    if table["privacy"]["mode"] == "distributed":  # not among so many partners
        table["evaluation"] = {}
    else:
        table["evaluation"] |= {"at": "partners", "releases": 1}
    table["aggregation"] |= {"method": "secure", "min_partners": 3, "colluders": 1, "groups": 1}
    table["privacy"]["max_local_steps"] = max(table["privacy"]["max_local_steps"], table["round"]["local_steps"])
    private = table["privacy"]["mode"] in ("local", "distributed") and table["privacy"]["unit"] == "user"
    if table["model"]["item_rates"] == ("exact" if table["privacy"]["mode"] != "none" else "private") or not private:
        table["model"]["item_rates"] = "none"
    if table["privacy"]["mode"] == "distributed":
        table["round"] |= {"local_steps": 1, "partners_per_round": 100}
    table["data"]["measure_click_rate"] &= table["privacy"]["mode"] == "none"
    _agree(table)
    simulation = table["simulation"]
    if simulation["attack"] == "nan" and table["privacy"]["mode"] == "distributed":
        simulation["attack"] = "boost"
    most = 0 if simulation["attack"] == "none" else 65_535
    simulation["attackers"] = min(max(simulation["attackers"], 1), most)
    return table


# --- what a mistake is told ---------------------------------------------------------------------------------------


def test_the_walk_sees_every_kind_of_key() -> None:
    assert len(LEAVES) >= 55
    assert {"round.num_rounds", "data.generator.users", "privacy.noise_multiplier", "server.floors"} <= set(NAMES)
    assert limits(next(found for path, _, found in LEAVES if path == ("privacy", "delta"))) == {"gt": 0, "lt": 0.01}


@pytest.mark.parametrize(("path", "kind", "_found"), LEAVES, ids=NAMES)
def test_a_wrong_type_names_key_and_value(path: tuple[str, ...], kind: Any, _found: list[Any]) -> None:
    wrong: Any = 7 if kind is str or get_origin(kind) in (Literal, tuple) else "seven"
    text = refusal(table_of(path, wrong))
    assert f"{'.'.join(path)} = {'7' if wrong == 7 else chr(34) + 'seven' + chr(34)}: " in text


@pytest.mark.parametrize(("path", "kind", "_found"), LEAVES, ids=NAMES)
def test_a_bool_is_no_number_and_a_table_no_value(path: tuple[str, ...], kind: Any, _found: list[Any]) -> None:
    if kind is not bool:
        assert f"{'.'.join(path)} = true: " in refusal(table_of(path, True))
    assert ".".join(path) in refusal(table_of(path, {"deeper": 1}))


@pytest.mark.parametrize(("path", "kind", "found"), LEAVES, ids=NAMES)
def test_each_bound_is_named_and_holds(path: tuple[str, ...], kind: Any, found: list[Any]) -> None:
    beyond = {"ge": lambda x: x - 1, "gt": lambda x: x, "le": lambda x: x + 1, "lt": lambda x: x}
    for name, bound in limits(found).items():
        value = beyond[name](bound)
        text = refusal(table_of(path, value))
        key, shown = ".".join(path), f"{bound:g}" if abs(bound) < 1e6 else str(bound)
        assert text.startswith(f"{key} = {value}: "), text
        assert shown in text


@pytest.mark.parametrize("path", [path for path, kind, _ in LEAVES if kind is float], ids=".".join)
def test_floats_are_finite(path: tuple[str, ...]) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        assert f"{'.'.join(path)} = " in refusal(table_of(path, value))


@pytest.mark.parametrize("path", [path for path, kind, _ in LEAVES if kind is int], ids=".".join)
def test_a_whole_float_is_no_integer(path: tuple[str, ...]) -> None:
    assert "valid integer" in refusal(table_of(path, 3.0))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"round": {"num_rouns": 3}}, "round.num_rouns: unknown key; did you mean round.num_rounds?"),
        ({"rond": {}}, "rond: unknown key; did you mean round?"),
        ({"data": {"generator": {"user": 1}}}, "data.generator.user: unknown key; did you mean data.generator.users?"),
        (
            {"aggregation": {"zzz": 1}},
            "aggregation.zzz: unknown key; known: method, weights, min_partners, colluders, update_bound, groups,"
            " timeout_seconds, stage_timeout_seconds",
        ),
        ({"round": 3}, "round = 3: input should be an object"),
        ({"round": [{"seed": 1}]}, 'round = [{"seed": 1}]: input should be an object'),
    ],
)
def test_an_unknown_key_gets_a_hint(table: dict[str, Any], text: str) -> None:
    assert refusal(table) == text


def test_every_problem_is_told_at_once() -> None:
    lines = refusal({"round": {"num_rounds": 0, "seeed": 1}, "privacy": {"clip": -1.0}}).splitlines()
    assert len(lines) == 3
    assert {line.split(" ")[0].rstrip(":") for line in lines} == {"round.num_rounds", "round.seeed", "privacy.clip"}


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ({"round": {"local_steps": 65}}, ["round.local_steps = 65", "privacy.max_local_steps = 64"]),
        ({"model": {"tune": "top_layers", "tune_layers": 0}}, ["model.tune_layers = 0", 'tune = "full"']),
        (
            {"model": {"tune": "adalora", "tune_rank": 2, "tune_final_rank": 3.0}},
            ["model.tune_final_rank = 3", "at most model.tune_rank = 2"],
        ),
        (
            {"model": {"tune": "adalora"}, "server": {"averaging": "uniform"}},
            ['server.averaging = "uniform"', "adalora", '"lora"'],
        ),
        ({"model": {"item_rates": "exact"}}, ['model.item_rates = "exact"', "not private", 'privacy.mode to "none"']),
        ({"data": {"measure_click_rate": True}}, ["data.measure_click_rate = true", "not private", "prior_click_rate"]),
        (
            {"data": {"partners": 4}, "round": {"partners_per_round": 5}},
            ["partners_per_round = 5", "data.partners = 4"],
        ),
        ({"data": {"partners": 2}}, ["aggregation.min_partners = 3", "at most the 2 partners"]),
        (
            {"aggregation": {"min_partners": 2}},
            ["aggregation.min_partners = 2", "at least 3 partners", "colluders = 1"],
        ),
        ({"aggregation": {"colluders": 2}}, ["aggregation.min_partners = 3", "at least 4 partners", "colluders = 2"]),
        ({"aggregation": {"groups": 2}}, ["aggregation.groups = 2", "groups of 3", "at least 4 are needed"]),
        ({"aggregation": {"groups": 2, "method": "plain"}}, ["aggregation.groups = 2", 'method = "secure"']),
        ({"round": {"partners_per_round": 2}}, ["aggregation.min_partners = 3", "at most the 2 partners"]),
        ({"privacy": {"mode": "distributed"}}, ["round.local_steps = 4", "must be 1", "part of the noise"]),
        (
            {"privacy": {"mode": "distributed"}, "round": {"local_steps": 1}, "aggregation": {"method": "plain"}},
            ['privacy.mode = "distributed"', 'aggregation.method = "secure"'],
        ),
        (
            {
                "privacy": {"mode": "distributed"},
                "round": {"local_steps": 1},
                "data": {"partners": 20},
                "aggregation": {"groups": 3},
            },
            ["aggregation.groups = 3", "one sum over all"],
        ),
        ({"data": {"source": "files"}}, ["data.path is empty", "data.card is empty"]),
        ({"data": {"source": "movietweetings"}}, ['data.path is empty: data.source = "movietweetings" needs it']),
    ],
)
def test_values_that_contradict_each_other_are_both_named(table: dict[str, Any], parts: list[str]) -> None:
    text = refusal(table)
    for part in parts:
        assert part in text


def test_contradictions_at_their_edges_are_none() -> None:
    parse_config({"round": {"local_steps": 64}})
    parse_config({"data": {"partners": 3}})
    parse_config({"data": {"partners": 4}, "round": {"partners_per_round": 4}})
    parse_config({"round": {"local_steps": 65}, "privacy": {"mode": "none"}, "model": {"item_rates": "exact"}})


# --- files and overrides ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"x = [", "not valid TOML"), (b"\xff\xfe", "not valid TOML"), (b"a = 1\na = 2\n", "not valid TOML")],
)
def test_broken_files_are_named(content: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert str(refused.value).startswith(f"{path}: {part}")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cases = (
        (tmp_path / "no.toml", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "x", "cannot be read"),
    )
    for path, part in cases:
        with pytest.raises(ConfigError) as refused:
            read_toml(path)
        assert str(refused.value).startswith(f"{path}: {part}")


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("round.num_rounds=3", ("round", "num_rounds"), 3),
        (" round . num_rounds =3", ("round", "num_rounds"), 3),
        ("round.learning_rate=1e-3", ("round", "learning_rate"), 1e-3),
        ("output.report=false", ("output", "report"), False),
        ("output.title=My run", ("output", "title"), "My run"),
        ('output.title="3"', ("output", "title"), "3"),
        ("output.title=a=b", ("output", "title"), "a=b"),
        ("data.generator.users=5", ("data", "generator", "users"), 5),
        ('server.floors=["base_rate", "pooled"]', ("server", "floors"), ("base_rate", "pooled")),
        ("server.floors=[]", ("server", "floors"), ()),
    ],
)
def test_overrides_are_read_as_toml_and_else_as_text(
    override: str, place: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[round]\nnum_rounds = 9\nseed = 4\n")
    config: Any = load_config(path, [override])
    assert config.round.seed == 4  # the rest of the file stays
    for name in place:
        config = getattr(config, name)
    assert config == value


@pytest.mark.parametrize("override", ["round.num_rounds", "=3", "round.=3", ".num_rounds=3", "", "round..seed=1"])
def test_bad_overrides_say_what_is_expected(override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected table.key=value, such as round.num_rounds=3"):
        apply_override({}, override)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("round.seed.x=3", "--set round.seed.x=3: seed is a value, not a table"),
        ("round.num_rounds=three", 'round.num_rounds = "three": input should be a valid integer'),
        ("round.num_rounds=", 'round.num_rounds = "": input should be a valid integer'),
        ("server.floors=[base_rate]", 'server.floors = "[base_rate]": input should be a valid array'),
        ("round=3", "round = 3: input should be an object"),
        ("rounds.seed=3", "rounds: unknown key; did you mean round?"),
    ],
)
def test_overrides_are_checked_like_the_file(override: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[round]\nseed = 4\n")
    with pytest.raises(ConfigError) as refused:
        load_config(path, [override])
    assert str(refused.value) == part


def test_later_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("")
    assert load_config(path, ["round.seed=4", "round.seed=5"]).round.seed == 5


# --- what is read is what was meant -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(tables())
def test_a_dumped_configuration_reads_back_as_the_same(table: dict[str, Any]) -> None:
    config = parse_config(table)
    again = parse_config(tomllib.loads(dump_config(config)))
    assert again == config
    assert fingerprint(again) == fingerprint(config)
    assert dump_config(again) == dump_config(config)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_what_the_table_says_is_what_the_configuration_holds(table: dict[str, Any]) -> None:
    config = parse_config(table)
    for path, _, _ in LEAVES:
        value, given_value = config, table
        for name in path:
            value = getattr(value, name)
            given_value = given_value.get(name) if isinstance(given_value, dict) else None
        if given_value is not None:
            assert (list(value) if isinstance(value, tuple) else value) == given_value


# Values that LOOSE does not hold and that contradict nothing in it, where not every valid value is one.
AGREEING: dict[tuple[str, ...], st.SearchStrategy[Any]] = {
    ("data", "partners"): st.just(65_535),
    ("data", "path"): st.just("other"),
    ("data", "card"): st.just("other"),
    ("round", "partners_per_round"): st.integers(3, 65_536),
    ("aggregation", "min_partners"): st.integers(4, 65_536),
    ("aggregation", "colluders"): st.just(0),
    ("aggregation", "groups"): st.integers(3, 1000),
    ("simulation", "attack"): st.sampled_from(["sign_flip", "label_flip", "garbage", "nan"]),
    ("simulation", "attackers"): st.integers(2, 65_535),
    ("privacy", "mode"): st.just("local"),
    ("model", "item_rates"): st.just("exact"),
    ("evaluation", "releases"): st.integers(2, 10),
}


@pytest.mark.parametrize(("path", "kind", "found"), CHANGEABLE, ids=lambda part: str(part)[:40])
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_each_field_changes_the_fingerprint(
    path: tuple[str, ...], kind: Any, found: list[Any], data: st.DataObject
) -> None:
    now: Any = LOOSE
    for name in path:
        now = getattr(now, name)
    plain = list(now) if isinstance(now, tuple) else now
    other_values = values_of(kind, found).filter(lambda value: value != plain)
    allowed = AGREEING.get(path, other_values)
    other = parse_config(with_value(path, data.draw(allowed)))
    assert fingerprint(other) != fingerprint(base_of(path))


def test_the_fingerprint_is_of_values_not_of_spelling(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[privacy]\nmode = "none"\n[round]\nlearning_rate = 1\nseed = 1\n')
    one = load_config(path)
    path.write_text(tomli_w.dumps({"round": {"learning_rate": 1.0}, "privacy": {"mode": "none"}}))
    assert fingerprint(one) == fingerprint(load_config(path))


def test_unset_values_are_left_out_of_the_file() -> None:
    assert "noise_multiplier" not in dump_config(Config())
    assert "click_threshold" not in dump_config(Config())
    assert parse_config({}) == Config()


@pytest.mark.parametrize("kind", [Config, GeneratorConfig, *SECTIONS])
def test_configurations_are_frozen(kind: type) -> None:
    config = kind()
    name = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))


# --- privacy is a class of its own --------------------------------------------------------------------------------


def test_promise_2_privacy_is_a_class_of_its_own() -> None:
    """What changes the meaning of an epsilon is in PrivacyConfig; no other section has a word for it."""
    own = {field.name for field in dataclasses.fields(PrivacyConfig)}
    assert own == {
        "evaluation_noise_multiplier",
        "evaluation_epsilon",
        "evaluation_clip",
        "mode",
        "unit",
        "epsilon",
        "epsilon_partner",
        "epsilon_broken",
        "grid_bits",
        "delta",
        "noise_multiplier",
        "clip",
        "sampling_rate",
        "max_impressions_per_user",
        "max_local_steps",
        "fixed_seed",
        "period_days",
        "statistics_noise_multiplier",
        "statistics_epsilon",
        "statistics_clip",
        "statistics_every",
        "label_epsilon",
    }
    words = ("noise", "clip", "epsilon", "delta", "sigma", "sampl", "secure", "privacy", "unit")
    for section in SECTIONS:
        names = {field.name for field in dataclasses.fields(section)}
        if section is PrivacyConfig:
            continue
        assert not names & own
        # bootstrap_samples resamples held-out rows of the server's own
        assert not {name for name in names - {"bootstrap_samples"} for word in words if word in name}


def test_promise_2_no_privacy_field_crosses_with_a_task() -> None:
    own = {field.name for field in dataclasses.fields(PrivacyConfig)}
    assert not own & {field.name for field in dataclasses.fields(TrainTask)}


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"evaluation": {"at": "partners"}, "aggregation": {"method": "plain"}}, "the server may see sums alone"),
        ({"evaluation": {"from_time": 5}}, 'evaluation.from_time = 5: holds nothing out with evaluation.at = "server"'),
        ({"evaluation": {"user_share": 0.1}}, "evaluation.user_share = 0.1: holds nothing out"),
        ({"evaluation": {"at": "partners", "releases": 11}}, "evaluation.releases = 11: at most one a round"),
        ({"evaluation": {"at": "partners", "bins": 4}}, "evaluation.bins = 4"),
        ({"evaluation": {"at": "partners", "user_share": 1.0}}, "evaluation.user_share = 1.0"),
        ({"evaluation": {"at": "partners", "from_time": -1}}, "evaluation.from_time = -1"),
        (
            {
                "evaluation": {"at": "partners"},
                "data": {"partners": 300},
                "round": {"partners_per_round": 20, "local_steps": 1},
                "privacy": {"mode": "distributed"},
            },
            "300 partners: all are in one sum",
        ),
    ],
)
def test_evaluation_at_the_partners_asks_things_of_the_rest(table: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_config(table)
