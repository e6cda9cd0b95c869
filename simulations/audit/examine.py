"""All tests of an audit, in order: from the mechanism, over what leaves the partners, to attacks on whole runs.

Legend: M canaries, T targets, R runs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.clicks import impressions_N
from common.config import Config
from common.errors import HushclickError
from common.features import UserRows
from common.model.click_model import ClickModel
from common.privacy.onerun import Proved, most_provable, proved
from common.privacy.statement import PrivacyStatement
from common.vector import read_vector
from simulations.audit import controlflow, histograms, mechanism, noise, scorecounts
from simulations.audit.attack import Others, white_box
from simulations.audit.canaries import Canaries, make_canaries, num_canaries, planted
from simulations.audit.crafted import Crafted
from simulations.audit.findings import Finding, Verdict
from simulations.audit.membership import Roc, confidence_of, likelihood_ratios, roc_of
from simulations.audit.observed import Observation, Watching
from simulations.audit.subject import Subject, without_users_of
from simulations.audit.userrows import rows_by_user
from simulations.audit.views import Scale

_CONTROL_ROUNDS = 2
_MOST_EPSILON = 999.0

Curves = dict[str, tuple[list[float], list[float]]]


@dataclass
class Examined:
    """What an audit found.

    Attributes:
        findings: of every test, in order.
        curves: of membership inference, for a plot.
        timings: name of a part -> seconds.
    """

    findings: list[Finding] = field(default_factory=list)
    curves: Curves = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)


def examine(subject: Subject) -> Examined:
    """Returns what all tests found.

    Raises:
        ConfigError: for more canaries than the data can hold, before anything is run.
    """
    audit = subject.config.audit
    num_canaries(audit.canaries, subject.users, audit.most_canary_share)
    examined = Examined()
    for name, part in _PARTS.items():
        started = time.monotonic()
        found, drawn = part(subject)
        examined.findings += found
        examined.curves |= drawn
        examined.timings[f"{name}_seconds"] = time.monotonic() - started
    return examined


def _mechanism(subject: Subject) -> tuple[list[Finding], Curves]:
    subject.say("sensitivity: hostile users against the clipped sum")
    config, audit = subject.config, subject.config.audit
    rows = subject.features(max(subject.logs, key=len))
    found = mechanism.sensitivity(subject.new_model(), rows, config.privacy, audit.neighbours, audit.seed)
    return [*found, mechanism.sampling(rows, config.privacy, audit.seed)], {}


def _control_flow(subject: Subject) -> tuple[list[Finding], Curves]:
    config, generator = subject.config, np.random.default_rng(subject.config.audit.seed)
    rounds = replace(config.round, num_rounds=min(_CONTROL_ROUNDS, config.round.num_rounds))
    config = replace(config, round=rounds)
    subject.say("control flow: the same messages with one user more")
    with subject.run(config=config) as (without, _):
        runs = {}
        for name, log in controlflow.neighbours(subject.logs[0], generator).items():
            with subject.run([log, *subject.logs[1:]], config=config) as (seen, _):
                runs[name] = seen
        return [controlflow.compare(without, runs)], {}


def _noise(subject: Subject) -> tuple[list[Finding], Curves]:
    subject.say("noise: rounds in which nobody is sampled")
    config = noise.zero_config(subject.config, subject.config.audit.zero_rounds)
    # These rounds are no part of the run whose budget was planned.
    free = replace(config.privacy, epsilon=_MOST_EPSILON, epsilon_partner=None, epsilon_broken=None)
    config = replace(config, privacy=free)
    declared = subject.declared
    with subject.run(how=Watching(ask_twice=True, empty=True), config=config) as (seen, _):
        own = {number: noise.deviation_of_a_partner(config, declared[number]) for number in seen.given}
        of_round = {}
        for release in seen.releases:
            there = {number: declared[number] for number, rounds in seen.given.items() if release.round in rounds}
            of_round[release.round] = noise.deviation_of_a_mean(config, there, max(declared.values()))
        return [
            noise.noise_scale(seen, own),
            noise.noise_in_the_sum(seen, of_round),
            noise.independence(seen),
            noise.retries(seen),
            noise.masks(seen, config),
            *_statistics(subject, seen, config),
            *_evaluation(subject, seen, config),
        ], {}


def _statistics(subject: Subject, seen: Observation, config: Config) -> list[Finding]:
    if config.model.item_rates != "private":
        return []
    return [
        histograms.histogram_sensitivity(subject.logs[0], seen, config),
        histograms.histogram_noise(seen, config),
    ]


def _evaluation(subject: Subject, seen: Observation, config: Config) -> list[Finding]:
    if not (config.evaluation.by_partners and config.privacy.noised):
        return []
    return [scorecounts.score_sensitivity(subject, seen, config), scorecounts.score_noise(seen, config)]


def _canaries(subject: Subject) -> tuple[list[Finding], Curves]:
    return one_run_findings(subject), {}


def one_run_findings(subject: Subject, *, black_box: bool = True) -> list[Finding]:
    """Returns what canaries prove against each adversary in one run, and in another from the final model alone."""
    config, audit = subject.config, subject.config.audit
    count = num_canaries(audit.canaries, subject.users, audit.most_canary_share)
    if count < 2:
        says = f"{subject.users} users leave room for {count} canaries: no attack with canaries can say anything"
        return [Finding(test="one-run audit", verdict="no verdict", says=says)]
    subject.say(f"one-run audit: {count} canary users, each in or out by a coin")
    generator = np.random.default_rng(audit.seed)
    canaries = make_canaries(subject.logs, count, config.privacy, generator)
    findings = _white_box(subject, canaries, generator)
    return [*findings, _black_box(subject, canaries)] if black_box else findings


def _white_box(subject: Subject, canaries: Canaries, generator: np.random.Generator) -> list[Finding]:
    """Returns what each adversary proves about canaries whose gradients nobody else shares."""
    config = subject.config
    model = subject.new_model()
    crafted = Crafted(canaries.number, len(read_vector(model)), config.privacy.clip, generator)
    rows = {number: subject.features(log) for number, log in enumerate(subject.logs)}
    units = {number: subject.units(each) for number, each in rows.items()}
    others = Others(model, rows, units, config.privacy.clip)
    with subject.run(planted(subject.logs, canaries), Watching(crafted=crafted)) as (seen, folder):
        _require_planted(crafted, canaries, config)
        claim = subject.claim(folder)
        subject.say("one-run audit: white-box, every round's release against every canary's gradient")
        scores = white_box(seen, Scale(config, subject.declared), others, crafted.direction_MD, canaries.partner_M)
    return [
        _one_run(f"one-run audit, white-box: {view}", view, score_M, canaries.inside_M, claim.views[view], subject)
        for view, score_M in scores.items()
    ]


def _require_planted(crafted: Crafted, canaries: Canaries, config: Config) -> None:
    """Refuses to judge a run whose canaries did not reach it: an attack on nobody finds nothing.

    Raises:
        HushclickError: where fewer were sampled than half of what is expected, or any that was out.
    """
    inside = set(np.flatnonzero(canaries.inside_M).tolist())
    steps = config.round.num_rounds * config.round.local_steps
    expected = len(inside) * (1 - (1 - config.privacy.sampling_rate) ** steps)
    if config.round.partners_per_round:
        expected *= config.round.partners_per_round / config.data.partners
    reached = crafted.planted_ones
    if reached - inside or len(reached) < 0.5 * expected:
        raise HushclickError(
            f"audit: {len(reached & inside)} of {len(inside)} canaries reached a step, and {len(reached - inside)} that"
            " should not have: nothing can be said of this run"
        )


def _black_box(subject: Subject, canaries: Canaries) -> Finding:
    """Returns what the final model proves by what it has learnt of the canaries' rows."""
    subject.say("one-run audit: black-box, what the final model has learnt")
    rows = subject.features(canaries.rows)
    with subject.run(planted(subject.logs, canaries)) as (_, folder):
        claim = subject.claim(folder)
        score_M = _learnt(subject.new_model(), subject.final_model(folder), rows)
    return _one_run("one-run audit, black-box: public", "public", score_M, canaries.inside_M, claim.epsilon, subject)


def _learnt(before: ClickModel, after: ClickModel, rows: UserRows) -> NDArray[np.float64]:
    """Returns by how much surer the final model is of each canary than the one that training began with."""
    units = rows_by_user(rows)
    return confidence_of(after, rows, units) - confidence_of(before, rows, units)


def _one_run(
    test: str,
    adversary: str,
    score_M: NDArray[np.float64],
    inside_M: NDArray[np.bool_],
    claimed: float,
    subject: Subject,
    *,
    whom: str = "canaries",
) -> Finding:
    """Returns what scores of canaries, or of targets, prove, beside what is claimed against that adversary."""
    delta, confidence = subject.config.privacy.delta, subject.config.audit.confidence
    found = proved(score_M, inside_M, delta, confidence)
    most = most_provable(len(score_M), delta, confidence)
    verdict, says = _judged(found, claimed, most, confidence, whom)
    figures = {
        "gaussian_lower_bound": found.gaussian_epsilon,
        "canaries": found.canaries,
        "guesses": found.guesses,
        "correct": found.correct,
        "most_provable": most,
        "share_of_claim": found.epsilon / claimed if claimed else None,
        "gaussian_share_of_claim": found.gaussian_epsilon / claimed if claimed else None,
    }
    return Finding(
        test=test,
        adversary=adversary,
        verdict=verdict,
        lower_bound=found.epsilon,
        claimed_epsilon=claimed,
        says=says,
        figures=figures,
    )


def _judged(found: Proved, claimed: float, most: float, confidence: float, whom: str) -> tuple[Verdict, str]:
    guesses = f"{found.correct} of {found.guesses} guesses about {found.canaries} {whom} were right"
    bound = f"epsilon is at least {found.epsilon:.2f} at {confidence:.0%}, {claimed:.2f} is claimed"
    if found.epsilon > claimed:
        return "violation", f"{guesses}: {bound}"
    if found.gaussian_epsilon > claimed:
        return "warning", f"{guesses}: {bound}; were it a Gaussian mechanism, {found.gaussian_epsilon:.2f} at least"
    if most <= claimed:
        few = f"so few {whom} can show {most:.2f} at most, so that a broken claim of {claimed:.2f} could not be seen"
        return "no verdict", f"{guesses}: {bound}; {few}: bring more users"
    return "holds", f"{guesses}: {bound}"


def _membership(subject: Subject) -> tuple[list[Finding], Curves]:
    audit = subject.config.audit
    if not audit.shadow_runs:
        return [], {}
    generator = np.random.default_rng(audit.seed + 1)
    trained = [log.loc[impressions_N(log), "user"] for log in subject.logs]
    users = np.concatenate([np.sort(users.unique().astype(str)) for users in trained])
    targets = np.sort(generator.permutation(users)[: min(audit.targets, len(users) // 2)])
    if len(targets) < 2:
        says = f"{len(users)} users: nobody's membership can be told from anybody's"
        return [Finding(test="membership inference", verdict="no verdict", says=says)], {}
    rows = subject.features(pd.concat([log[log["user"].isin(set(targets))] for log in subject.logs]))
    units = rows_by_user(rows)
    inside_RT = generator.random((audit.shadow_runs + 1, len(targets))) < 0.5
    confidences: list[NDArray[np.float64]] = []
    claims: list[PrivacyStatement] = []
    for number, inside_T in enumerate(inside_RT):
        subject.say(f"membership inference: run {number + 1} of {len(inside_RT)}")
        out = set(targets[~inside_T])
        with subject.run(without_users_of(subject.logs, out)) as (_, folder):
            confidences.append(confidence_of(subject.final_model(folder), rows, units))
            claims += [subject.claim(folder)] if not claims else []
    return _membership_findings(np.stack(confidences), inside_RT, claims[0], subject)


def _membership_findings(
    confidence_RT: NDArray[np.float64], inside_RT: NDArray[np.bool_], claim: PrivacyStatement, subject: Subject
) -> tuple[list[Finding], Curves]:
    """Returns what two attacks on the first run find; the other runs are the shadow models."""
    findings, curves = [], {}
    scores = {
        "likelihood ratio": likelihood_ratios(confidence_RT, inside_RT, 0),
        "loss threshold": confidence_RT[0],
    }
    for test, score_T in scores.items():
        roc = roc_of(score_T, inside_RT[0])
        curves[test] = roc.curve
        # Whole users are sought, also where the unit is the impression.
        first = _one_run(
            f"membership, {test}: public", "public", score_T, inside_RT[0], claim.user_epsilon, subject, whom="targets"
        )
        says = f"AUC {roc.auc:.3f}{_found_at(roc)}; {first.says}"
        findings.append(replace(first, says=says, figures=first.figures | roc.to_dict()))
    return findings, curves


def _found_at(roc: Roc) -> str:
    """Returns, in words, how many members are found at few false alarms."""
    return "".join(f", {true:.1%} of members found at {false:.1%} false alarms" for false, true in roc.at.items())


_PARTS: dict[str, Callable[[Subject], tuple[list[Finding], Curves]]] = {
    "mechanism": _mechanism,
    "noise": _noise,
    "control_flow": _control_flow,
    "canaries": _canaries,
    "membership": _membership,
}
