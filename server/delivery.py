"""The signed model on its way back to the partners that made it."""

from collections.abc import Mapping
from typing import Any

from flwr.serverapp import Grid

from common.message_types import QUERY_MODEL
from common.messages import ModelTask
from server.joining import say, take_nothing
from server.round import exchange


def deliver(
    grid: Grid, run_id: str, nodes: Mapping[str, int], files: dict[str, bytes], timeout_seconds: float
) -> dict[str, Any]:
    """Hands the model to every partner, also to those whose budget is spent; returns to how many of how many it went.

    Whoever refuses, or does not answer in time, is named with its reason and fails nothing: the model is there.
    """
    task = ModelTask(run_id, files).to_record()
    outcome = exchange(grid, QUERY_MODEL, dict.fromkeys(nodes.values(), task), "model", timeout_seconds, take_nothing)
    facts: dict[str, Any] = {"to": len(nodes) - len(outcome.failures), "of": len(nodes)}
    failures = {partner: outcome.failures[node] for partner, node in nodes.items() if node in outcome.failures}
    if failures:
        facts["failures"] = failures
    say("delivered", f"final model delivered to {facts['to']} of {facts['of']} partners", failures=failures)
    return facts
