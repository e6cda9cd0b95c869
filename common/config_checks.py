"""Values of a configuration that are fine by themselves and contradict each other: one line each, with the mend."""

import math
from typing import TYPE_CHECKING

from common.secagg.graph import MOST_COMPLETE

if TYPE_CHECKING:  # `Config` calls this while it is made
    from common.config import AggregationConfig, Config, EvaluationConfig, ModelConfig, PrivacyConfig, SimulationConfig

MOST_LABEL_EPSILON = 20.0


def contradictions(config: "Config") -> list[str]:
    """Returns one line per pair of values that contradict each other."""
    problems = []
    rounds, privacy, data = config.round, config.privacy, config.data
    if privacy.noised and rounds.local_steps > privacy.max_local_steps:
        problems.append(
            f"round.local_steps = {rounds.local_steps}: at most privacy.max_local_steps = {privacy.max_local_steps};"
            " lower the one or raise the other"
        )
    if data.measure_click_rate and privacy.mode != "none":
        problems.append(
            "data.measure_click_rate = true: a measured rate is not private; set it to false and model.prior_click_rate"
            ' to what is publicly known, or privacy.mode to "none"'
        )
    problems += tuning_checks(config.model)
    problems += item_rate_checks(config.model.item_rates, privacy, config.aggregation.method)
    problems += label_checks(privacy)
    problems += [*evaluation_checks(config.evaluation, config.aggregation.method), *_schedule_checks(config)]
    if privacy.mode == "label" and data.source == "generated" and data.generator.purchase_rate > 0:
        problems.append(
            f'data.generator.purchase_rate = {data.generator.purchase_rate:g}: must be 0 with privacy.mode = "label",'
            " which protects click labels and no purchase"
        )
    if rounds.partners_per_round > data.partners:
        problems.append(
            f"round.partners_per_round = {rounds.partners_per_round}: at most data.partners = {data.partners}"
        )
    cohort = rounds.partners_per_round or data.partners
    if config.aggregation.min_partners > cohort:
        problems.append(
            f"aggregation.min_partners = {config.aggregation.min_partners}: at most the {cohort} partners of a round;"
            " lower it, or raise data.partners or round.partners_per_round"
        )
    problems += [*_secure_checks(config.aggregation, cohort), *_distributed_checks(config)]
    problems += [*_attack_checks(config.simulation, config), *_course_checks(config)]
    if data.source in ("files", "movietweetings") and not data.path:
        problems.append(f'data.path is empty: data.source = "{data.source}" needs it')
    if data.source == "files" and not data.card:
        problems.append('data.card is empty: data.source = "files" needs a data card (TOML) that names the columns')
    return problems


def tuning_checks(model: "ModelConfig") -> list[str]:
    """Returns what fine-tuning settings contradict each other, in a run's file and in a partner's own."""
    problems: list[str] = []
    if model.tune == "top_layers" and model.tune_layers == 0:
        problems.append('model.tune_layers = 0: all layers; write model.tune = "full" for that, or a number of layers')
    if model.tune == "adalora" and model.tune_final_rank > model.tune_rank:
        problems.append(
            f"model.tune_final_rank = {model.tune_final_rank:g}: at most model.tune_rank = {model.tune_rank}, with"
            " which training begins; lower the one or raise the other"
        )
    return problems


def item_rate_checks(rates: str, privacy: "PrivacyConfig", method: str) -> list[str]:
    """Returns what item rates ask of the rest, in a run's file and in a partner's own.

    Args:
        rates: `model.item_rates`.
        privacy: the privacy table.
        method: `aggregation.method`.
    """
    problems: list[str] = []
    if rates == "exact" and privacy.mode != "none":
        problems.append(
            'model.item_rates = "exact": exact item means are not private; set it to "private" or "none", or'
            ' privacy.mode to "none"'
        )
    if rates == "private" and privacy.mode == "none":
        problems.append(
            'model.item_rates = "private": needs noise, and privacy.mode = "none" adds none; set it to "exact" or'
            ' "none", or privacy.mode to "local" or "distributed"'
        )
    if rates == "private" and privacy.mode == "label":
        problems.append(
            'model.item_rates = "private" with privacy.mode = "label": its unit is the user, and a ledger keeps to one;'
            ' set it to "none", or privacy.mode to "local" or "distributed"'
        )
    if rates == "private" and method != "secure":
        problems.append('model.item_rates = "private": needs aggregation.method = "secure"')
    if rates == "private" and privacy.unit != "user":
        problems.append(
            f'model.item_rates = "private" with privacy.unit = "{privacy.unit}": its unit is the user, and a ledger'
            ' keeps to one; set privacy.unit to "user", or model.item_rates to "none"'
        )
    return problems


def label_checks(privacy: "PrivacyConfig") -> list[str]:
    """Returns what mode "label" asks of the privacy table alone, in a run's file and in a partner's own."""
    if privacy.mode != "label":
        return []
    of_one = privacy.epsilon_of_a_label
    problems = []
    if of_one > MOST_LABEL_EPSILON:
        problems.append(
            f"privacy.epsilon = {of_one:g}: at most {MOST_LABEL_EPSILON:g} for one label (privacy.label_epsilon unset);"
            " hardly any would be flipped"
        )
    if of_one > privacy.epsilon:
        problems.append(
            f"privacy.label_epsilon = {of_one:g}: at most privacy.epsilon = {privacy.epsilon:g}, or the budget refuses"
            " the first round"
        )
    if privacy.unit != "user":
        problems.append(
            f'privacy.unit = "{privacy.unit}": has no meaning with privacy.mode = "label", whose unit is the label;'
            " take the line out"
        )
    return problems


def evaluation_checks(evaluation: "EvaluationConfig", method: str) -> list[str]:
    """Returns what evaluation at the partners asks of the rest, in a run's file and in a partner's own.

    Args:
        evaluation: the evaluation table.
        method: `aggregation.method`.
    """
    if evaluation.by_partners and method != "secure":
        return ['evaluation.at = "partners": needs aggregation.method = "secure"; the server may see sums alone']
    if evaluation.by_partners:
        return []
    return [
        f'evaluation.{key} = {value!r}: holds nothing out with evaluation.at = "server"; set it to "partners", or take'
        " the line out"
        for key in ("from_time", "user_share")
        if (value := getattr(evaluation, key)) is not None
    ]


def _schedule_checks(config: "Config") -> list[str]:
    """Returns what evaluation at the partners asks of the course of a run."""
    evaluation, partners, problems = config.evaluation, config.data.partners, []
    if evaluation.by_partners and evaluation.releases > config.round.num_rounds:
        problems.append(
            f"evaluation.releases = {evaluation.releases}: at most one a round, round.num_rounds ="
            f" {config.round.num_rounds}"
        )
    if evaluation.by_partners and config.privacy.mode == "distributed" and partners > MOST_COMPLETE:
        problems.append(
            f'evaluation.at = "partners" with privacy.mode = "distributed" and {partners} partners: all are in one sum,'
            f" at most {MOST_COMPLETE}; lower data.partners"
        )
    return problems


def _distributed_checks(config: "Config") -> list[str]:
    """Returns what shared noise asks of the rest of a configuration."""
    problems: list[str] = []
    if config.privacy.mode != "distributed":
        return problems
    if config.aggregation.method != "secure":
        problems.append(
            'privacy.mode = "distributed": needs aggregation.method = "secure"; a part of the noise is not enough'
        )
    if config.round.local_steps != 1:
        problems.append(
            f'round.local_steps = {config.round.local_steps}: must be 1 with privacy.mode = "distributed"; a second'
            " local step would start from a model with only a part of the noise"
        )
    cohort = config.round.partners_per_round or config.data.partners
    if cohort > MOST_COMPLETE:
        problems.append(
            f'privacy.mode = "distributed" with {cohort} partners a round: at most {MOST_COMPLETE}, where every sum'
            " holds every part of the noise; lower round.partners_per_round"
        )
    if config.aggregation.groups != 1:
        problems.append(
            f'aggregation.groups = {config.aggregation.groups}: must be 1 with privacy.mode = "distributed"; the noise'
            " is sized for one sum over all"
        )
    return problems


def _secure_checks(aggregation: "AggregationConfig", cohort: int) -> list[str]:
    """Returns what secure aggregation asks of the size of a cohort."""
    problems = []
    if aggregation.method == "plain":
        if aggregation.groups > 1:
            problems.append(f'aggregation.groups = {aggregation.groups}: needs aggregation.method = "secure"')
        return problems
    least = max(3, aggregation.colluders + 2)
    if aggregation.min_partners < least:
        problems.append(
            f"aggregation.min_partners = {aggregation.min_partners}: a secure sum needs at least {least} partners"
            f" (aggregation.colluders = {aggregation.colluders}), or a single update could be worked out from it"
        )
    if aggregation.groups == 2:
        problems.append("aggregation.groups = 2: the median of two means is their mean; use 1, or at least 3")
    if aggregation.groups > 1 and cohort // aggregation.groups < aggregation.colluders + 3:
        problems.append(
            f"aggregation.groups = {aggregation.groups}: {cohort} partners make groups of"
            f" {cohort // aggregation.groups}, at least {aggregation.colluders + 3} are needed; use fewer groups"
            " or more partners"
        )
    return problems


def _course_checks(config: "Config") -> list[str]:
    """Returns what contradicts itself in which model a run ends with."""
    problems, server = [], config.server
    if server.patience and config.privacy.statistics_every:
        problems.append(
            f"server.patience = {server.patience} with privacy.statistics_every = {config.privacy.statistics_every}:"
            " the best model would be kept beside statistics of later rounds, which it was not trained with; set one"
            " of them to 0"
        )
    if server.optimiser != "fedavg" and config.model.tune == "adalora":
        problems.append(
            f'server.optimiser = "{server.optimiser}" with model.tune = "adalora": moments of earlier rounds are of'
            ' singular vectors that the server has since turned; set server.optimiser to "fedavg", or tune with "lora"'
        )
    if server.averaging != "none" and config.model.tune == "adalora":
        problems.append(
            f'server.averaging = "{server.averaging}" with model.tune = "adalora": a mean of products is no product of'
            ' the ranks that were allocated; set server.averaging to "none", or tune with "lora"'
        )
    if server.averaging == "tail" and math.floor(server.averaging_from * config.round.num_rounds) + 1 == (
        config.round.num_rounds
    ):
        problems.append(
            f"server.averaging_from = {server.averaging_from:g}: of round.num_rounds = {config.round.num_rounds} the"
            " last one alone would be averaged; lower it, or set server.averaging to another"
        )
    return problems


def _attack_checks(simulation: "SimulationConfig", config: "Config") -> list[str]:
    """Returns what contradicts itself in the attack that a simulation plays."""
    attack, attackers = simulation.attack, simulation.attackers
    problems = []
    if attackers and attack == "none":
        problems.append(f'simulation.attackers = {attackers}: simulation.attack = "none" gives them nothing to do')
    if attack != "none" and not attackers:
        problems.append(f'simulation.attack = "{attack}": nobody attacks; set simulation.attackers to at least 1')
    if attackers >= config.data.partners:
        problems.append(
            f"simulation.attackers = {attackers}: must be fewer than data.partners = {config.data.partners}"
        )
    if attack == "nan" and config.privacy.mode == "distributed":
        problems.append(
            'simulation.attack = "nan": contributions of privacy.mode = "distributed" are whole numbers, which hold no'
            ' NaN; use "garbage" or "boost"'
        )
    if attack == "garbage" and config.aggregation.method == "plain":
        problems.append(
            'simulation.attack = "garbage": it sends words of the masked ring, and aggregation.method = "plain" has'
            ' none; use "boost" or "nan"'
        )
    return problems
