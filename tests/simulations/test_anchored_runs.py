"""What the server keeps of the partners' ledgers, over whole runs: a restored ledger does not go on."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from simulated_runs import run, small_config

from common.anchors import AnchorFile
from common.errors import LedgerError, TooFewPartners
from common.privacy.ledger import Ledger
from common.runfolder import RunFolder

PARTNERS, ROUNDS = 5, 2
ONE = "partner-0000"


def config(encoder: Path, method: str, **aggregation: Any) -> Any:
    return small_config(encoder, PARTNERS, ROUNDS, aggregation={"method": method, **aggregation})


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the server says of partners that it goes on without."""
    said: list[str] = []
    monkeypatch.setattr("server.joining.say", lambda fact, text, **_: said.append(text))
    return said


def ledger(folder: Path, name: str = ONE) -> Ledger:
    return Ledger(folder / "ledgers" / f"{name}.jsonl", name)


def restore_older(folder: Path, with_head: bool = True) -> None:
    """Puts the ledger of one partner back to what it was after the first round; and its state, as a backup would."""
    path = folder / "ledgers" / f"{ONE}.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    if with_head:
        (RunFolder(folder).partner(0) / "state" / "ledger-head.json").unlink()


@pytest.mark.parametrize("method", ["plain", "secure"])
def test_a_run_keeps_the_anchor_of_every_ledger_at_every_round(
    method: str, tmp_path: Path, tiny_encoder: Path, left_out: list[str]
) -> None:
    run(config(tiny_encoder, method), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "anchors.jsonl").read_text().splitlines()]
    assert [(line["round"], len(line["anchors"])) for line in lines] == [(1, PARTNERS), (2, PARTNERS)]
    for number in range(PARTNERS):
        name = f"partner-{number:04d}"
        assert ledger(tmp_path, name).place_of(lines[0]["anchors"][name])[0] == 3  # type: ignore[index]
        assert ledger(tmp_path, name).anchor() == lines[1]["anchors"][name]
    run(config(tiny_encoder, method), tmp_path, resume=True)
    assert left_out == []


@pytest.mark.parametrize("method", ["plain", "secure"])
def test_a_partner_whose_ledger_and_state_were_restored_does_not_go_on(
    method: str, tmp_path: Path, tiny_encoder: Path, left_out: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    run(config(tiny_encoder, method), tmp_path)
    restore_older(tmp_path)
    with caplog.at_level(logging.INFO), pytest.raises(LedgerError, match="ledgers were removed or replaced"):
        run(config(tiny_encoder, method), tmp_path, resume=True)  # nor is an epsilon stated over such a ledger
    (text,) = left_out
    assert text.startswith(f"{ONE} is left out: its ledger is not the one that was last seen (refused (LedgerError)")
    assert any("that the ledger never had" in record.getMessage() for record in caplog.records)  # the partner's own log


def test_a_ledger_that_went_on_elsewhere_is_asked_for_and_found_whole(
    tmp_path: Path, tiny_encoder: Path, left_out: list[str]
) -> None:
    run(config(tiny_encoder, "secure"), tmp_path)
    own = ledger(tmp_path)
    own.reserve(own.events()[-1])  # another server's round
    run(config(tiny_encoder, "secure"), tmp_path, resume=True)
    assert left_out == []
    assert AnchorFile(tmp_path / "anchors.jsonl").last()[ONE] == own.anchor()


def test_with_too_few_whole_ledgers_the_run_ends_and_says_so(tmp_path: Path, tiny_encoder: Path) -> None:
    run(config(tiny_encoder, "secure", min_partners=PARTNERS), tmp_path)
    restore_older(tmp_path)
    with pytest.raises(TooFewPartners, match="4 of 5 partners have the ledger that was last seen, 5 are needed"):
        run(config(tiny_encoder, "secure", min_partners=PARTNERS), tmp_path, resume=True)


def test_a_ledger_alone_that_was_restored_is_refused_by_the_partner_itself(
    tmp_path: Path, tiny_encoder: Path, left_out: list[str]
) -> None:
    run(config(tiny_encoder, "secure"), tmp_path)
    restore_older(tmp_path, with_head=False)
    (tmp_path / "anchors.jsonl").unlink()
    with pytest.raises(LedgerError, match="ledgers were removed or replaced"):
        run(config(tiny_encoder, "secure"), tmp_path, resume=True)
    assert left_out == ["a partner did not join: refused (LedgerError); this partner's own log says why"]
