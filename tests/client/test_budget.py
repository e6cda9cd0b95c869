"""Promise 2: a partner cannot overspend, whatever the server asks and whatever crashes."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from dp_events import ledger_at, release, unprotected

import common
from client.budget import Budget
from common.config import PrivacyConfig, parse_config
from common.errors import BudgetExhausted, ConfigError, LedgerError
from common.privacy.accounting import epsilon
from common.privacy.calibrate import calibrate_noise
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger

ROUNDS, LOCAL_STEPS = 10, 4
POLICY = PrivacyConfig(epsilon=8.0, delta=1e-5, sampling_rate=0.25)
NOISE = calibrate_noise(POLICY.epsilon, POLICY.delta, POLICY.sampling_rate, ROUNDS * LOCAL_STEPS)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(common.__file__).parent.parent)}


def training(round_number: int = 0, noise_multiplier: float = NOISE, steps: int = LOCAL_STEPS) -> DpEvent:
    rate = POLICY.sampling_rate
    return release(round=round_number, noise_multiplier=noise_multiplier, sampling_rate=rate, steps=steps)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.jsonl"


def budget_at(path: Path, policy: PrivacyConfig = POLICY) -> Budget:
    return Budget(ledger_at(path), policy)


def spend(budget: Budget, rounds: int) -> None:
    for number in range(rounds):
        budget.commit(budget.reserve(training(number)))


def test_promise_2_cannot_overspend_every_planned_round_fits_and_the_next_is_refused(path: Path) -> None:
    budget = budget_at(path)
    spend(budget, ROUNDS)
    before = path.read_bytes()
    with pytest.raises(BudgetExhausted):
        budget.reserve(training(ROUNDS))
    assert path.read_bytes() == before  # a refusal charges nothing
    assert 7.9 < budget.spent().epsilon <= 8.0
    assert budget.spent().num_events == ROUNDS


def test_promise_2_cannot_overspend_the_refusal_says_spent_asked_bound_and_mend(path: Path) -> None:
    budget = budget_at(path)
    spend(budget, ROUNDS)
    spent, asked = budget.spent().epsilon, epsilon([training(steps=(ROUNDS + 1) * LOCAL_STEPS)], POLICY.delta)
    with pytest.raises(BudgetExhausted) as refused:
        budget.reserve(training(ROUNDS))
    assert str(refused.value) == (
        "training for round 10 refused before any data was touched; 10 releases have spent epsilon"
        f" {spent:.6g}, this one would make it {asked:.6g}, and the budget is privacy.epsilon = 8 at delta 1e-05;"
        " ask for fewer steps or more noise, or raise privacy.epsilon in this partner's own configuration"
        " (no server can)"
    )


def test_promise_2_cannot_overspend_a_reserve_without_a_commit_counts(path: Path) -> None:
    budget = budget_at(path)
    for number in range(ROUNDS):
        budget.reserve(training(number))
    with pytest.raises(BudgetExhausted):
        budget.reserve(training(ROUNDS))


def test_promise_2_cannot_overspend_by_restarting(path: Path) -> None:
    for number in range(ROUNDS):
        budget_at(path).reserve(training(number))
    with pytest.raises(BudgetExhausted):
        budget_at(path).reserve(training(0))


def test_promise_2_cannot_overspend_over_runs_attempts_and_purposes(path: Path) -> None:
    budget = budget_at(path)
    spend(budget, ROUNDS)
    for event in (
        replace(training(), run_id="another run"),
        replace(training(), attempt=7),
        replace(training(), purpose="statistics"),
    ):
        with pytest.raises(BudgetExhausted):
            budget.reserve(event)


RESERVE_AND_HANG = """
import sys, time
from pathlib import Path
from client.budget import Budget
from common.config import PrivacyConfig, parse_config
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
budget = Budget(Ledger(Path(sys.argv[1]), "shop"), PrivacyConfig(epsilon=8.0, delta=1e-5))
print(budget.reserve(DpEvent.from_dict(eval(sys.argv[2]))), flush=True)
time.sleep(600)
budget.commit(2)
"""


def test_promise_2_cannot_overspend_by_being_killed_between_reserve_and_commit(path: Path) -> None:
    event = training(steps=ROUNDS * LOCAL_STEPS)
    command = [sys.executable, "-c", RESERVE_AND_HANG, str(path), repr(event.to_dict())]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        worker.send_signal(signal.SIGKILL)
    assert line == "2\n"
    assert worker.returncode == -signal.SIGKILL
    ledger = Ledger(path)
    assert (ledger.events(), ledger.uncommitted()) == ((event,), (2,))
    with pytest.raises(BudgetExhausted):
        budget_at(path).reserve(training())


RESERVE_ALL = """
import sys
from dataclasses import replace
from pathlib import Path
from client.budget import Budget
from common.config import PrivacyConfig, parse_config
from common.errors import BudgetExhausted
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
budget = Budget(Ledger(Path(sys.argv[1]), "shop", durable=False), PrivacyConfig(epsilon=8.0, delta=1e-5))
event = DpEvent.from_dict(eval(sys.argv[2]))
granted = 0
for number in range(10):
    try:
        budget.reserve(replace(event, round=number))
        granted += 1
    except BudgetExhausted:
        pass
print(granted)
"""


def test_promise_2_cannot_overspend_by_asking_from_two_processes_at_once(path: Path) -> None:
    command = [sys.executable, "-c", RESERVE_ALL, str(path), repr(training().to_dict())]
    workers = [subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    granted = [int(worker.communicate(timeout=120)[0]) for worker in workers]
    assert sum(granted) == ROUNDS
    assert Ledger(path).verify().num_records == 1 + ROUNDS
    assert budget_at(path).spent().epsilon <= POLICY.epsilon


def test_promise_2_cannot_overspend_with_changing_parameters(path: Path) -> None:
    budget = budget_at(path)
    spend(budget, ROUNDS - 2)
    noisier = training(ROUNDS, noise_multiplier=NOISE * 2)
    planned = budget.affordable_rounds(noisier)
    assert planned is not None
    assert planned > 2
    for _ in range(planned):
        budget.reserve(noisier)
    with pytest.raises(BudgetExhausted):
        budget.reserve(noisier)
    assert budget.spent().epsilon <= POLICY.epsilon
    assert budget.affordable_rounds(noisier) == 0


def test_promise_2_cannot_overspend_on_one_huge_first_request(path: Path) -> None:
    with pytest.raises(BudgetExhausted, match="0 releases have spent epsilon 0, this one would make it"):
        budget_at(path).reserve(training(steps=ROUNDS * LOCAL_STEPS * 2))
    assert Ledger(path).events() == ()


def test_promise_2_cannot_overspend_by_a_release_without_noise(path: Path) -> None:
    budget = budget_at(path)
    with pytest.raises(BudgetExhausted, match=r"would make it inf.*train with noise"):
        budget.reserve(unprotected())
    assert budget.affordable_rounds(unprotected()) == 0


def test_promise_2_cannot_overspend_after_a_release_without_noise(path: Path) -> None:
    ledger_at(path).reserve(unprotected())
    with pytest.raises(BudgetExhausted, match="the ledger holds a release without noise"):
        budget_at(path).reserve(training())
    assert budget_at(path).affordable_rounds(training()) == 0


def test_promise_2_cannot_overspend_with_a_damaged_ledger(path: Path) -> None:
    spend(budget_at(path), 1)
    path.write_bytes(path.read_bytes().replace(b'"steps":4', b'"steps":1', 1))
    with pytest.raises(LedgerError, match="line 2: altered"):
        budget_at(path).reserve(training())


def test_a_lower_budget_takes_effect_at_once_and_a_higher_one_too(path: Path) -> None:
    spend(budget_at(path), 3)
    with pytest.raises(BudgetExhausted):
        budget_at(path, replace(POLICY, epsilon=1.0)).reserve(training())
    spend(budget_at(path, replace(POLICY, epsilon=20.0)), ROUNDS)


def test_a_budget_of_exactly_what_the_plan_costs_is_not_refused_at_the_last_round(path: Path) -> None:
    exact = epsilon([training(steps=ROUNDS * LOCAL_STEPS)], POLICY.delta)
    budget = budget_at(path, replace(POLICY, epsilon=exact))
    spend(budget, ROUNDS)
    assert budget.spent().epsilon == exact
    with pytest.raises(BudgetExhausted):
        budget.reserve(training(ROUNDS, steps=1))


def test_affordable_rounds_count_down(path: Path) -> None:
    budget = budget_at(path)
    left = []
    for number in range(ROUNDS):
        left.append(budget.affordable_rounds(training()))
        budget.reserve(training(number))
    assert left == list(range(ROUNDS, 0, -1))
    assert budget.affordable_rounds(training()) == 0
    assert budget.affordable_rounds(training(steps=1)) == 0


def test_without_privacy_nothing_is_refused_and_everything_is_written_down(path: Path) -> None:
    budget = budget_at(path, PrivacyConfig(mode="none"))
    for _ in range(3):
        budget.commit(budget.reserve(unprotected()))
    assert budget.affordable_rounds(unprotected()) is None
    assert Ledger(path).events() == (unprotected(),) * 3
    assert budget.spent().epsilon == float("inf")
    assert budget.spent().sentence().startswith("no privacy guarantee")


def test_a_delta_that_cannot_be_kept_is_refused_at_once(path: Path) -> None:
    with pytest.raises(ConfigError, match="delta = 1e-13"):
        budget_at(path, replace(POLICY, delta=1e-13))


def test_an_epsilon_over_which_nothing_is_protected_is_no_budget() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon = 1000\.0: input should be less than 1000"):
        parse_config({"privacy": {"epsilon": 1000.0}})


def test_a_round_costs_milliseconds_once_the_first_is_worked_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = budget_at(path)
    budget.reserve(training(0))
    monkeypatch.setattr("client.budget.epsilon", None)  # from here on nothing may be composed again
    monkeypatch.setattr("common.privacy.calibrate.composed_epsilon", None)
    for number in range(1, ROUNDS):
        budget.reserve(training(number))
    with pytest.raises(TypeError):  # and the guard itself works: other noise has to be composed
        budget.reserve(training(0, noise_multiplier=NOISE * 2))
