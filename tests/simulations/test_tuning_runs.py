"""Every fine-tuning mode in a whole small run: private, securely summed, saved, delivered, and scored with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch
from safetensors.numpy import load_file
from simulated_runs import run, small_config
from tiny_encoder import write_tiny_decoder, write_tiny_encoder

import server.app
from common.card import canonical_card
from common.cli import main
from common.config import Config, to_table
from common.errors import PretrainedError, Stopped
from common.lineage import PARAMETERS
from common.model.click_model import build_model
from common.model.tuning import SingularLowRank
from common.pretrained import locate
from common.runfolder import RunFolder
from common.vector import trainable

MODES = ("top_layers", "lora", "adalora", "adapter", "prefix", "prompt", "full")
SMALL = {"tune_layers": 1, "tune_rank": 3, "tune_final_rank": 1.5, "tune_tokens": 2, "history": 4}


def tuned(encoder: Path, mode: str, rounds: int = 2, privacy: str = "local", **model: Any) -> Config:
    return small_config(encoder, 4, rounds, model={"tune": mode} | SMALL | model, privacy={"mode": privacy})


def built(config: Config) -> Any:
    base = locate(config.model.encoder)
    return build_model(config.model, base.width, 2, config.round.seed, base)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_trains_is_saved_and_scores_as_the_central_evaluation(
    mode: str, tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = tuned(tiny_encoder, mode), RunFolder(tmp_path / "run")
    run(config, folder.root)
    metrics = json.loads(folder.metrics.read_bytes())
    assert [record["contributed"] for record in metrics["rounds"]] == [4, 4]
    assert 0 < metrics["privacy"]["epsilon"] < 1000
    start = {name: parameter.detach().numpy() for name, parameter in trainable(built(config))}
    found = load_file(folder.model / PARAMETERS)
    assert set(found) == set(start), "only what was trained is saved"
    moved = [name for name in found if name.startswith("text.") and not np.array_equal(found[name], start[name])]
    assert len(moved) == sum(name.startswith("text.") for name in start) > 0
    rows = pd.read_parquet(folder.central)
    plain = rows.drop(columns=["partner", "evaluate", "cold_user", "cold_item"])
    plain.to_parquet(tmp_path / "log.parquet", index=False)
    (tmp_path / "card.toml").write_text(tomli_w.dumps(to_table(canonical_card(plain))), encoding="utf-8")
    log = ("--clicks", str(tmp_path / "log.parquet"), "--card", str(tmp_path / "card.toml"))
    out = tmp_path / "out"
    words = ["predict", str(folder.model), "--key", str(folder.signing_public), *log, "--out", str(out), "--json"]
    assert main(words) == 0
    scores = pd.read_parquet(json.loads(capsys.readouterr().out)["scores"])["score"]
    np.testing.assert_allclose(scores[rows["evaluate"]], np.load(folder.root / "scores.npy"), atol=1e-5)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_mode_trains_in_one_noised_step_over_the_union(mode: str, tiny_encoder: Path, tmp_path: Path) -> None:
    config, folder = tuned(tiny_encoder, mode, privacy="distributed"), RunFolder(tmp_path / "run")
    run(config, folder.root)
    metrics = json.loads(folder.metrics.read_bytes())
    assert metrics["privacy"]["mode"] == "distributed"
    start = dict(trainable(built(config)))
    found = load_file(folder.model / PARAMETERS)
    moved = {inside: [] for inside in (False, True)}
    for name, value in found.items():
        moved[name.startswith("text.")].append(np.abs(value - start[name].detach().numpy()).ravel())
    above, within = (float(np.sqrt(np.mean(np.concatenate(moved[inside]) ** 2))) for inside in (False, True))
    # Noise alone moves every coordinate alike: the encoder's by tune_rate of the others'.
    assert within / above == pytest.approx(config.model.tune_rate, rel=0.3)


def test_a_decoder_trains_with_low_rank_products(tmp_path: Path) -> None:
    config, folder = tuned(write_tiny_decoder(tmp_path / "decoder"), "lora"), RunFolder(tmp_path / "run")
    run(config, folder.root)
    assert json.loads(folder.metrics.read_bytes())["rounds"][-1]["contributed"] == 4


def test_ranks_shrink_to_their_budget(tiny_encoder: Path, tmp_path: Path) -> None:
    config, folder = tuned(tiny_encoder, "adalora", rounds=4), RunFolder(tmp_path / "run")
    run(config, folder.root)
    model = built(config)
    found = load_file(folder.model / PARAMETERS)
    for name, parameter in trainable(model):
        parameter.data.copy_(torch.from_numpy(found[name]))
    ranks = [int((module.value_R != 0).sum()) for module in model.modules() if isinstance(module, SingularLowRank)]
    assert sum(ranks) == 3  # 1.5 each, of the query's and the value's in one layer
    for module in model.modules():
        if hasattr(module, "left_OR"):
            gram = module.left_OR.detach().numpy().T @ module.left_OR.detach().numpy()
            np.testing.assert_allclose(gram, np.eye(3), atol=1e-5)


def test_neither_jobs_nor_a_stop_change_a_bit(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks are a function of the model alone: nothing of them has to be kept over a restart."""
    config = tuned(tiny_encoder, "adalora", rounds=3)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    run(config, whole.root)
    two = replace(config, output=replace(config.output, jobs=2))
    with monkeypatch.context() as patch:
        original, calls = server.app.round_figures, []

        def stop(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*arguments)

        patch.setattr(server.app, "round_figures", stop)
        with pytest.raises(Stopped):
            run(two, parts.root)
    run(two, parts.root, resume=True)
    ours, theirs = (load_file(folder.model / PARAMETERS) for folder in (whole, parts))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ({"tune": "lora", "tune_layers": 99}, r"tune_layers = 99.*has 2 layers"),
        pytest.param(
            {"tune": "lora", "device": "cuda"},
            r'device = "cuda".*"auto" or "cpu"',
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU"),
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    model: dict[str, Any], match: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(PretrainedError, match=match):
        run(small_config(tiny_encoder, 4, 2, model=model), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_of_an_unknown_family_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """DistilBERT has layers of another shape; `head` works with any encoder."""
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    folder = write_tiny_encoder(tmp_path / "distil")
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    DistilBertModel(
        DistilBertConfig(vocab_size=vocabulary, dim=32, n_layers=1, n_heads=2, hidden_dim=48)
    ).save_pretrained(folder)
    with pytest.raises(PretrainedError, match=r"distilbert.*cannot be trained here.*head"):
        run(tuned(folder, "lora"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(small_config(folder, 4, 1), tmp_path / "run")
