"""What a sweep costs the people in its clicks.

On generated clicks, and on logs that are public anyway, nothing. On private ones (`data.source = "files"`) every cell's
releases are charged like any other: one ledger per partner holds them all, over all cells and resumes, and the
partner's budget bounds what they come to together.

A pooled cell trains on the users of every partner at once, so its whole run is charged to every partner's ledger before
it starts; a ledger of its own then keeps it to what was charged.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from client.budget import Budget
from common.config import Config, PrivacyConfig
from common.errors import BudgetExhausted, ConfigError, UsageError
from common.noise_shares import noise_shares
from common.privacy.accounting import MAX_EPSILON, composed_epsilon, merge, rounded_up
from common.privacy.events import DpEvent
from common.privacy.ledger import Ledger
from common.privacy.releases import training_event
from common.privacy.views import View, as_seen, bounds_of, noise_left
from common.runfolder import RunFolder, partner_name, write_json
from common.schedule import histograms_cost
from common.secagg.wire import SessionId
from simulations.sizes import busiest
from simulations.sweep_grid import LEAST_SEEDS, Cell

_FREE = {
    "generated": "generated clicks are nobody's",
    "movielens": "the clicks of MovieLens are published",
    "mind": "the clicks of MIND are published",
    "movietweetings": "the clicks of MovieTweetings are published",
}
_TOLERANCE = 1e-9  # as the budget's own
Group = tuple[float, float, int, int]  # sampling rate, noise multiplier, steps, parts of the noise


def is_private(config: Config) -> bool:
    """Returns whether a configuration's clicks are people's own, so that what is released of them is charged."""
    return config.data.source not in _FREE


def why_free(config: Config) -> str:
    """Returns, in words, why nothing is charged."""
    return _FREE[config.data.source]


class Charges:
    """The ledgers of a sweep on private clicks, and the budget that they are held to.

    Formal guarantees:
        - what all cells of a sweep and all its resumes release of a partner's users is in that partner's one ledger
          before it is released;
        - a ledger's epsilon never exceeds the budget (`Budget`).

    Args:
        base: the sweep's configuration.
        folder: where the ledgers are.
        budget: epsilon that each partner allows the whole sweep; None = `privacy.epsilon` of the base.

    Raises:
        UsageError: for a budget out of range.
    """

    def __init__(self, base: Config, folder: Path, budget: float | None) -> None:
        privacy = base.privacy
        if budget is not None:
            if not 0 < budget < MAX_EPSILON:
                raise UsageError(f"--budget {budget:g}: over 0 and below {MAX_EPSILON:g}")
            privacy = replace(privacy, epsilon=budget)
        if privacy.mode == "none":
            privacy = replace(privacy, mode="local")
        self.policy: PrivacyConfig = privacy
        self.folder = folder
        self.names = [partner_name(number) for number in range(base.data.partners)]

    def charged(self, cell: Cell) -> Config:
        """Returns a cell's configuration under the sweep's budget: its noise is its own, the bound is everybody's.

        A pooled cell is bounded by the very epsilon that was charged for it, and not a step more.
        """
        privacy, config = cell.config.privacy, cell.config
        if cell.mode == "pooled":
            ((rate, noise, steps, _),) = groups_of(cell)
            bound = composed_epsilon(((rate, noise, steps),), privacy.delta)
            return replace(config, privacy=replace(privacy, epsilon=bound))
        return replace(config, privacy=replace(privacy, epsilon=self.policy.epsilon))

    def folder_of(self, cell: Cell, root: Path) -> RunFolder:
        """Returns the run folder of a cell, whose partners write into the sweep's ledgers."""
        return RunFolder(root, None if cell.mode == "pooled" else self.folder)

    def spent(self) -> dict[str, tuple[DpEvent, ...]]:
        """Returns partner -> all that its ledger holds."""
        return {name: self._ledger(name).events() for name in self.names}

    def epsilons(self, cells: Sequence[Cell] = ()) -> dict[View, float]:
        """Returns, by who learns, the largest epsilon of any partner's users: what is spent, and some cells more."""
        spent = self.spent().values()
        found: dict[View, float] = {}
        for view in bounds_of(self.policy):
            found[view] = max(self._composed(events, cells, view) for events in spent)
        return found

    def _composed(self, events: Iterable[DpEvent], cells: Sequence[Cell], view: View) -> float:
        seen = [(event.sampling_rate, event.noise_multiplier, event.steps) for event in as_seen(events, view)]
        planned = [
            (rate, noise_left(noise, shares, view), steps)
            for cell in cells
            for rate, noise, steps, shares in groups_of(cell)
        ]
        return composed_epsilon(merge([*seen, *planned]), self.policy.delta)

    def over(self, cells: Sequence[Cell]) -> tuple[View, float, float] | None:
        """Returns by whose view some cells more would exceed the budget, what it would come to, and the bound."""
        bounds = bounds_of(self.policy)
        for view, epsilon in self.epsilons(cells).items():
            if epsilon > bounds[view] * (1 + _TOLERANCE):
                return view, epsilon, bounds[view]
        return None

    def require_affordable(self, cells: Sequence[Cell]) -> None:
        """Refuses a sweep that would not fit, before anything of it is run.

        Raises:
            BudgetExhausted: with what it would come to, and what would fit.
        """
        found = self.over(cells)
        if found is None:
            return
        view, epsilon, bound = found
        key = "privacy.epsilon" if view == "server" else f"privacy.epsilon_{view}"
        come_to = f"epsilon {rounded_up(epsilon)}" if epsilon < float("inf") else "no finite epsilon"
        raise BudgetExhausted(
            f"{len(cells)} runs on the same people would come to {come_to} at each partner, per {self.policy.unit}"
            f" (PLD, at delta {self.policy.delta:g}), and the budget is {key} = {bound:g}; nothing was run."
            f" {self._mend(cells, view)}"
        )

    def _mend(self, cells: Sequence[Cell], view: View) -> str:
        seeds = max(cell.seed for cell in cells)
        for fewer in range(seeds - 1, LEAST_SEEDS - 1, -1):
            if self.over([cell for cell in cells if cell.seed <= fewer]) is None:
                return f"--seeds {fewer} would fit, or raise the budget with --budget"
        allow = "--budget" if view == "server" else f"privacy.epsilon_{view}"
        return f"Fewer or smaller --epsilon, fewer --modes or --vary, or a raised budget ({allow}), would fit"

    def charge_pooled(self, cell: Cell, root: Path) -> None:
        """Charges a whole pooled run to every partner, once for a folder: the ledger in it then allows no more.

        Raises:
            BudgetExhausted: where it exceeds a partner's budget; what other partners were charged stays.
        """
        receipt = root / "charged.json"
        if receipt.is_file():
            return
        for name in self.names:
            ledger = self._ledger(name)
            event = _pooled_event(cell)
            earlier = sum(past.run_id == event.run_id for past in ledger.events())  # in a folder that was removed
            budget = Budget(ledger, replace(self.policy, mode="local"))
            budget.commit(budget.reserve(replace(event, attempt=earlier)))
        write_json(receipt, _pooled_event(cell).to_dict())

    def _ledger(self, name: str) -> Ledger:
        return Ledger(self.folder / f"{name}.jsonl", name)


def _pooled_event(cell: Cell) -> DpEvent:
    """Returns the facts of a whole pooled run as one release: its steps have the same noise and rate."""
    config = cell.config  # of one holder, who adds the whole noise
    return training_event(config.privacy, 1, SessionId(f"sweep {cell.name}"[:200], 0, 0), config.round.num_rounds)


def groups_of(cell: Cell) -> tuple[Group, ...]:
    """Returns what a cell's run releases of the partner that takes part most often."""
    privacy, steps = cell.config.privacy, busiest(cell.config)[-1] * cell.config.round.local_steps
    shares = noise_shares(cell.config)
    histograms = histograms_cost(cell.config, cell.config.round.num_rounds)
    return (
        (privacy.sampling_rate, privacy.noise_multiplier or 0.0, steps, shares),
        *((*group, shares) for group in histograms),
    )


def require_chargeable(base: Config, cells: Sequence[Cell]) -> None:
    """Refuses what no ledger can hold.

    Raises:
        ConfigError: for runs without noise on private clicks, and for other users behind one ledger.
    """
    if any(cell.mode == "none" for cell in cells):
        raise ConfigError(
            f'--modes none: a run without noise on private clicks (data.source = "{base.data.source}") has no finite'
            " epsilon, and every later cell would be refused; leave it out"
        )
    if any(cell.data != base.data for cell in cells):
        raise ConfigError(
            "--vary data.KEY, or --set-for MODE:data.KEY: on private clicks a partner's ledger is for its users, and"
            " they must be the same in every cell; sweep each value into a folder of its own"
        )
    rates = {cell.config.privacy.delta for cell in cells}
    units = {cell.config.privacy.unit for cell in cells}
    if len(rates) > 1 or len(units) > 1:
        raise ConfigError(
            "--vary privacy.delta or privacy.unit: one ledger has one delta and one unit; sweep each value into a"
            " folder of its own"
        )


def require_no_budget(base: Config, budget: float | None) -> None:
    """Refuses a budget where nothing is charged: whoever gives one believes otherwise."""
    if budget is not None:
        raise UsageError(f"--budget {budget:g}: nothing is charged, {why_free(base)}; leave it out")
