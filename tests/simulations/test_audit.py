"""`hushclick audit`: every planted bug is caught by the test named for it, and honest runs raise no alarm.

Each bug is planted in the very code that a partner runs, by replacing one function of it; the audit is not told.

Legend: D parameters, B units, M canaries.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleHooksFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from simulated_runs import small_config

import client.desk
import client.distributed
import client.evaluation
import client.statistics
import client.training
import client.worker
import simulations.audit.examine as audit
from common.cli import main
from common.config import Config, parse_config, to_table
from common.features import make_batch
from common.model.click_model import forward, user_losses
from common.secagg import client_role
from simulations.audit.findings import Finding, overall
from simulations.audit.subject import Subject, subject_of

AUDIT = {"neighbours": 60, "zero_rounds": 2, "shadow_runs": 0, "targets": 20}


def audited_config(encoder: Path, mode: str = "distributed", **tables: dict[str, Any]) -> Config:
    """Returns a run of four partners, of which three honest ones share the noise, or of three with their own."""
    partners = 4 if mode == "distributed" else 3
    privacy = {"mode": mode, "noise_multiplier": 1.0, "clip": 0.05, "sampling_rate": 0.5, "fixed_seed": None}
    privacy = {key: value for key, value in privacy.items() if value is not None} | {"delta": 1e-5}
    config = small_config(
        encoder,
        partners,
        3,
        privacy=privacy | tables.pop("privacy", {}),
        round={"client_optimiser": "sgd", "learning_rate": 0.5} | tables.pop("round", {}),
        **tables,
    )
    return parse_config(to_table(config) | {"audit": AUDIT})


@contextmanager
def subject(config: Config) -> Iterator[Subject]:
    with subject_of(config, lambda _what: None, lambda _done, _total: None) as found:
        yield found


def findings_of(config: Config, *parts: str) -> dict[str, Finding]:
    with subject(config) as found:
        return {one.test: one for part in parts for one in audit._PARTS[part](found)[0]}


def verdict(config: Config, part: str, test: str) -> str:
    return findings_of(config, part)[test].verdict


Plant = Callable[[pytest.MonkeyPatch], None]


# --- the bugs -----------------------------------------------------------------------------------------------------


def noise_halved(patch: pytest.MonkeyPatch) -> None:
    skellam, gaussian = client.distributed.skellam, client.training.gaussian_noise
    patch.setattr(client.distributed, "skellam", lambda size, deviation, own: skellam(size, deviation / 2, own))
    patch.setattr(client.training, "gaussian_noise", lambda *arguments: gaussian(*arguments) / 2)


def noise_shared_without_secure_aggregation(patch: pytest.MonkeyPatch) -> None:
    """Every partner adds its part of the noise, and no masks: the server holds each part by itself."""
    patch.setattr(client_role.Masker, "apply", lambda *_: None)


def a_part_of_the_noise_in_local_mode(patch: pytest.MonkeyPatch) -> None:
    gaussian = client.training.gaussian_noise
    patch.setattr(client.training, "gaussian_noise", lambda *arguments: gaussian(*arguments) / np.sqrt(3))


def wrong_unit(patch: pytest.MonkeyPatch) -> None:
    """Rows are clipped one by one, and the ledger says user."""
    sample = client.training.sample_units

    def rows_apart(rows: Any, step: Any, generator: np.random.Generator) -> list[np.ndarray]:
        return [row_M[place : place + 1] for row_M in sample(rows, step, generator) for place in range(len(row_M))]

    patch.setattr(client.distributed, "sample_units", rows_apart)
    patch.setattr(client.training, "sample_units", rows_apart)


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    def all_of_it(gradient_BD: torch.Tensor, _clip: float) -> tuple[torch.Tensor, torch.Tensor]:
        finite_B = torch.isfinite(gradient_BD).all(1)
        return torch.where(finite_B[:, None], gradient_BD, 0.0), finite_B.double()

    patch.setattr(client.training, "clip_factors", all_of_it)
    patch.setattr(client.distributed, "clip_factors", all_of_it)


def ghost_norms_of_losses_in_a_column(patch: pytest.MonkeyPatch) -> None:
    """Opacus' ghost clipping with losses of shape [B, 1]: its coefficients are spread over the batch."""

    class NoHooks:
        def __init__(self, _model: Any) -> None: ...

        def cleanup(self) -> None: ...

    def clipped(model: Any, rows: Any, chosen: Any, clip: float, _physical_rows: int | None = None) -> np.ndarray:
        total_D = np.zeros(sum(parameter.numel() for parameter in model.parameters()))
        for part in client.training.physical_batches(chosen):
            total_D += _ghost(model, make_batch(rows, part), clip)
        return total_D

    patch.setattr(client.training, "hooks_on", NoHooks)
    patch.setattr(client.training, "clipped_sum", clipped)


def _ghost(model: Any, batch: Any, clip: float) -> np.ndarray:
    hooks = GradSampleHooksFastGradientClipping(
        model, max_grad_norm=clip, use_ghost_clipping=True, loss_reduction="sum", batch_first=True
    )
    try:
        model.zero_grad()
        loss_B1 = user_losses(forward(model, batch), batch)[:, None]

        class Optimiser:
            def zero_grad(self) -> None:
                model.zero_grad()

        DPTensorFastGradientClipping(hooks, Optimiser(), loss_B1, loss_reduction="sum").backward()
        parts = [parameter.grad.numpy().ravel().astype(float) for parameter in model.parameters()]
        return np.nan_to_num(np.concatenate(parts))
    finally:
        hooks.cleanup()
        model.zero_grad()


def shuffled_batches(patch: pytest.MonkeyPatch) -> None:
    """The log is shuffled and cut into batches of equal size, as data loaders do; each unit once an epoch."""
    every = client.training.sample_units
    left: list[np.ndarray] = []

    def next_batch(rows: Any, step: Any, generator: np.random.Generator) -> list[np.ndarray]:
        everybody = every(rows, replace(step, sampling_rate=1.0), generator)
        size = max(1, round(step.sampling_rate * len(everybody)))
        if len(left) < size:
            left[:] = [everybody[place] for place in generator.permutation(len(everybody))]
        batch = left[:size]
        del left[:size]
        return batch

    patch.setattr(client.distributed, "sample_units", next_batch)
    patch.setattr(client.training, "sample_units", next_batch)


def division_by_the_sampled_size(patch: pytest.MonkeyPatch) -> None:
    clipped, gridded = client.training.clipped_sum, client.distributed.gridded_sum

    def mean(model: Any, rows: Any, chosen: Any, clip: float, *rest: Any) -> np.ndarray:
        return clipped(model, rows, chosen, clip, *rest) * 9 / max(len(chosen), 1)

    def whole_mean(model: Any, rows: Any, chosen: Any, *rest: Any) -> np.ndarray:
        return np.rint(gridded(model, rows, chosen, *rest) * 9 / max(len(chosen), 1)).astype(np.int64)

    patch.setattr(client.training, "clipped_sum", mean)
    patch.setattr(client.distributed, "gridded_sum", whole_mean)


def seeds_shared_between_partners(patch: pytest.MonkeyPatch) -> None:
    randomness = client.worker.Randomness
    patch.setattr(client.worker, "Randomness", lambda _seed, _partner, number: randomness(7, "everybody", number))


def a_retry_that_redraws_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client.worker.SentFile, "reuse", lambda *_: None)


def an_unnoised_metric(patch: pytest.MonkeyPatch) -> None:
    """A partner tells how many rows it trained on, beside its masked update."""
    upload = client.desk.upload_record
    seen = client.worker.Worker._data
    rows = []

    def data(worker: Any) -> Any:
        found = seen(worker)
        rows.append(len(found.label_NL))
        return found

    def with_metric(*arguments: Any) -> Any:
        from flwr.app import MetricRecord

        record = upload(*arguments)
        record["metrics"] = MetricRecord({"num-examples": rows[-1]})
        return record

    patch.setattr(client.worker.Worker, "_data", data)
    patch.setattr(client.desk, "upload_record", with_metric)


LOCAL, SHARED = "local", "distributed"
STEP, SUM = "sensitivity of a whole step", "sensitivity of the clipped sum"

# bug, mode, part of the audit, the test that must catch it
CAUGHT: tuple[tuple[Plant, str, str, str], ...] = (
    (noise_halved, LOCAL, "noise", "noise scale"),
    (noise_halved, SHARED, "noise", "noise scale"),
    (noise_halved, SHARED, "noise", "noise in the sum"),
    (noise_shared_without_secure_aggregation, SHARED, "noise", "masked uploads"),
    (a_part_of_the_noise_in_local_mode, LOCAL, "noise", "noise scale"),
    (wrong_unit, LOCAL, "mechanism", STEP),
    (wrong_unit, SHARED, "mechanism", STEP),
    (no_clipping, LOCAL, "mechanism", SUM),
    (no_clipping, SHARED, "mechanism", SUM),
    (no_clipping, SHARED, "mechanism", STEP),
    (ghost_norms_of_losses_in_a_column, LOCAL, "mechanism", STEP),
    (shuffled_batches, LOCAL, "mechanism", "sampling"),
    (shuffled_batches, SHARED, "mechanism", "sampling"),
    (division_by_the_sampled_size, LOCAL, "mechanism", STEP),
    (division_by_the_sampled_size, SHARED, "mechanism", STEP),
    (seeds_shared_between_partners, LOCAL, "noise", "independent noise"),
    (seeds_shared_between_partners, SHARED, "noise", "independent noise"),
    (a_retry_that_redraws_noise, SHARED, "noise", "retries"),
    (a_retry_that_redraws_noise, LOCAL, "noise", "retries"),
)


@pytest.mark.parametrize(("plant", "mode", "part", "test"), CAUGHT)
def test_each_planted_bug_is_caught_by_the_test_named_for_it(
    plant: Plant, mode: str, part: str, test: str, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert verdict(audited_config(tiny_encoder, mode), part, test) == "violation"


@pytest.mark.parametrize("mode", [LOCAL, SHARED])
@pytest.mark.parametrize("unit", ["user", "impression"])
def test_an_honest_mechanism_raises_no_alarm(mode: str, unit: str, tiny_encoder: Path) -> None:
    config = audited_config(tiny_encoder, mode, privacy={"unit": unit})
    found = findings_of(config, "mechanism", "noise", "control_flow")
    assert {one.verdict for one in found.values()} == {"holds"}, [one.says for one in found.values()]
    assert len(found) == 9
    assert found[STEP].figures["ratio"] >= 0.9  # the search reaches the bound
    assert found[SUM].figures["ratio"] >= 0.99


def test_a_metric_in_the_clear_is_caught_by_the_control_flow(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_unnoised_metric(monkeypatch)
    found = findings_of(audited_config(tiny_encoder), "control_flow")["control flow"]
    assert found.verdict == "violation"
    assert "metrics/num-examples" in found.says


# --- attacks on whole runs ----------------------------------------------------------------------------------------


def canary_config(encoder: Path, mode: str, **privacy: Any) -> Config:
    """Returns eight rounds over 600 users, 120 of them canaries, in which everybody takes part in every step."""
    partners = 4 if mode == SHARED else 3
    config = small_config(
        encoder,
        partners,
        8,
        data={"generator": {"users": 600, "items": 30, "impressions_per_user": 6}},
        privacy={"mode": mode, "noise_multiplier": 6.0, "clip": 0.02, "sampling_rate": 1.0, "delta": 1e-5} | privacy,
        round={"client_optimiser": "sgd", "learning_rate": 0.2},
    )
    table = to_table(config)
    del table["privacy"]["fixed_seed"]
    return parse_config(table | {"audit": AUDIT | {"canaries": 110}})


def test_the_one_run_audit_of_an_honest_run_stays_under_every_claim(tiny_encoder: Path) -> None:
    found = findings_of(canary_config(tiny_encoder, SHARED), "canaries")
    assert list(found) == [
        "one-run audit, white-box: server",
        "one-run audit, white-box: partner",
        "one-run audit, white-box: broken",
        "one-run audit, black-box: public",
    ]
    for one in found.values():
        assert one.verdict in ("holds", "no verdict")
        assert 0 <= one.lower_bound <= one.claimed_epsilon
    claims = [one.claimed_epsilon for one in found.values()]
    assert claims[0] < claims[1] <= claims[2]
    assert claims[3] == claims[0]
    white = found["one-run audit, white-box: server"]
    assert white.figures["canaries"] == 110


@pytest.mark.parametrize("mode", [LOCAL, SHARED])
def test_noise_that_is_thirty_times_too_small_is_proved_by_the_one_run_audit(
    mode: str, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skellam, gaussian = client.distributed.skellam, client.training.gaussian_noise
    monkeypatch.setattr(client.distributed, "skellam", lambda size, deviation, own: skellam(size, deviation / 30, own))
    monkeypatch.setattr(client.training, "gaussian_noise", lambda *arguments: gaussian(*arguments) / 30)
    # In local mode each partner's noise is its own claim, which the mean of several partners hides.
    view = "server" if mode == SHARED else "broken"
    found = findings_of(canary_config(tiny_encoder, mode), "canaries")[f"one-run audit, white-box: {view}"]
    assert found.verdict == "violation"
    assert found.lower_bound > found.claimed_epsilon


def test_too_few_users_for_a_verdict_says_what_could_be_shown(tiny_encoder: Path) -> None:
    config = audited_config(tiny_encoder, privacy={"noise_multiplier": 0.4})
    found = findings_of(config, "canaries")["one-run audit, white-box: server"]
    assert found.verdict == "no verdict"
    assert "can show" in found.says
    assert "bring more users" in found.says
    assert found.figures["most_provable"] < found.claimed_epsilon


def test_membership_inference_on_an_honest_run(tiny_encoder: Path) -> None:
    config = canary_config(tiny_encoder, SHARED)
    config = replace(config, audit=replace(config.audit, shadow_runs=3, targets=60))
    with subject(config) as found:
        findings, curves = audit._membership(found)
    assert [one.test for one in findings] == [
        "membership, likelihood ratio: public",
        "membership, loss threshold: public",
    ]
    for one in findings:
        assert one.verdict in ("holds", "no verdict")
        assert 0.3 < one.figures["auc"] < 0.7  # noise of six clips hides a user; of 60 the AUC is .5 +- .08
        assert one.figures["pairs"] == 60
        assert list(one.figures["true_positive_rate_at"]) == ["0.1"]  # 30 others cannot tell rates below 1/30
    assert set(curves) == {"likelihood ratio", "loss threshold"}


def test_membership_is_found_where_there_is_no_privacy(tiny_encoder: Path) -> None:
    """A likelihood ratio that finds nothing in a model that has learnt its users by heart would find nothing at all."""
    generator = np.random.default_rng(3)
    inside_RT = generator.random((17, 400)) < 0.5
    confidence_RT = generator.normal(size=400) + inside_RT + 0.3 * generator.normal(size=(17, 400))
    ratio_T = audit.likelihood_ratios(confidence_RT, inside_RT, 0)
    roc = audit.roc_of(ratio_T, inside_RT[0])
    assert roc.auc > 0.9
    assert audit.roc_of(confidence_RT[0], inside_RT[0]).auc < 0.85  # what the loss alone can say
    hidden = audit.likelihood_ratios(confidence_RT, inside_RT[:, ::-1], 0)
    assert abs(audit.roc_of(hidden, inside_RT[0, ::-1]).auc - 0.5) < 0.1


# --- the command --------------------------------------------------------------------------------------------------


def run_command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["audit", *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def toml(tiny_encoder: Path, tmp_path: Path) -> Path:
    from common.config import dump_config

    path = tmp_path / "tiny.toml"
    path.write_text(dump_config(audited_config(tiny_encoder)), encoding="utf-8")
    return path


def test_the_command_leaves_a_page_and_json(toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code, printed, _ = run_command(capsys, str(toml), "--out", str(out), "--set", "audit.shadow_runs=1", "--json")
    assert code == 0
    result = json.loads(printed)
    assert result == json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert result["verdict"] == "holds"
    assert result["lower_bound"] <= result["claimed_epsilon"]
    assert {"sampling", "control flow", "noise scale", STEP, SUM} <= {one["test"] for one in result["tests"]}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Nothing was found against the claim." in page
    assert "http://" not in page.split("<script")[0]
    assert "https://" not in page.split("<script")[0]
    assert (out / "config.toml").is_file()


def test_a_violation_ends_with_exit_code_4(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise_halved(monkeypatch)
    code, printed, _ = run_command(capsys, str(toml), "--out", str(tmp_path / "out"))
    assert code == 4
    assert "VIOLATION" in printed
    assert "noise scale" in printed
    assert "Violation: the claim does not hold." in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("audit.canaries=40", "at most audit.most_canary_share = 0.2 of"),
        ('privacy.mode="none"', "there is no claim to attack"),
        ("simulation.dropout_rate=0.1", "an audit attacks honest partners"),
        ("audit.zero_rounds=1", "audit.zero_rounds = 1"),
    ],
)
def test_what_cannot_be_audited_is_refused_with_the_mend(
    setting: str, says: str, toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, complaint = run_command(capsys, str(toml), "--set", setting, "--out", str(tmp_path / "out"))
    assert code == 2
    assert says in complaint
    assert not (tmp_path / "out").exists()


def test_the_gravest_finding_is_the_verdict() -> None:
    def of(*verdicts: Any) -> str:
        return overall([Finding(test="one", verdict=each, says="") for each in verdicts])

    assert of("holds", "warning", "violation", "no verdict") == "violation"
    assert of("holds", "warning", "no verdict") == "warning"
    assert of("holds", "no verdict") == "holds"
    assert of("no verdict") == of() == "no verdict"


@pytest.mark.slow
def test_honest_runs_raise_no_alarm_in_20_seeds(tiny_encoder: Path) -> None:
    for seed in range(20):
        config = audited_config(tiny_encoder, SHARED if seed % 2 else LOCAL)
        config = replace(config, audit=replace(config.audit, seed=seed, neighbours=20))
        found = findings_of(config, "mechanism", "noise", "control_flow", "canaries")
        assert {one.verdict for one in found.values()} <= {"holds", "no verdict"}, (seed, found)


# --- private statistics -------------------------------------------------------------------------------------------


def statistics_config(encoder: Path, mode: str) -> Config:
    config = audited_config(
        encoder, mode, privacy={"statistics_noise_multiplier": 3.0}, model={"item_rates": "private"}
    )
    return parse_config(to_table(config) | {"audit": AUDIT})


@pytest.mark.parametrize("mode", [LOCAL, SHARED])
def test_honest_statistics_raise_no_alarm(mode: str, tiny_encoder: Path) -> None:
    found = findings_of(statistics_config(tiny_encoder, mode), "noise")
    assert {one.verdict for one in found.values()} == {"holds"}, [one.says for one in found.values()]
    assert found["sensitivity of the statistics"].figures["ratio"] > 0.95  # the bound is reached


@pytest.mark.parametrize("mode", [LOCAL, SHARED])
def test_statistics_with_half_of_the_noise_are_caught(
    mode: str, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skellam = client.distributed.skellam
    monkeypatch.setattr(client.distributed, "skellam", lambda size, deviation, own: skellam(size, deviation / 2, own))
    found = findings_of(statistics_config(tiny_encoder, mode), "noise")
    assert found["noise of the statistics"].verdict == "violation"


def test_statistics_without_a_clip_are_caught(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    histogram = client.statistics.gridded_histogram
    monkeypatch.setattr(
        client.statistics,
        "gridded_histogram",
        lambda rows, catalogue, terms, _bound, grid: histogram(rows, catalogue, terms, 1e9, grid),
    )
    found = findings_of(statistics_config(tiny_encoder, SHARED), "noise")
    assert found["sensitivity of the statistics"].verdict == "violation"


def test_histograms_that_are_drawn_anew_are_caught(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_retry_that_redraws_noise(monkeypatch)
    monkeypatch.setattr(client.statistics.SentFile, "reuse", lambda *_: None)
    assert findings_of(statistics_config(tiny_encoder, SHARED), "noise")["retries"].verdict == "violation"


# --- evaluation at the partners ---------------------------------------------------------------------------------------


def evaluation_config(encoder: Path, mode: str) -> Config:
    return audited_config(
        encoder, mode, privacy={"evaluation_noise_multiplier": 3.0}, evaluation={"at": "partners", "bins": 512}
    )


@pytest.mark.parametrize("mode", [LOCAL, SHARED])
def test_an_honest_evaluation_raises_no_alarm(mode: str, tiny_encoder: Path) -> None:
    found = findings_of(evaluation_config(tiny_encoder, mode), "noise")
    assert {one.verdict for one in found.values()} == {"holds"}, [one.says for one in found.values()]
    assert found["sensitivity of the evaluation"].figures["ratio"] > 0.95  # the bound is reached


def test_an_evaluation_with_half_of_the_noise_is_caught(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skellam = client.distributed.skellam
    monkeypatch.setattr(client.distributed, "skellam", lambda size, deviation, own: skellam(size, deviation / 2, own))
    found = findings_of(evaluation_config(tiny_encoder, LOCAL), "noise")
    assert found["noise of the evaluation"].verdict == "violation"


def test_an_evaluation_without_a_clip_is_caught(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    histogram = client.evaluation.gridded_scores
    monkeypatch.setattr(client.evaluation, "gridded_scores", lambda *given: histogram(*given[:4], 1e9, given[5]))
    found = findings_of(evaluation_config(tiny_encoder, SHARED), "noise")
    assert found["sensitivity of the evaluation"].verdict == "violation"
