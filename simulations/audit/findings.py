"""What one test of an audit found, and what all of them come to."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["holds", "violation", "warning", "no verdict"]

# Of two verdicts the one that says more wins.
_ORDER: tuple[Verdict, ...] = ("violation", "warning", "no verdict", "holds")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one test against one adversary.

    Attributes:
        test: name of the test.
        adversary: whose view was attacked; empty where the test is of the mechanism itself.
        verdict: "violation" where the claim is refuted at the test's confidence; "warning" where it is only under an
            assumption; "no verdict" where the test could not have refuted it.
        lower_bound: of epsilon, where the test gives one.
        claimed_epsilon: upper bound that is claimed against this adversary, where the test is about one.
        says: the result in one sentence.
        figures: what the sentence rests on, JSON-ready.
    """

    test: str
    adversary: str = ""
    verdict: Verdict
    lower_bound: float | None = None
    claimed_epsilon: float | None = None
    says: str
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the finding as JSON-ready fields."""
        return asdict(self)


def overall(findings: Iterable[Finding]) -> Verdict:
    """Returns the verdict of an audit: the gravest of its findings; of none, "no verdict".

    A test that could not have refuted the claim takes nothing from those that could and did not.
    """
    found = {one.verdict for one in findings}
    if not found:
        return "no verdict"
    if found & {"violation", "warning"} or found == {"no verdict"}:
        return min(found, key=_ORDER.index)
    return "holds"
