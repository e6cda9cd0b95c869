"""What leaves a partner in the clear must not depend on its data: with one user more, the same messages.

Two short runs of the deployed apps that differ in one partner's data are compared message by message: how many, of
which types, of which sizes, and every number in them. Texts and bytes are keys, seals, signatures and masked words,
which are random in each run; their sizes are compared. How long an answer takes is not looked at.
"""

from collections import Counter

import numpy as np
import pandas as pd

from simulations.audit.findings import Finding
from simulations.audit.observed import Observation

_MOST_ROWS = 4096  # of a user: the most that a worker looks at


def neighbours(log: pd.DataFrame, generator: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Returns a name -> the log of a partner with one user more, or one less."""
    users = log["user"].unique()
    heavy = log.iloc[np.zeros(min(_MOST_ROWS, 50 * len(log)), int)].assign(user="hushclick-neighbour")
    moments = int(log["time"].min()) + np.sort(generator.integers(0, 10**6, len(heavy))) + np.arange(len(heavy))
    heavy = heavy.assign(time=moments.astype("int64"))
    for column, blank in (("slate", ""), ("history", 0)):
        if column in heavy:
            heavy[column] = blank
    heavy = heavy.astype({column: log[column].dtype for column in log.columns})
    found = {f"one user more, of {len(heavy)} rows": pd.concat([log, heavy], ignore_index=True)}
    one_row = heavy.head(1).assign(clicked=np.array([1 - int(heavy["clicked"].iloc[0])], "int8"))
    if "purchased" in one_row:
        one_row = one_row.assign(purchased=np.zeros(1, "int8"))
    found["one user more, of one row"] = pd.concat([log, one_row.astype(heavy.dtypes.to_dict())], ignore_index=True)
    if len(users) > 1:
        found["one user less"] = log[log["user"] != users[0]].reset_index(drop=True)
    return found


def compare(without: Observation, runs: dict[str, Observation]) -> Finding:
    """Returns whether the messages of all runs are those of the first, as far as anybody can read them."""
    expected = _messages(without)
    for name, seen in runs.items():
        found = _messages(seen)
        if found == expected:
            continue
        only = sorted((found - expected).keys() | (expected - found).keys(), key=str)
        node, kind, clear = only[0]
        says = f"{name}: what partner {node - 2} answers to {kind} differs: {_difference(only) or clear}"
        return Finding(
            test="control flow",
            adversary="server",
            verdict="violation",
            says=says,
            figures={"neighbour": name, "messages_that_differ": len(only)},
        )
    says = f"{sum(expected.values())} answers are the same in number, type, size and every number in the clear"
    says += f" with {', '.join(runs)}; time is not looked at"
    figures = {"messages": sum(expected.values()), "neighbours": list(runs)}
    return Finding(test="control flow", adversary="server", verdict="holds", says=says, figures=figures)


Message = tuple[int, str, tuple[tuple[str, object], ...]]


def _messages(seen: Observation) -> Counter[Message]:
    return Counter((answer.node, answer.message_type, answer.clear) for answer in seen.answers)


def _difference(messages: list[Message]) -> str:
    """Returns, in words, the first field in which two answers of one kind differ."""
    first = messages[0]
    for other in messages[1:]:
        if other[:2] == first[:2]:
            fields = sorted(set(first[2]) ^ set(other[2]), key=str)
            return "; ".join(f"{name} = {value}" for name, value in fields[:4])
    return ""
