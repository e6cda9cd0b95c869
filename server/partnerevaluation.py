"""The model on the rows that partners hold out: one noised, summed histogram of scores after the rounds that are due.

`evaluation/round-NNNNNN.json` in the run folder is a histogram as it came out of the secure sum. It is asked for once:
a run that goes on goes on with it, and figures are made of it as often as one likes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from common.config import STRICT, Config
from common.errors import BudgetExhausted, CheckpointError, TooFewPartners
from common.histogram_messages import EvaluationTask, score_terms_hash
from common.noise_shares import noise_shares
from common.runfolder import RunFolder, write_json
from common.schedule import rounds_evaluated, run_of_evaluation
from common.scorehistogram import terms_of
from server.joining import say
from server.noisysums import NoisySums, Summed, grid_bits
from server.scorefigures import Scores, partner_figures

SCORES_VERSION = 1

_SPARE = 4.0  # users who have rows held out, over those who are declared: these train


@checked(frozen=True, config=STRICT)
class Written:
    """What a histogram is written as."""

    version: int
    round: Annotated[int, Field(ge=0)]
    contributors: Annotated[int, Field(ge=1)]
    grid: Annotated[int, Field(ge=1, le=2**24)]  # whole numbers in a vector as long as its clip
    sums: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass
class PartnerEvaluation:
    """The histograms of scores of one run.

    Attributes:
        sums: asks the partners.
        config: of the run.
        folder: of the run.
        run_id: of the run.
        layout: fingerprint of the model's layout.
        declared: users that all partners declare together.
    """

    sums: NoisySums
    config: Config
    folder: RunFolder
    run_id: str
    layout: str
    declared: int

    def due(self, round_number: int) -> bool:
        """Returns whether the model after a round is to be evaluated."""
        return round_number in rounds_evaluated(self.config.round.num_rounds, self.config.evaluation.releases)

    def figures(self, round_number: int, model_D: NDArray[np.float32], told: bytes) -> dict[str, Any]:
        """Returns the figures of the model after a round, of a histogram that is there or asked for now.

        Args:
            round_number: of the run.
            model_D: the global model after it.
            told: what partners were told to make features with.

        Raises:
            BudgetExhausted: where too few partners have budget left for it.
            TooFewPartners: where it does not come about.
        """
        path = self._home / f"round-{round_number:06d}.json"
        if not path.exists():
            self._ask(round_number, model_D, told, path)
        found = read_scores(path)
        return {"round": round_number, "contributed": found.contributors} | partner_figures(
            self.scores(found), self.config.round.seed
        )

    def scores(self, found: Written) -> Scores:
        """Returns the counts of a histogram as written."""
        config = self.config
        privacy = config.privacy
        terms = terms_of(config.evaluation, privacy, config.model.prior_click_rate)
        in_rows = terms.clip / found.grid if terms.clip else 1.0
        noise = self.sums.deviation(privacy.evaluation_noise_multiplier, found.contributors) if terms.clip else 0.0
        flips = privacy.flip_probability if privacy.mode == "label" else 0.0
        return Scores(np.array(found.sums) * in_rows, noise * terms.clip, terms, flips)

    def _ask(self, round_number: int, model_D: NDArray[np.float32], told: bytes, path: Path) -> None:
        config, home = self.config, self._home / f"unmask-{round_number:06d}"
        bits = self._grid_bits()
        task = EvaluationTask(
            run_of_evaluation(self.run_id, round_number), bits, config.evaluation.bins, self.layout, model_D
        )
        shared = score_terms_hash(config.model, config.privacy, config.evaluation, noise_shares(config), told)
        summed: Summed = self.sums.collect(task, shared, home, round_number)
        write_json(
            path,
            {
                "version": SCORES_VERSION,
                "round": round_number,
                "contributors": summed.count,
                "grid": 2**bits,
                "sums": summed.sum_D.reshape(2, -1).tolist(),
            },
        )
        self.sums.end(home)

    def _grid_bits(self) -> int:
        config, units = self.config, _SPARE * self.declared
        if config.privacy.unit == "impression":
            units *= min(config.evaluation.max_rows, config.privacy.units_per_user)
        users = units / (1 - (config.evaluation.user_share or 0.0))
        noise = self.sums.deviation(config.privacy.evaluation_noise_multiplier, len(self.sums.nodes))
        return grid_bits(config.privacy.grid_bits, users, noise)

    @property
    def _home(self) -> Path:
        return self.folder.root / "evaluation"


def evaluate_after(
    evaluation: PartnerEvaluation | None,
    rounds: list[dict[str, Any]],
    model_D: NDArray[np.float32],
    told: bytes,
    *,
    last: bool = False,
) -> BudgetExhausted | None:
    """Has partners evaluate the model after the last round, where that is due: its record gets figures, or why not.

    A histogram that is on the disk is not asked for again, so that this may be called as often as one likes.

    Args:
        evaluation: of the run; None = there is none at the partners.
        rounds: the records so far.
        model_D: the global model after them.
        told: what partners were told to make features with.
        last: no round follows: the model is evaluated even if it was to be trained further.

    Returns:
        The refusal of budgets, where that is why there are no figures.
    """
    if evaluation is None or not rounds:
        return None
    number = rounds[-1]["round"]
    if "auc" in rounds[-1].get("partners", {}) or not (last or evaluation.due(number)):
        return None
    try:
        rounds[-1]["partners"] = evaluation.figures(number, model_D, told)
    except (BudgetExhausted, TooFewPartners, CheckpointError) as error:
        say("evaluation", f"round {number} was not evaluated at the partners: {error}")
        rounds[-1]["partners"] = {"round": number, "error": str(error)}
        return error if isinstance(error, BudgetExhausted) else None
    return None


def read_scores(path: Path) -> Written:
    """Returns a histogram as written.

    Raises:
        CheckpointError: where it is damaged, or of another version.
    """
    data, version = path.read_bytes(), None
    try:
        version = json.loads(data)["version"]
        found = TypeAdapter(Written).validate_json(data)
    except (ValueError, ValidationError, KeyError, TypeError):
        found = None
    if version not in (None, SCORES_VERSION):
        raise CheckpointError(
            f"{path.name}: version {version!r:.20}, and this release reads {SCORES_VERSION}; go on with the release"
            " that wrote it"
        )
    if found is None or len(found.sums[0]) != len(found.sums[1]):
        raise CheckpointError(f"{path.name}: damaged; partners give no second histogram of this round")
    return found
