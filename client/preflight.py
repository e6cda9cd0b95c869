"""What of a partner can be checked on its own machine before it joins anything: one line each, `ok` or the mend.

Not checked in this version: the GPU. Given a `client.toml`, also certificates, the server, its clock, and whether what
Flower runs is another user than the worker.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.anchors import HeadFile
from client.boundary import boundary
from client.budget import Budget
from client.certificate_check import check_certificates
from client.deployment import ClientConfig
from client.erasure import Erased
from client.overlap.identifiers import load_secret
from client.participant import own_membership
from client.partner import PartnerConfig
from client.rpc.asking import why_not_serving
from common.calibration import prior_warning
from common.card import load_card, require_sampling
from common.clicks import impressions_N, read_clicks
from common.errors import ConfigError, HushclickError
from common.pretrained import locate
from common.privacy.accounting import epsilon, rounded_up
from common.privacy.labels import NOT_PROTECTED
from common.privacy.ledger import Ledger
from common.privacy.views import as_seen, bounds_of
from common.proxies import associations, warnings_of
from common.split import rule_of

NOT_CHECKED = "GPU"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it is in order, and what was found or how to mend it.

    One that warns is in order as far as the program can tell, and for a person to judge.
    """

    what: str
    ok: bool
    says: str
    warns: bool = False


def connection(client: ClientConfig, config: PartnerConfig | None) -> list[Finding]:
    """Returns a finding per part of what connects a partner with the server, which is asked for its certificate.

    `config` is None where the worker's own file is not this command's to read.
    """
    findings = [_named(*check_certificate) for check_certificate in check_certificates(client)]
    if config:
        same = client.name == config.name
        other = f"client.toml is of {client.name!r}, worker.toml of {config.name!r}: one kit, one name"
        findings.insert(0, Finding("name", same, client.name if same else other))
    if not client.start_worker:
        address = client.worker_socket or (config.worker.listen if config else "")
        why = why_not_serving(address, client.worker_owner)
        findings.append(Finding("worker", not why, why or f"answers at {address}"))
    return [*findings, _boundary(client, config)]


def _boundary(client: ClientConfig, config: PartnerConfig | None) -> Finding:
    try:
        return Finding("boundary", *boundary(client, config))
    except HushclickError as error:
        return Finding("boundary", False, str(error))


def _named(ok: bool, text: str) -> Finding:
    what, _, says = text.partition(": ")
    return Finding(what, ok, says) if says else Finding("connection", ok, text)


def preflight(config: PartnerConfig) -> list[Finding]:
    """Returns a finding per part of a partner, in the order of a deployment; nothing is trained, sent or charged."""
    return [_finding(what, look, config) for what, look in _LOOKS]


def _finding(what: str, look: Callable[[PartnerConfig], str | Finding], config: PartnerConfig) -> Finding:
    try:
        found = look(config)
        return found if isinstance(found, Finding) else Finding(what, True, found)
    except HushclickError as error:
        return Finding(what, False, "; ".join(str(error).splitlines()))


def _clicks(config: PartnerConfig) -> Finding:
    card = load_card(Path(config.card))
    require_sampling(card, config.model.unclicked_kept)
    clicks, privacy, erased = read_clicks(Path(config.clicks), card, allow_one_class=True), config.privacy, ""
    report, listed = clicks.report, Erased(Path(config.state))
    if len(listed):
        left = int(listed.without(clicks.rows)["user"].nunique())
        erased = f"; {len(listed)} erased, {left} users left"
        erased += ", fewer than declared: agree on a new roster" if left < config.declared_users else ""
    if privacy.mode != "none" and privacy.delta * report.users >= 1:
        raise ConfigError(
            f"privacy.delta = {privacy.delta:g} and {report.users} users: a delta of 1 / users allows one of them to"
            " be shown; lower it well below that"
        )
    dropped = "".join(f"; {reason}: {count} dropped" for reason, count in report.dropped.items())
    shown = report.rows_kept - report.history_rows
    if not shown:
        raise ConfigError(f"all {report.rows_kept} rows are history alone, and none can train: bring impressions too")
    past = f" and {report.history_rows} of history" if report.history_rows else ""
    says = (
        f"{shown} rows{past} of {report.users} users, clicked {report.click_rate:.1%};"
        f" declared_users = {config.declared_users}{dropped}{erased}"
    )
    warning = prior_warning(report.click_rate, config.model.prior_click_rate)
    return Finding("card and clicks", True, f"{says}; {warning}" if warning else says, warns=bool(warning))


def _sensitive(config: PartnerConfig) -> str | Finding:
    """Says which columns no feature is made of, and which of the others give them away; read for this line alone."""
    card = load_card(Path(config.card))
    named = ", ".join(card.sensitive.columns)
    if not named:
        return "none is named in the data card ([sensitive]); what its roles do not map is read by nobody"
    rows = read_clicks(Path(config.clicks), card, allow_one_class=True, sensitive=True).rows
    found = associations(Erased(Path(config.state)).without(rows))
    says = f"{named}: none of them is a feature; training does not read them"
    warnings = warnings_of(found)
    if warnings:
        return Finding("sensitive columns", True, "; ".join([says, *warnings]), warns=True)
    if not found:
        return f"{says}; no other column could be compared with them"
    share, most = max(((one.explained or 0.0, one) for one in found), key=lambda pair: pair[0])
    return f"{says}; no other column gives them away (at most {share:.0%}: {most.column} of {most.sensitive})"


def _encoder(config: PartnerConfig) -> str:
    found = locate(config.model.encoder, config.model.encoder_sha256, config.model.cache)
    if config.model.tune != "head":
        from common.model.tail import require_tunable  # torch, which takes seconds, is needed for these alone

        require_tunable(config.model, found)
    return f"{config.model.encoder}, width {found.width}, fingerprint {found.fingerprint[:12]}"


def _membership(config: PartnerConfig) -> str:
    if config.aggregation.method == "plain":
        return 'aggregation.method = "plain": none needed, and the server sees every update'
    _, roster = own_membership(config)
    least = config.aggregation.least_participants
    if len(roster) < least:
        raise ConfigError(
            f"roster of {len(roster)} members, and aggregation.least_participants = {least}: no round can come about"
        )
    return f"member {roster.number(config.name)} of {len(roster)}, roster {roster.hash.hex()[:12]}"


def _noise(config: PartnerConfig) -> str | Finding:
    privacy = config.privacy
    if privacy.mode == "none":
        raise ConfigError('privacy.mode = "none": nothing protects this partner\'s users; set "local" or "distributed"')
    if privacy.fixed_seed is not None:
        raise ConfigError(
            f"privacy.fixed_seed = {privacy.fixed_seed}: whoever knows it can remove the noise; take the line out"
        )
    if privacy.mode == "label":
        return _labels(config)
    return (
        f"mode {privacy.mode}, unit {privacy.unit}, noise multiplier {privacy.noise_multiplier:g},"
        f" sampling rate {privacy.sampling_rate:g}"
        + (
            f"; statistics with noise multiplier {privacy.statistics_noise_multiplier:g}, clip"
            f" {privacy.statistics_clip:g}"
            if config.model.item_rates == "private"
            else ""
        )
        + _of_evaluation(config)
    )


def _of_evaluation(config: PartnerConfig) -> str:
    evaluation, privacy = config.evaluation, config.privacy
    if not evaluation.by_partners:
        return ""
    return (
        f"; at most {evaluation.releases} evaluations a run with noise multiplier"
        f" {privacy.evaluation_noise_multiplier:g}"
    )


def _held_out(config: PartnerConfig) -> str:
    """Says how many rows train and how many are held out; this partner's own to know."""
    if not config.evaluation.by_partners:
        return 'evaluation.at = "server": no row is held out here'
    clicks = read_clicks(Path(config.clicks), load_card(Path(config.card)), allow_one_class=True)
    rows = Erased(Path(config.state)).without(clicks.rows)
    train_N, test_N = (side_N & impressions_N(rows) for side_N in rule_of(config.evaluation).sides(rows))
    if not train_N.any():
        raise ConfigError(
            f"all {len(rows)} rows are held out ({_said(config)}), and none trains: agree on another rule"
        )
    users = rows.loc[test_N, "user"].nunique()
    return f"{int(test_N.sum())} rows of {users} users are held out ({_said(config)}), {int(train_N.sum())} rows train"


def _said(config: PartnerConfig) -> str:
    evaluation = config.evaluation
    since = (
        ""
        if evaluation.from_time is None
        else f"since {datetime.fromtimestamp(evaluation.from_time, UTC):%Y-%m-%d %H:%M:%S} UTC"
    )
    share = "" if evaluation.user_share is None else f"{evaluation.user_share:g} of users"
    return ", ".join(filter(None, (share, since)))


def _labels(config: PartnerConfig) -> Finding:
    columns = load_card(Path(config.card)).columns
    for role, column in (("purchased", columns.purchased), ("history", columns.history)):
        if column:
            raise ConfigError(
                f'privacy.mode = "label" protects click labels alone, and the data card maps a column as {role}; take'
                f" `{role}` out of the card's [columns]"
            )
    privacy = config.privacy
    of_one, rows = privacy.epsilon_of_a_label, privacy.max_impressions_per_user
    says = (
        f'mode "label": each click label is flipped with probability {privacy.flip_probability:.3g}: epsilon {of_one:g}'
        f" of one label, {rows * of_one:g} of all labels of one user with {rows} rows; NOT protected:"
        f" {'; '.join(NOT_PROTECTED)}"
    )
    return Finding("noise", True, says, warns=True)


def _budget(config: PartnerConfig) -> str:
    ledger, privacy = Ledger(Path(config.ledger), config.name), config.privacy
    budget = Budget(ledger, privacy, HeadFile(Path(config.state)))
    budget.require_whole()
    head = ledger.verify()
    if privacy.mode == "none":
        return f"{head.num_records} records, chain verified; no budget applies"
    spent, texts = budget.counted(), []
    for view, bound in bounds_of(privacy).items():
        paid = epsilon(as_seen(spent, view), privacy.delta)
        if paid >= bound:
            raise ConfigError(
                f"epsilon {rounded_up(paid)} of {bound:g} is spent ({view}): every round will be refused;"
                " a budget is this partner's own to raise"
            )
        texts.append(f"epsilon {rounded_up(paid)} of {bound:g} spent ({view})")
    span = f", in {privacy.period_days} days" if privacy.period_days else ""
    return f"{head.num_records} records, chain verified; {', '.join(texts)} at delta {privacy.delta:g}{span}"


def _state(config: PartnerConfig) -> str:
    folder = Path(config.state)
    there = folder if folder.exists() else next(one for one in folder.parents if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"state = {folder}: {there} cannot be written to; mend its owner or mode")
    return f"{folder} can be written to" if there == folder else f"{folder} will be made"


def _overlap(config: PartnerConfig) -> str:
    policy = config.overlap
    if not policy.partners:
        return "overlap.partners is empty: no counts of shared users are asked or answered"
    _, roster = own_membership(config)
    strangers = sorted(
        {*policy.partners} - {member.name for member in roster.members} | {*policy.partners} & {config.name}
    )
    if strangers:
        raise ConfigError(f"overlap.partners: {', '.join(strangers)}: not another member of the roster")
    masked = "with a shared secret" if load_secret(policy) else "without a shared secret"
    return f"counts with {', '.join(policy.partners)}, {masked}, of {policy.least_users} users or more"


_LOOKS: tuple[tuple[str, Callable[[PartnerConfig], str | Finding]], ...] = (
    ("card and clicks", _clicks),
    ("sensitive columns", _sensitive),
    ("held-out rows", _held_out),
    ("encoder", _encoder),
    ("identity and roster", _membership),
    ("noise", _noise),
    ("ledger and budget", _budget),
    ("state folder", _state),
    ("overlap", _overlap),
)
