"""`hushclick predict`: a delivered model scores rows as the central evaluation does, or is refused with the mend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from signed_models import OTHER, pin
from simulated_runs import run, small_config
from sklearn.metrics import log_loss, roc_auc_score
from tiny_encoder import write_tiny_encoder

from client.erasure import Erased
from common.card import canonical_card
from common.cli import main
from common.config import read_toml, to_table
from common.lineage import LINEAGE, read_model_folder
from common.runfolder import RunFolder


@pytest.fixture(scope="module")
def done(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("delivered") / "run")
    run(small_config(tiny_encoder, 4, 2), folder.root)
    return folder


def predict(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> dict[str, Any]:
    assert main(["predict", *map(str, words), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def central_log(done: RunFolder, folder: Path) -> tuple[pd.DataFrame, Path, Path]:
    """Writes the server's held-out rows as a log with a card, and returns them as they were."""
    rows = pd.read_parquet(done.central)
    plain = rows.drop(columns=["partner", "evaluate", "cold_user", "cold_item"])
    folder.mkdir(parents=True, exist_ok=True)
    plain.to_parquet(folder / "log.parquet", index=False)
    (folder / "card.toml").write_text(tomli_w.dumps(to_table(canonical_card(plain))), encoding="utf-8")
    return rows, folder / "log.parquet", folder / "card.toml"


def test_scores_are_those_of_the_central_evaluation(
    done: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, log, card = central_log(done, tmp_path)
    options = ("--clicks", log, "--card", card)
    words = (done.model, "--key", done.signing_public, *options, "--out", tmp_path / "out")
    found = predict(capsys, *words)
    scores = pd.read_parquet(found["scores"])
    assert list(scores.columns) == ["user", "item", "time", "score", "purchase"]
    assert (scores["purchase"] < scores["score"]).all()
    assert scores["user"].tolist() == rows["user"].tolist()
    expected_N = np.load(done.root / "scores.npy")
    np.testing.assert_allclose(scores["score"][rows["evaluate"]], expected_N, atol=1e-6)
    assert found["rows"] == len(rows)
    assert found["note"] == ""
    assert found["calibrated"] is None
    assert found["purchases"]["auc"] == pytest.approx(roc_auc_score(rows["purchased"], scores["purchase"]))
    # The same through a partner's own file, which has its own copy of the model and the key.
    theirs = predict(capsys, done.partner(2) / "partner.toml", *options)
    assert theirs["figures"] == found["figures"]
    assert found["figures"]["auc"] == pytest.approx(roc_auc_score(rows["clicked"], scores["score"]))
    assert found["figures"]["log_loss"] == pytest.approx(log_loss(rows["clicked"], scores["score"]))
    low, high = found["figures"]["intervals"]["auc"]
    assert low < found["figures"]["auc"] < high


def test_a_partner_scores_its_own_log_under_the_logs_own_names(
    done: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = done.partner(0)
    found = predict(capsys, home / "partner.toml", "--out", tmp_path, "--format", "csv")
    assert "trained on" in found["note"]
    assert found["rows"] == len(pd.read_parquet(home / "clicks.parquet"))
    rows = pd.read_parquet(home / "clicks.parquet").rename(columns={"user": "visitor", "item": "score"})
    rows.to_parquet(tmp_path / "named.parquet", index=False)
    card = read_toml(home / "card.toml")
    card["columns"] |= {"user": "visitor", "item": "score"}
    (tmp_path / "card.toml").write_text(tomli_w.dumps(card), encoding="utf-8")
    options = ("--clicks", tmp_path / "named.parquet", "--card", tmp_path / "card.toml", "--out", tmp_path / "named")
    named = pd.read_parquet(predict(capsys, home / "partner.toml", *options)["scores"])
    assert list(named.columns) == ["visitor", "score", "time", "model_score", "purchase"]
    own = pd.read_csv(tmp_path / "scores.csv")
    np.testing.assert_allclose(named["model_score"], own["score"], atol=1e-12)


def test_a_log_of_one_class_is_scored_and_says_what_is_not_defined(
    done: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, log, card = central_log(done, tmp_path)
    frame = pd.read_parquet(log).assign(clicked=np.int8(0))
    frame.drop(columns=[name for name in ("purchased",) if name in frame]).to_parquet(log, index=False)
    table = read_toml(card)
    table["columns"].pop("purchased", None)
    card.write_text(tomli_w.dumps(table), encoding="utf-8")
    words = ["predict", str(done.model), "--key", str(done.signing_public), "--clicks", str(log), "--card", str(card)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"{len(rows)} rows" in text
    assert "AUC: not defined" in text
    assert "log loss: 0." in text


def test_who_was_erased_is_not_scored(done: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = done.partner(3)
    before = predict(capsys, home / "partner.toml")
    gone = pd.read_parquet(home / "clicks.parquet")["user"].iloc[0]
    Erased(home / "state").add([gone])
    after = predict(capsys, home / "partner.toml", "--out", tmp_path)
    assert gone not in set(pd.read_parquet(after["scores"])["user"])
    assert after["users"] == before["users"] - 1
    assert after["dropped"]["of users who were erased"] == before["rows"] - after["rows"]


def spoil(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.fixture
def model(done: RunFolder, tmp_path: Path) -> Path:
    """A copy of the signed model to be spoilt."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in read_model_folder(done.model).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("unsigned", "no lineage.sig: not the folder of a signed model"),
        ("altered", "altered after it was signed"),
        ("lineage", "no signature over lineage.json"),
        ("other key", "no signature over lineage.json"),
        ("another base", "the model was trained on"),
        ("no rows", "holds no rows"),
        ("no column", "clicked"),
        ("no log", "no such file"),
    ],
)
def test_what_cannot_be_scored_names_the_mend(
    how: str, says: str, done: RunFolder, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, log, card = central_log(done, tmp_path)
    key, more = done.signing_public, []
    if how == "unsigned":
        (model / "lineage.sig").unlink()
    elif how == "altered":
        spoil(model, "model.safetensors")
    elif how == "lineage":
        spoil(model, LINEAGE)
    elif how == "other key":
        pin(tmp_path, OTHER)
        key = tmp_path / "signing.pub"
    elif how == "another base":
        other = write_tiny_encoder(tmp_path / "encoder")
        table = json.loads((other / "tokenizer_config.json").read_bytes())
        (other / "tokenizer_config.json").write_text(json.dumps(table | {"other": 1}))
        more = ["--set", f"model.encoder=path:{other}"]
    elif how == "no rows":
        rows.iloc[:0].to_parquet(log, index=False)
    elif how == "no column":
        rows.drop(columns=["clicked"]).to_parquet(log, index=False)
    else:
        log = tmp_path / "nowhere.parquet"
    words = ["predict", model, "--key", key, "--clicks", log, "--card", card, "--out", tmp_path / "out", *more]
    assert main(list(map(str, words))) in (1, 2)
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "no such worker.toml and no such model folder"),
        (["MODEL"], "needs --key FILE"),
        (["MODEL", "--key", "KEY"], "needs --clicks FILE"),
        (["MODEL", "--key", "KEY", "--clicks", "x"], "needs --card FILE"),
        (
            ["MODEL", "--key", "KEY", "--clicks", "x", "--card", "y", "--set", "round.seed=1"],
            "--set takes model.encoder",
        ),
        (["PARTNER", "--clicks", "x"], "go together"),
        (["PARTNER", "--set", "a.b=1"], "takes no --set"),
        (["PARTNER", "--model", "nowhere"], "not the folder of a signed model"),
    ],
)
def test_options_that_are_missing_are_named(
    words: list[str], says: str, done: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"MODEL": done.model, "KEY": done.signing_public, "PARTNER": done.partner(1) / "partner.toml"}
    assert main(["predict", *(str(known.get(word, word)) for word in words)]) in (1, 2)
    assert says in capsys.readouterr().err


def test_a_partner_that_was_given_no_model_says_so(
    done: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read_toml(done.partner(1) / "partner.toml")
    for key in ("clicks", "card", "ledger", "identity", "roster", "signing_key"):
        table[key] = str(done.partner(1) / table[key])
    (tmp_path / "worker.toml").write_text(tomli_w.dumps(table | {"state": "state"}), encoding="utf-8")
    assert main(["predict", str(tmp_path / "worker.toml")]) == 1
    assert "no model was delivered to this partner yet" in capsys.readouterr().err
