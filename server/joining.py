"""Who takes part: the partners that join, with the server's own model layout and roster."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.anchors import AnchorFile
from common.config import Config
from common.errors import ProtocolError, TooFewPartners
from common.message_types import QUERY_ANCHOR, QUERY_JOIN
from common.messages import AnchorTask, JoinReply, JoinTask
from common.secagg.roster import Roster
from server.round import Exchange, exchange

log = logging.getLogger("hushclick.run")

_JOIN_PAUSE_SECONDS = 0.2
_AGAIN_SECONDS = 5.0


def say(fact: str, text: str, **values: Any) -> None:
    """Tells whoever follows the run what happened."""
    log.info(text, extra={"fact": {"fact": fact} | values})


def join(grid: Grid, config: Config, run_id: str) -> tuple[dict[str, int], dict[str, JoinReply]]:
    """Waits for the partners and returns partner -> node id and partner -> what it said, in name order."""
    timeout, wanted = config.aggregation.timeout_seconds, config.data.partners
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < wanted and time.monotonic() < deadline:
        time.sleep(_JOIN_PAUSE_SECONDS)
    found: dict[str, tuple[int, JoinReply]] = {}

    def take(node: int, content: RecordDict) -> None:
        reply = JoinReply.from_record(content)
        if reply.partner in found:
            raise ProtocolError(f"two nodes say that they are {reply.partner}")
        found[reply.partner] = (node, reply)

    failures = _ask_all(grid, nodes, JoinTask(run_id).to_record(), timeout, deadline, take)
    least = min(wanted, max(config.aggregation.min_partners, 1))
    if len(found) < least:
        reasons = "; ".join(sorted(set(failures.values()))[:3]) or f"{len(nodes)} nodes are connected"
        raise TooFewPartners(f"{len(found)} of at least {least} partners joined: {reasons}")
    for reason in failures.values():
        say("left_out", f"a partner did not join: {reason}")
    names = sorted(found)
    return {name: found[name][0] for name in names}, {name: found[name][1] for name in names}


def _ask_all(
    grid: Grid,
    nodes: Sequence[int],
    task: RecordDict,
    timeout_seconds: float,
    deadline: float,
    take: Callable[[int, RecordDict], None],
) -> dict[int, str]:
    """Asks all nodes to join, and those that are not ready again until the deadline; returns who failed, and why."""
    failures: dict[int, str] = {}
    asked: Collection[int] = nodes
    while asked:
        outcome = exchange(grid, QUERY_JOIN, dict.fromkeys(asked, task), "join", timeout_seconds, take)
        for node in asked:
            failures.pop(node, None)
        failures |= outcome.failures
        asked = sorted(outcome.not_ready) if time.monotonic() + _AGAIN_SECONDS < deadline else ()
        if asked:
            say("waiting", f"{len(asked)} partners are connected and not ready yet: they are asked again")
            time.sleep(_AGAIN_SECONDS)
    return failures


def fitting(
    config: Config, replies: Mapping[str, JoinReply], layout: str, base: str, roster: Roster
) -> dict[str, JoinReply]:
    """Returns the partners that would train this very model with this very roster; the others are left out, and named.

    Args:
        config: the run's.
        replies: what each partner said of itself.
        layout: the server's `layout_fingerprint`, which covers the base weights.
        base: the server's own hash of the base weights, which says why a layout is another.
        roster: the server's.

    Raises:
        TooFewPartners: when too few are left.
    """
    alike = {partner: reply for partner, reply in replies.items() if reply.fingerprint == layout}
    reasons = {name: _difference(replies[name], layout, base) for name in replies if name not in alike}
    if config.aggregation.method == "secure":
        for partner in [name for name in alike if alike[name].roster != roster.hash.hex()]:
            del alike[partner]
            reasons[partner] = "its roster or its aggregation.method is another"
    for partner, reason in reasons.items():
        say("left_out", f"{partner} is left out: {reason}")
    if len(alike) < config.aggregation.min_partners:
        raise TooFewPartners(
            f"{len(alike)} of {len(replies)} partners have the server's model layout and roster,"
            f" {config.aggregation.min_partners} are needed: compare their encoder, [model] table, purchase column and"
            f" roster with the server's ({'; '.join(sorted(set(reasons.values()))[:3])})"
        )
    return alike


def _difference(reply: JoinReply, layout: str, base: str) -> str:
    if reply.base != base:
        return (
            f"its encoder has the fingerprint {reply.base[:12] or 'unsaid'}, the server's {base[:12]}: both need the"
            " same weights, configuration and tokenizer (`hushclick check` prints a partner's)"
        )
    return f"its model layout is {reply.fingerprint[:12]}, the server's {layout[:12]}: compare the [model] tables"


def anchored(
    grid: Grid,
    config: Config,
    run_id: str,
    nodes: Mapping[str, int],
    replies: Mapping[str, JoinReply],
    file: AnchorFile,
    round_number: int,
) -> dict[str, JoinReply]:
    """Returns the partners whose ledgers hold what was last seen of them; the others are left out, and named.

    It asks those alone whose ledger is known and stands elsewhere by now: none in a fresh run. What the partners said
    when they joined is written down last.

    Raises:
        TooFewPartners: when too few are left.
    """
    known = {
        nodes[partner]: AnchorTask(run_id, anchor).to_record()
        for partner, anchor in file.last().items()
        if partner in replies and replies[partner].anchor != anchor
    }
    outcome = Exchange()
    if known:
        outcome = exchange(grid, QUERY_ANCHOR, known, "anchor", config.aggregation.stage_timeout_seconds, take_nothing)
    kept = dict(replies)
    for partner in [name for name in replies if nodes[name] in outcome.failures]:
        del kept[partner]
        reason = outcome.failures[nodes[partner]]
        say("left_out", f"{partner} is left out: its ledger is not the one that was last seen ({reason})")
    if len(kept) < config.aggregation.min_partners:
        raise TooFewPartners(
            f"{len(kept)} of {len(replies)} partners have the ledger that was last seen,"
            f" {config.aggregation.min_partners} are needed: their own logs say more; where {file} is wrong, take out"
            " the lines that are"
        )
    file.append(run_id, round_number, {partner: reply.anchor for partner, reply in kept.items()})
    return kept


def take_nothing(_node: int, content: RecordDict) -> None:
    """Takes an empty reply; raises `ProtocolError` for any other."""
    if content:
        raise ProtocolError(f"a reply with the records {sorted(content)} where nothing was asked for")
