"""The faulty ClientApp message by message, its public draws, each attack, and what the robust mode makes of them.

Legend: D parameters.
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_rows
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from partner_folder import task_for, write_partner
from safetensors.numpy import load_file
from simulated_runs import SumSpy, run, small_config

import client.app
import simulations.faults
import simulations.run
from client.partner import PartnerConfig
from client.worker import Worker
from common.cli import main
from common.config import Config, dump_config, fingerprint, parse_config
from common.errors import BudgetExhausted, ConfigError, HushclickError
from common.message_types import QUERY_JOIN, TRAIN_MASK, TRAIN_UPDATE
from common.messages import JoinTask, TrainingPlan, TrainTask
from common.privacy.ledger import Ledger
from common.runfolder import RunFolder, partner_name
from common.secagg.wire import ConfirmTask, MaskTask, RevealTask, SessionId, ShareTask, UnmaskTask
from common.stage_messages import TYPE_OF, AdvertiseTask, stage_record, take_ahead, with_ahead
from server.sums import robust_mean
from simulations.attackers import AttackingWorker, attackers_of
from simulations.faults import NODE_UNAVAILABLE, STAGES, silent_from

ROBUST = Path(__file__).parents[2] / "simulations" / "configs" / "robust.toml"


def config_with(partners: int = 10, method: str = "secure", **simulation: Any) -> Config:
    return parse_config({"data": {"partners": partners}, "simulation": simulation, "aggregation": {"method": method}})


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        (
            {"simulation": {"attackers": 2}},
            'simulation.attackers = 2: simulation.attack = "none" gives them nothing to do',
        ),
        (
            {"simulation": {"attack": "boost"}},
            'simulation.attack = "boost": nobody attacks; set simulation.attackers to at least 1',
        ),
        (
            {"data": {"partners": 4}, "simulation": {"attack": "nan", "attackers": 4}},
            "simulation.attackers = 4: must be fewer than data.partners = 4",
        ),
        (
            {"aggregation": {"method": "plain"}, "simulation": {"attack": "garbage", "attackers": 1}},
            'simulation.attack = "garbage": it sends words of the masked ring, and aggregation.method = "plain" has'
            ' none; use "boost" or "nan"',
        ),
        (
            {"data": {"partners": 40}, "aggregation": {"groups": 2}},
            "aggregation.groups = 2: the median of two means is their mean; use 1, or at least 3",
        ),
        (
            {
                "privacy": {"mode": "distributed"},
                "round": {"local_steps": 1},
                "simulation": {"attack": "nan", "attackers": 1},
            },
            'simulation.attack = "nan": contributions of privacy.mode = "distributed" are whole numbers, which hold no'
            ' NaN; use "garbage" or "boost"',
        ),
        ({"simulation": {"dropout_rate": 1.0}}, "simulation.dropout_rate = 1.0: input should be less than 1"),
    ],
)
def test_contradictions_are_named(tables: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(tables)
    assert str(refused.value) == text


def test_faults_are_off_by_default_and_part_of_the_fingerprint() -> None:
    assert not Config().simulation.faulty
    assert config_with(dropout_rate=0.1).simulation.faulty
    assert config_with(attack="boost", attackers=1).simulation.faulty
    assert (
        len({fingerprint(config_with(**table)) for table in ({}, {"dropout_rate": 0.1}, {"attack_factor": 3.0})}) == 3
    )


def test_nothing_of_it_reaches_a_partners_own_configuration(tiny_encoder: Path, tmp_path: Path) -> None:
    faults = {"dropout_rate": 0.2, "attack": "boost", "attackers": 1}
    run(small_config(tiny_encoder, 8, 1, simulation=faults), tmp_path / "run")
    for number in range(8):
        text = (RunFolder(tmp_path / "run").partner(number) / "partner.toml").read_text()
        assert not any(word in text for word in ("simulation", "dropout", "attack"))


# --- who falls silent ---------------------------------------------------------------------------------------------


def draws(config: Config, num_partners: int = 200, num_rounds: int = 50) -> list[str | None]:
    return [
        silent_from(config, partner_name(partner), number)
        for partner in range(num_partners)
        for number in range(1, 1 + num_rounds)
    ]


def test_silence_comes_at_its_rate_and_at_every_stage_alike() -> None:
    """Of 10,000 draws: a standard deviation is 46 silences, and 21 at one stage."""
    counts = Counter(draws(config_with(dropout_rate=0.3)))
    assert counts[None] == pytest.approx(7000, abs=4 * 46)
    assert set(counts) == {None, *STAGES}
    for stage in STAGES:
        assert counts[stage] == pytest.approx(500, abs=4 * 22)


def test_silence_is_a_function_of_seed_partner_and_round() -> None:
    config = config_with(dropout_rate=0.3)
    assert draws(config) == draws(config)
    other = parse_config({"round": {"seed": 2}, "simulation": {"dropout_rate": 0.3}})
    assert draws(config) != draws(other)
    assert not any(draws(config_with(dropout_rate=0.0)))


def test_a_higher_rate_silences_the_same_and_more() -> None:
    low, high = draws(config_with(dropout_rate=0.1)), draws(config_with(dropout_rate=0.5))
    assert all(more == less for less, more in zip(low, high, strict=True) if less)


def test_without_masks_one_falls_silent_before_or_after_training() -> None:
    counts = Counter(draws(config_with(dropout_rate=0.3, method="plain")))
    assert set(counts) == {None, "train", "upload"}
    assert counts["train"] == pytest.approx(1500, abs=4 * 36)


def test_attackers_are_the_first_so_many_by_hash() -> None:
    found = [attackers_of(config_with(attack="nan", attackers=count)) for count in range(1, 10)]
    assert [len(names) for names in found] == list(range(1, 10))
    assert all(fewer < more for fewer, more in pairwise(found))
    assert attackers_of(config_with()) == frozenset()
    assert found[2] != {partner_name(number) for number in range(3)}


# --- message by message -------------------------------------------------------------------------------------------


class Line:
    """The faulty app before a ClientApp that notes what reaches it; one partner, silences as told."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, **simulation: Any) -> None:
        self.heard: list[tuple[str, bool]] = []
        self.silent: dict[int, str] = {}
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        RunFolder(home).config.write_text(dump_config(config_with(dropout_rate=0.5, **simulation)), encoding="utf-8")
        self._context = Context(1, 2, {"partition-id": 3}, RecordDict(), {"run-folder": str(home)})
        patch.setattr(client.app, "app", self._hear)
        patch.setattr(simulations.faults, "silent_from", lambda _, name, number: self.ask(name, number))

    def ask(self, name: str, number: int) -> str | None:
        assert name == "partner-0003"
        return self.silent.get(number)

    def _hear(self, message: Message, context: Context) -> Message:
        assert context is self._context
        self.heard.append((message.metadata.message_type, take_ahead(message.content)[1] is not None))
        return Message(RecordDict({"answer": ConfigRecord({"yes": 1})}), reply_to=message)

    def send(self, kind: str, content: RecordDict) -> str | None:
        """Returns why there is no answer, or None for the deployed app's."""
        message = Message(content, 2, kind)
        message.metadata.__dict__["_message_id"] = "1"
        answer = simulations.faults.app(message, self._context)
        if answer.has_error():
            assert answer.error.code == NODE_UNAVAILABLE
            return str(answer.error.reason)
        assert set(answer.content) == {"answer"}
        return None


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    return Line(tmp_path, monkeypatch)


def message_of(stage: str, number: int) -> tuple[str, RecordDict]:
    session = SessionId("run", number, 0)
    task: Any = {
        "advertise": AdvertiseTask(session, 2),
        "reveal": RevealTask(session, (1,), b"", 1),
        "share": ShareTask(session, (1,), b"", 3, 1, b""),
        "train": MaskTask(session, (1,), (), b"", b"", 2**32, 1, 20, 4.0, 1.0, 3, b"", b""),
        "confirm": ConfirmTask(session, (1,), ()),
        "unmask": UnmaskTask(session, (1,), b"", b""),
    }[stage]
    names = {"train": TRAIN_MASK, "confirm": "query.confirm", "unmask": "query.unmask"}
    return names.get(stage) or TYPE_OF[type(task)], stage_record(task)


ORDER = ("advertise", "reveal", "share", "train", "confirm", "unmask")
FIRST_LOST = dict(zip(STAGES, (0, 2, 3, 4, 4, 5), strict=True))  # silent from -> place in ORDER


@pytest.mark.parametrize("table", [{}, {"dropout_rate": 0.1}, {"attack": "boost", "attackers": 1}])
def test_it_stands_in_for_the_deployed_app_only_where_there_are_faults(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def no_grid(app: Any, *_: Any) -> Any:
        used.append(app)
        raise BudgetExhausted("nothing is run here")

    monkeypatch.setattr(simulations.run, "InProcessGrid", no_grid)
    assert simulations.run._run_apps(config_with(**table), RunFolder(tmp_path), "in-process") is not None
    assert used == [simulations.faults.app if table else client.app.app]
    assert isinstance(simulations.faults.app, ClientApp)


@pytest.mark.parametrize(
    ("table", "named"), [({}, "client.app:app"), ({"dropout_rate": 0.1}, "simulations.faults:app")]
)
def test_flowers_engine_is_given_it_by_name(
    table: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named_apps = []
    monkeypatch.setattr(simulations.run, "run_in_flower", lambda *_, client: named_apps.append(client))
    with pytest.raises(HushclickError, match="failed inside Flower"):
        simulations.run._run_apps(config_with(**table), RunFolder(tmp_path), "flower")
    assert named_apps == [named]


@pytest.mark.parametrize("stage", STAGES)
def test_from_its_stage_on_every_message_of_the_round_is_lost(stage: str, line: Line) -> None:
    line.silent = {2: stage}
    for number in (1, 2, 3):
        answers = [line.send(*message_of(asked, number)) for asked in ORDER]
        lost = [place for place, reason in enumerate(answers) if reason]
        expected = list(range(FIRST_LOST[stage], 6)) if number == 2 else []
        if number == 2 and stage == "upload":
            expected = [3, *expected]  # it hears of it, and its answer is lost
        assert lost == expected
        assert {reason for reason in answers if reason} <= {f"silent from {stage} on (simulated)"}
    heard = Counter(kind for kind, _ in line.heard)
    assert heard[TRAIN_MASK] == (2 if stage in ("advertise", "share", "train") else 3)


def test_what_is_no_round_of_training_is_never_lost(line: Line) -> None:
    line.silent = dict.fromkeys(range(-1, 9), "advertise")
    assert line.send(QUERY_JOIN, JoinTask("run").to_record()) is None
    assert line.send(*message_of("confirm", 0)) is None  # of item counts
    assert line.send("query.catalogue", RecordDict()) is None
    assert line.send(*message_of("confirm", 1))


@pytest.mark.parametrize(("stage", "rides"), [("advertise", False), ("share", True), ("train", True)])
def test_silence_in_the_next_round_loses_only_what_rides_along(stage: str, rides: bool, line: Line) -> None:
    line.silent = {3: stage}
    kind, content = message_of("train", 2)
    assert line.send(kind, with_ahead(content, AdvertiseTask(SessionId("run", 3, 0), 2))) is None
    assert line.heard == [(TRAIN_MASK, rides)]


def test_silence_in_this_round_loses_what_rides_along_with_it(line: Line) -> None:
    line.silent = {2: "train"}
    kind, content = message_of("train", 2)
    assert line.send(kind, with_ahead(content, AdvertiseTask(SessionId("run", 3, 0), 2)))
    assert line.heard == []


def test_a_message_that_does_not_decode_is_the_deployed_apps_to_refuse(line: Line) -> None:
    line.silent = {2: "advertise"}
    kind, _ = message_of("confirm", 2)
    assert line.send(kind, RecordDict({"hushclick.stage": ConfigRecord({"what": 1})})) is None


def test_an_unmasked_update_can_be_lost_before_and_after_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(tmp_path, monkeypatch, method="plain")
    line.silent = {1: "train", 2: "upload"}
    plan = TrainingPlan(1, "sgd", 0.1, 0.0)
    for number in (1, 2, 3):
        task = TrainTask("run", number, 0, 1.0, "f" * 64, plan, np.zeros(2, np.float32))
        assert bool(line.send(TRAIN_UPDATE, task.to_record())) == (number < 3)
    assert len(line.heard) == 2


# --- attacks at one partner ---------------------------------------------------------------------------------------


def partner(home: Path, encoder: Path, **more: Any) -> PartnerConfig:
    return write_partner(home, encoder, fixed_seed=7, epsilon=100.0, **more)


def attacking(partner_config: PartnerConfig, attack: str, bound: float = 4.0, factor: float = 10.0) -> AttackingWorker:
    tables = {
        "simulation": {"attack": attack, "attackers": 1, "attack_factor": factor},
        "aggregation": {"update_bound": bound},
    }
    return AttackingWorker(partner_config, parse_config(tables))


def update_of(worker: Worker, weight: float = 1.0) -> np.ndarray:
    return worker.train(task_for(worker, weight=weight)).contribution.delta_D  # type: ignore[union-attr]


@pytest.mark.parametrize(("attack", "times"), [("boost", 3.0), ("sign_flip", -3.0)])
def test_an_update_is_multiplied_after_honest_training(
    attack: str, times: float, tiny_encoder: Path, tmp_path: Path
) -> None:
    honest_D = update_of(Worker(partner(tmp_path / "honest", tiny_encoder)))
    attacker = attacking(partner(tmp_path / "attacker", tiny_encoder), attack, factor=3.0)
    assert update_of(attacker) == pytest.approx(times * honest_D, rel=1e-6)
    assert np.abs(honest_D).max() > 0


def test_an_attacked_update_stays_under_the_bound_that_encoding_clamps_to(tiny_encoder: Path, tmp_path: Path) -> None:
    attacker = attacking(partner(tmp_path, tiny_encoder), "boost", bound=0.25, factor=1e9)
    update_D = update_of(attacker, weight=0.3)
    weighted_D = np.abs(update_D.astype(np.float64)) * 0.3
    assert weighted_D.max() <= 0.25
    assert weighted_D.max() == pytest.approx(0.25, rel=1e-5)


def test_an_attacker_pays_its_budget_like_anybody(tiny_encoder: Path, tmp_path: Path) -> None:
    events = {}
    for name in ("honest", "attacker"):
        config = partner(tmp_path / name, tiny_encoder)
        update_of(Worker(config) if name == "honest" else attacking(config, "sign_flip"))
        (events[name],) = Ledger(Path(config.ledger)).events()
    assert events["honest"] == events["attacker"]


def test_nan_is_all_nan(tiny_encoder: Path, tmp_path: Path) -> None:
    attacker = attacking(partner(tmp_path, tiny_encoder), "nan")
    task = task_for(attacker)
    assert np.isnan(attacker._contribution(task, attacker._shared_hash())).all()


@pytest.mark.parametrize("purchases", [False, True])
def test_label_flip_is_honest_training_on_the_opposite_log(purchases: bool, tiny_encoder: Path, tmp_path: Path) -> None:
    rows = random_rows(12, purchases=purchases)
    flipped = rows.assign(clicked=(1 - rows["clicked"]).astype("int8"))
    if purchases:
        flipped["purchased"] = flipped["clicked"]
    attacker = attacking(partner(tmp_path / "attacker", tiny_encoder, rows=rows), "label_flip")
    opposite = Worker(partner(tmp_path / "opposite", tiny_encoder, rows=flipped))
    found_D = update_of(attacker)
    assert np.array_equal(found_D, update_of(opposite))
    assert not np.array_equal(found_D, update_of(Worker(partner(tmp_path / "honest", tiny_encoder, rows=rows))))


# --- attacks in a run ---------------------------------------------------------------------------------------------


def attacked(encoder: Path, attack: str, rounds: int = 1, partners: int = 12, **tables: Any) -> Config:
    simulation = {"attack": attack, "attackers": 2} if attack != "none" else {}
    return small_config(encoder, partners, rounds, simulation=simulation, **tables)


@pytest.mark.parametrize("attack", ["boost", "sign_flip", "label_flip", "nan"])
def test_an_attack_touches_the_attackers_contributions_alone(
    attack: str, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = {}
    for name in ("none", attack):
        with monkeypatch.context() as patch:
            spy = SumSpy(patch)
            metrics = run(attacked(tiny_encoder, name), tmp_path / name)
        coded[name] = spy.coded
    attackers = attackers_of(attacked(tiny_encoder, attack))
    assert len(attackers) == 2
    assert coded["none"].keys() == coded[attack].keys()
    for key, words_D in coded["none"].items():
        assert np.array_equal(words_D, coded[attack][key]) == (key[0] not in attackers), key
        if attack == "nan" and key[0] in attackers:
            assert not coded[attack][key].any()  # under differential privacy NaN counts 0
    assert metrics["simulation"]["attacking"] == sorted(attackers)
    assert metrics["rounds"][0]["contributed"] == 12


def test_a_step_in_whole_numbers_is_multiplied_too(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = {}
    for attack in ("none", "sign_flip"):
        simulation = {"attack": attack, "attackers": 1, "attack_factor": 3.0} if attack != "none" else {}
        config = small_config(tiny_encoder, 6, 1, simulation=simulation, privacy={"mode": "distributed"})
        with monkeypatch.context() as patch:
            spy = SumSpy(patch)
            run(config, tmp_path / attack)
        coded[attack] = spy.coded
    (attacker,) = attackers_of(config)
    for key, words_D in coded["none"].items():
        factor = -3 if key[0] == attacker else 1
        assert np.array_equal(coded["sign_flip"][key].view(np.int32), factor * words_D.view(np.int32)), key


def test_without_differential_privacy_honest_code_refuses_to_send_nan(tiny_encoder: Path, tmp_path: Path) -> None:
    config = attacked(tiny_encoder, "nan", privacy={"mode": "none"})
    (record,) = run(config, tmp_path / "run")["rounds"]
    text = "mask: an update with values that are not finite; lower round.learning_rate"
    assert record["failures"] == dict.fromkeys(sorted(attackers_of(config)), text)
    assert record["contributed"] == 10


def test_garbage_loses_a_round_of_one_sum_and_the_run_goes_on(
    tiny_encoder: Path, tmp_path: Path, spy_on_sums: SumSpy
) -> None:
    """Cohorts of five of twelve: rounds with one of the two attackers are lost, the others are not."""
    rounds = {"num_rounds": 5, "partners_per_round": 5, "local_steps": 1, "learning_rate": 0.05}
    config = attacked(tiny_encoder, "garbage", 5, round=rounds)
    metrics = run(config, tmp_path / "run")
    lost = 0
    for record in metrics["rounds"]:
        cohort = {name for name, number in spy_on_sums.coded if number == record["round"]}
        if cohort & attackers_of(config):
            lost += 1
            assert "a sum of 5 contributions with coordinates over" in record["error"]
            assert "one of them was malformed" in record["error"]
        else:
            assert record["contributed"] == 5
    assert 1 <= lost <= 4


@pytest.fixture
def spy_on_sums(monkeypatch: pytest.MonkeyPatch) -> SumSpy:
    return SumSpy(monkeypatch)


def test_garbage_in_every_round_of_one_sum_ends_as_an_error(tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        HushclickError, match=r"1 of 1 rounds were not aggregated; round 1: .*one of them was malformed"
    ):
        run(attacked(tiny_encoder, "garbage"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["final"]["rounds"] == 1


def test_garbage_loses_its_own_groups_and_the_others_make_the_round(
    tiny_encoder: Path, tmp_path: Path, spy_on_sums: SumSpy
) -> None:
    """One attacker in five groups of four: four groups come through, exact, and their median is the step."""
    config = small_config(
        tiny_encoder, 20, 2, simulation={"attack": "garbage", "attackers": 1}, aggregation={"groups": 5}
    )
    (attacker,) = attackers_of(config)
    before = [record["contributed"] for record in run(config, tmp_path / "run")["rounds"]]
    assert before == [16, 16]
    for number in (1, 2):
        groups = [names for names, _, _ in spy_on_sums.sums[number]]
        assert [len(names) for names in groups] == [4] * 4
        assert len(frozenset().union(*groups)) == 16
        assert attacker not in frozenset().union(*groups)
        for names, words_D, _ in spy_on_sums.sums[number]:
            assert np.array_equal(words_D, spy_on_sums.plain_sum(names, number))


def test_groups_keep_a_strong_attack_out_of_the_model_that_a_plain_mean_follows(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    """One of twelve partners pushes a thousandfold: one group of three is lost to it, two hold the median."""
    models = {}
    for name, groups in (("none", 1), ("sign_flip", 1), ("sign_flip", 3)):
        simulation = {"attack": name, "attackers": 1, "attack_factor": 1000.0} if name != "none" else {}
        config = small_config(tiny_encoder, 12, 2, simulation=simulation, aggregation={"groups": groups})
        run(config, tmp_path / f"{name}{groups}")
        found = load_file(tmp_path / f"{name}{groups}" / "model" / "model.safetensors")
        models[name, groups] = np.concatenate([found[key].ravel() for key in sorted(found)])
    honest_D = models["none", 1]
    followed = np.linalg.norm(models["sign_flip", 1] - honest_D)
    held = np.linalg.norm(models["sign_flip", 3] - honest_D)
    assert held < followed / 10


def test_two_runs_of_groups_are_drawn_apart(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coins are fresh: who sums with whom cannot be foreseen from a seed."""
    drawn = []
    for name in ("a", "b"):
        with monkeypatch.context() as patch:
            spy = SumSpy(patch)
            run(small_config(tiny_encoder, 20, 1, aggregation={"groups": 5}), tmp_path / name)
        drawn.append({names for names, _, _ in spy.sums[1]})
    assert [len(groups) for groups in drawn] == [5, 5]
    assert drawn[0] != drawn[1]


def test_with_groups_and_dropouts_every_group_is_exact_or_lost_alone(
    tiny_encoder: Path, tmp_path: Path, spy_on_sums: SumSpy
) -> None:
    config = small_config(
        tiny_encoder, 21, 5, simulation={"dropout_rate": 0.15}, aggregation={"groups": 3}, output={"report": False}
    )
    metrics = run(config, tmp_path / "run")
    losses = 0
    for record in metrics["rounds"]:
        sums = spy_on_sums.sums.get(record["round"], [])
        assert record["contributed"] == sum(len(names) for names, _, _ in sums)
        losses += record["contributed"] < 21
        for names, words_D, _ in sums:
            assert np.array_equal(words_D, spy_on_sums.plain_sum(names, record["round"]))
    assert losses >= 1
    assert sum("error" not in record for record in metrics["rounds"]) >= 1


def test_the_median_of_groups_is_what_the_model_takes(
    tiny_encoder: Path, tmp_path: Path, spy_on_sums: SumSpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr("server.sums.robust_mean", lambda means: taken.append(means) or robust_mean(means))
    config = small_config(tiny_encoder, 12, 1, aggregation={"groups": 3, "weights": "equal"}, round={"num_rounds": 1})
    run(config, tmp_path / "run")
    (means,) = taken
    for mean_D, (names, _, steps_D) in zip(means, spy_on_sums.sums[1], strict=True):
        ratio_D = steps_D[mean_D != 0] / mean_D[mean_D != 0] / len(names)
        assert ratio_D == pytest.approx(np.full(len(ratio_D), ratio_D[0]), rel=1e-9)


# --- the shipped configuration ------------------------------------------------------------------------------------


def test_the_shipped_configuration_of_the_robust_mode_runs_shortened(
    tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        f"model.encoder=path:{tiny_encoder}",
        "round.num_rounds=2",
        "server.floors=[]",
        "data.generator.users=280",
    ]
    overrides = [word for setting in settings for word in ("--set", setting)]
    assert main(["simulate", str(ROBUST), "--out", str(tmp_path / "run"), "--json", *overrides]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["simulation"]["attackers"] == len(metrics["simulation"]["attacking"]) == 3
    assert [record["contributed"] for record in metrics["rounds"]] == [28, 28]
