"""`hushclick predict WORKER.toml | MODEL`: a click log's rows under a signed model, and how good the scores are.

Nothing leaves this machine and no budget is charged: the scores are of the log's owner and stay with it.
"""

import argparse
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rich.console import Console

from client.erasure import Erased
from client.next_items import next_items
from client.partner import PartnerConfig, load_partner
from client.personalising import personal_of
from client.predicting import (
    Floats,
    Usable,
    figures_of,
    item_counts,
    predictions,
    read_rows,
    scores_table,
    usable,
)
from client.received import Received
from common.card import DataCard, load_card
from common.clicks import impressions_N
from common.config import apply_override
from common.errors import UsageError
from common.keyfiles import load_signing_public
from common.lineage import read_model_folder, verified
from common.pretrained import Pretrained, locate
from common.runfolder import jsonable, write_atomically

_WIDTH = 110
_OWN = "these are rows that the model was trained on: the figures say nothing of how it does on new ones"


@dataclass(frozen=True)
class Asked:
    """What is to be scored, with which model."""

    model: Path
    key: Ed25519PublicKey
    pretrained: Pretrained
    cache: str
    clicks: Path
    card: Path
    partner: PartnerConfig | None
    own_log: bool


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures, and where the scores are; the scores go to --out, where one is named.

    Raises:
        UsageError: for options that the model or the partner lacks.
        ModelError: for a model that is unsigned, altered or of another base.
        DataError: for a log that cannot be used.
    """
    if arguments.next and arguments.out is None:
        raise UsageError("predict --next: needs --out DIR, where the items go")
    asked = _of_partner(arguments) if arguments.config.is_file() else _of_folder(arguments)
    use = usable(asked.model, asked.key, asked.pretrained, asked.cache)
    card = load_card(asked.card)
    read = read_rows(asked.clicks, card, Erased(Path(asked.partner.state)) if asked.partner else None)
    shown_N = impressions_N(read.rows)
    if not shown_N.any():
        raise UsageError(f"{asked.clicks}: no row is left to score: {read.dropped}")
    rows = read.rows[shown_N]
    counts = item_counts(use, asked.partner, own_log=asked.own_log)
    personal = personal_of(use, asked.model, asked.partner)
    predicted = {
        kind: scored.part(shown_N)
        for kind, scored in predictions(use, read.rows, counts, own_log=asked.own_log, personal=personal).items()
    }
    in_log = {kind: found.in_log(card.click.unclicked_kept) for kind, found in predicted.items()}
    found: dict[str, Any] = {
        "model": str(asked.model),
        "run_id": use.lineage.run_id,
        "rounds": len(use.lineage.rounds),
        "signed_by": use.lineage.signed_by,
        "privacy": use.lineage.privacy.sentence,
        "clicks": str(asked.clicks),
        "rows": len(rows),
        "history_rows": len(read.rows) - len(rows),
        "users": int(rows["user"].nunique()),
        "dropped": read.dropped,
        "figures": figures_of(rows, in_log["raw"].click_N),
        "calibrated": figures_of(rows, in_log["calibrated"].click_N) if "calibrated" in in_log else None,
        "personal": personal.facts() | figures_of(rows, in_log["personal"].click_N) if personal else None,
        "purchases": _purchases(rows, in_log["raw"].purchase_N),
        "unknown_items": use.item_rates.num_unknown(rows) if use.item_rates else None,
        "note": " ".join(_notes(asked, card, use)),
        "scores": None,
        "next": None,
    }
    if arguments.out is not None:
        os.umask(0o077)  # who was shown what, and when: nobody else's to read
        path = arguments.out / f"scores.{arguments.format}"
        write_atomically(path, _written(scores_table(rows, predicted, card), arguments.format))
        found["scores"] = str(path)
        if arguments.next:
            path = arguments.out / f"next.{arguments.format}"
            write_atomically(path, _written(next_items(use, read.rows, counts, card, arguments.next), arguments.format))
            found["next"] = str(path)
    result: dict[str, Any] = jsonable(found)
    return result


def _purchases(rows: pd.DataFrame, purchase_N: Floats | None) -> dict[str, Any] | None:
    if purchase_N is None or "purchased" not in rows:
        return None
    return figures_of(rows, purchase_N, "purchased")


def _notes(asked: Asked, card: DataCard, use: Usable) -> list[str]:
    notes = [_OWN] if asked.own_log else []
    if card.click.unclicked_kept != use.config.unclicked_kept:
        notes.append(
            f"the training logs hold {use.config.unclicked_kept:g} of the unclicked rows, this one"
            f" {card.click.unclicked_kept:g}: probabilities are corrected for it, and features of a user's own past"
            " rates, which are higher where fewer unclicked rows are kept, are not"
        )
    return notes


def show(result: dict[str, Any], _arguments: argparse.Namespace) -> None:
    """Prints which model scored what, the figures with their intervals, and where the scores are."""
    console = Console(width=_WIDTH)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(f"model of run {result['run_id']}, {result['rounds']} rounds, signature and files verified")
    dropped = "".join(f"; {count} rows {reason}: left out" for reason, count in result["dropped"].items())
    dropped += f"; {result['history_rows']} rows of history, not scored" if result["history_rows"] else ""
    say(f"{result['rows']} rows of {result['users']} users in {result['clicks']}{dropped}")
    if result["unknown_items"]:
        say(f"{result['unknown_items']} rows are of items that the statistics do not know: scored with the base rate")
    for name, spelt in (("auc", "AUC"), ("log_loss", "log loss"), ("ne", "normalised entropy")):
        say(f"  {spelt}: {_figure(result['figures'], name)}")
        if result["calibrated"] and name != "auc":
            say(f"    calibrated: {_figure(result['calibrated'], name)}")
    if result["personal"]:
        say(_personal_line(result["personal"]))
    if result["purchases"]:
        say(f"  AUC of purchases: {_figure(result['purchases'], 'auc')}")
    if result["note"]:
        say(result["note"])
    if result["scores"]:
        say(f"scores: {result['scores']}")
    if result["next"]:
        say(f"next items: {result['next']}")


def _personal_line(found: dict[str, Any]) -> str:
    if found["before"] is None:
        return f"  personal correction ({found['kind']}): not used, its clicks cannot be judged"
    said = (
        f"log loss {found['before']:.4f} to {found['after']:.4f} on {found['judged_users']} users that it did not see"
    )
    return (
        f"  personal correction ({found['kind']}, fitted on {found['fitted_users']} users):"
        f" {'used' if found['used'] else 'not used'}, {said}; made of clicks without noise: keep its scores here"
    )


def _figure(figures: dict[str, Any], name: str) -> str:
    value, (low, high) = figures[name], figures["intervals"][name]
    if value is None:
        return "not defined: all of these rows are clicked, or none"
    return f"{value:.4f}" + ("" if low is None else f", 95 % interval over users [{low:.4f}, {high:.4f}]")


def _of_partner(arguments: argparse.Namespace) -> Asked:
    if arguments.set:
        raise UsageError("predict WORKER.toml takes no --set: a partner's own file says where its encoder is")
    if (arguments.clicks is None) != (arguments.card is None):
        raise UsageError("predict: --clicks and --card go together: the card says which column plays which role")
    config = load_partner(arguments.config)
    key = arguments.key or (Path(config.signing_key) if config.signing_key else None)
    if key is None:
        raise UsageError(f"{arguments.config}: signing_key is unset; name the kit's signing.pub there, or give --key")
    pretrained = locate(config.model.encoder, config.model.encoder_sha256, config.model.cache)
    return Asked(
        model=arguments.model or Received(config, pretrained).latest(),
        key=load_signing_public(key),
        pretrained=pretrained,
        cache=config.model.cache,
        clicks=arguments.clicks or Path(config.clicks),
        card=arguments.card or Path(config.card),
        partner=config,
        own_log=arguments.clicks is None,
    )


def _of_folder(arguments: argparse.Namespace) -> Asked:
    if not arguments.config.is_dir():
        raise UsageError(f"{arguments.config}: no such worker.toml and no such model folder")
    if arguments.model is not None:
        raise UsageError("predict: give the model's folder once: as MODEL, or as --model beside a worker.toml")
    for flag, value in (
        ("--key FILE", arguments.key),
        ("--clicks FILE", arguments.clicks),
        ("--card FILE", arguments.card),
    ):
        if value is None:
            raise UsageError(f"predict {arguments.config}: a model's folder alone needs {flag}")
    own: dict[str, Any] = {}
    for override in arguments.set:
        apply_override(own, override)
    model = own.get("model", {})
    if own.keys() - {"model"} or not isinstance(model, dict) or model.keys() - {"encoder", "cache"}:
        raise UsageError("predict MODEL: --set takes model.encoder and model.cache: where this machine has them")
    key = load_signing_public(arguments.key)
    named = verified(read_model_folder(arguments.config), key).base.encoder  # not believed before its signature
    cache = str(model.get("cache", ""))
    return Asked(
        model=arguments.config,
        key=key,
        pretrained=locate(str(model.get("encoder", named)), cache=cache),
        cache=cache,
        clicks=arguments.clicks,
        card=arguments.card,
        partner=None,
        own_log=False,
    )


def _written(table: pd.DataFrame, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "csv":
        table.to_csv(buffer, index=False)
    else:
        table.to_parquet(buffer, index=False)
    return buffer.getvalue()
