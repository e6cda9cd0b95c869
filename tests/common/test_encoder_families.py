"""Encoders and decoders give one sound state per text, whatever the text; prefixes stand before it and are compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_wheels import write_e5
from tiny_encoder import write_tiny_decoder, write_tiny_encoder

from common.conversion import e5
from common.errors import PretrainedError
from common.pretrained import TextEncoder, load_text_encoder, locate
from common.textstates import TextStates

FAMILIES = ("bert", "unigram", "llama", "qwen2", "qwen3")
DECODERS = ("llama", "qwen2", "qwen3")
PROMPTS = "config_sentence_transformers.json"
HARD = {
    "empty": "",
    "spaces": "  \t\n\u3000 ",
    "emoji": "🎉😀👩‍👩‍👧 sale",
    "mixed scripts": "便宜的手机 cheap телефон هاتف फ़ोन 휴대폰",
    "lone surrogate": "\ud83d half an emoji",
    "controls": "a\x00b\x07c\u200bd\ufeff",
    "combining": "e\u0301" * 20,
    "10,000 characters": "phone " * 1667,
    "10,000 without a space": "手" * 10_000,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    made = {family: write_tiny_decoder(root / family, family) for family in DECODERS}
    write_e5(root / "unigram.bin")
    (root / "unigram").mkdir()
    e5.convert(root / "unigram.bin", root / "unigram")
    (root / "unigram" / PROMPTS).unlink()
    return made | {"bert": write_tiny_encoder(root / "bert"), "unigram": root / "unigram"}


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, TextEncoder]:
    return {family: load_text_encoder(locate(f"path:{folder}")) for family, folder in folders.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_has_a_state_that_is_its_own_to_the_bit(family: str, encoders: dict[str, TextEncoder]) -> None:
    states_NE = encoders[family].encode(list(HARD.values()), 48)
    assert np.isfinite(states_NE).all()
    for (name, text), state_E in zip(HARD.items(), states_NE, strict=True):
        np.testing.assert_array_equal(encoders[family].encode([text], 48)[0], state_E, err_msg=name)
        assert np.mean(state_E**2) == pytest.approx(0.0 if not state_E.any() else 1.0, abs=1e-5), name


@pytest.mark.parametrize("family", FAMILIES)
def test_only_a_text_without_any_token_has_the_zero_state(family: str, encoders: dict[str, TextEncoder]) -> None:
    """Decoders without a begin token read nothing of an empty text; the others read their special tokens."""
    states_NE = encoders[family].encode(list(HARD.values()), 48)
    zero = {name for name, state_E in zip(HARD, states_NE, strict=True) if not state_E.any()}
    assert zero == ({"empty"} if family in DECODERS else set())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_is_the_mean_of_the_last_hidden_state(family: str, encoders: dict[str, TextEncoder]) -> None:
    import torch

    encoder = encoders[family]
    ids_1T = torch.tensor(encoder.tokenise(["the phone"], 48))
    with torch.no_grad():
        mean_E = encoder.model(input_ids=ids_1T).last_hidden_state[0].mean(0).numpy()
    expected_E = mean_E / np.sqrt(np.mean(mean_E**2))
    np.testing.assert_allclose(encoder.encode(["the phone"], 48)[0], expected_E, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_title_is_read_up_to_max_tokens(family: str, encoders: dict[str, TextEncoder]) -> None:
    encoder = encoders[family]
    long, other = "phone " * 1667, "phone " * 1000 + "weather"
    assert [len(ids) for ids in encoder.tokenise([long, other], 48)] == [48, 48]
    states_NE = encoder.encode([long, other, "phone"], 48)
    np.testing.assert_array_equal(states_NE[0], states_NE[1])
    assert np.abs(states_NE[0] - states_NE[2]).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lone_surrogate_is_read_as_a_question_mark(family: str, encoders: dict[str, TextEncoder]) -> None:
    states_NE = encoders[family].encode(["a\ud800b", "a?b"], 48)
    np.testing.assert_array_equal(states_NE[0], states_NE[1])


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_is_causal_and_the_mean_still_tells_word_orders_apart(
    family: str, encoders: dict[str, TextEncoder]
) -> None:
    import torch

    encoder = encoders[family]
    with torch.no_grad():
        short_TE, long_TE = (
            encoder.model(input_ids=torch.tensor(encoder.tokenise([text], 48))).last_hidden_state[0]
            for text in ("cheap", "cheap phone")
        )
    np.testing.assert_allclose(long_TE[: len(short_TE)], short_TE, atol=1e-5)
    states_NE = encoder.encode(["dog bites man", "man bites dog"], 48)
    assert np.abs(states_NE[0] - states_NE[1]).max() > 1e-3


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_keeps_no_cache_and_has_a_padding_token(family: str, encoders: dict[str, TextEncoder]) -> None:
    import torch

    encoder = encoders[family]
    assert encoder.tokenizer.pad_token == "<|endoftext|>"
    assert encoder.tokenizer.padding_side == "right"
    assert encoder.model(input_ids=torch.tensor([[1, 2]])).past_key_values is None
    assert type(encoder.model).__module__.startswith(f"transformers.models.{family}.")  # the plain model


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_with_a_language_model_head_loads_without_it(
    family: str, folders: dict[str, Path], encoders: dict[str, TextEncoder], tmp_path: Path
) -> None:
    """As such models are published: all names under `model.`, and an output layer of its own."""
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(folders[family], tmp_path / family))
    causal = AutoModelForCausalLM.from_pretrained(folder)
    causal.model.load_state_dict(encoders[family].model.state_dict())
    causal.save_pretrained(folder)
    found = load_text_encoder(locate(f"path:{folder}"))
    texts = list(HARD.values())
    np.testing.assert_array_equal(found.encode(texts, 48), encoders[family].encode(texts, 48))


# --- prefixes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def prefixed(folders: dict[str, Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(folders["bert"], tmp_path / "prefixed"))
    _write_prompts(folder, {"query": "query: ", "passage": "passage: "}, "query")
    return folder


def _write_prompts(folder: Path, prompts: object, default: object) -> None:
    table = {"__version__": {"pytorch": "1"}, "prompts": prompts, "default_prompt_name": default}
    (folder / PROMPTS).write_text(json.dumps(table))


def test_the_prefix_stands_before_every_text(prefixed: Path, encoders: dict[str, TextEncoder]) -> None:
    found = locate(f"path:{prefixed}")
    assert found.prefix == "query: "
    texts = [*HARD.values(), "query: phone"]
    expected = [f"query: {text}" for text in texts]
    np.testing.assert_array_equal(load_text_encoder(found).encode(texts, 48), encoders["bert"].encode(expected, 48))


def test_the_prefix_is_part_of_the_fingerprint_and_of_the_caches_name(
    prefixed: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    plain, query = locate(f"path:{folders['bert']}"), locate(f"path:{prefixed}")
    for found in (plain, query):
        TextStates(found, 48, tmp_path / "cache").states(["phone"])
    _write_prompts(prefixed, {"query": "query: ", "passage": "passage: "}, "passage")
    passage = locate(f"path:{prefixed}")
    assert passage.prefix == "passage: "
    assert len({found.fingerprint for found in (plain, query, passage)}) == 3
    assert len({found.weights_sha256 for found in (plain, query, passage)}) == 1
    TextStates(passage, 48, tmp_path / "cache").states(["phone"])
    assert len(list((tmp_path / "cache").glob("*.sqlite3"))) == 3


@pytest.mark.parametrize(
    ("prompts", "default"), [({"query": "query: "}, None), ({}, None), (None, ""), ({"a": ""}, "a")]
)
def test_without_a_default_prompt_there_is_no_prefix_and_the_fingerprint_stays(
    prompts: object, default: object, prefixed: Path, folders: dict[str, Path]
) -> None:
    _write_prompts(prefixed, prompts, default)
    found = locate(f"path:{prefixed}")
    assert found.prefix == ""
    assert found.fingerprint == locate(f"path:{folders['bert']}").fingerprint


@pytest.mark.parametrize("prompts", [{}, None, {"query": 3}, ["query"]])
def test_a_default_prompt_that_is_not_there_is_refused(prompts: object, prefixed: Path) -> None:
    _write_prompts(prefixed, prompts, "query")
    with pytest.raises(PretrainedError, match="names the default prompt 'query' and does not hold it"):
        locate(f"path:{prefixed}")


def test_max_tokens_must_leave_room_for_a_text(prefixed: Path) -> None:
    """[CLS], five letters, the colon and [SEP] are eight: with eight tokens all texts would be the same."""
    encoder = load_text_encoder(locate(f"path:{prefixed}"))
    with pytest.raises(PretrainedError, match=r"max_tokens = 8: the prefix 'query: ' .* take 8; raise it"):
        encoder.encode(["phone"], 8)
    states_NE = encoder.encode(["phone", "weather"], 9)
    assert np.abs(states_NE[0] - states_NE[1]).max() > 1e-3


# --- centres ------------------------------------------------------------------------------------------------------


@pytest.fixture
def centred(folders: dict[str, Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "centred"))
    (folder / "centre.json").write_text(json.dumps({"centre": [0.5, -1, *[0.25] * 30]}))
    return folder


def test_the_centre_is_taken_off_and_the_rest_scaled(centred: Path, encoders: dict[str, TextEncoder]) -> None:
    texts = list(HARD.values())
    states_NE = load_text_encoder(locate(f"path:{centred}")).encode(texts, 48)
    rest_NE = encoders["llama"].encode(texts, 48) - np.array([0.5, -1, *[0.25] * 30])
    expected_NE = rest_NE / np.sqrt((rest_NE**2).mean(1, keepdims=True))
    expected_NE[texts.index("")] = 0  # no token, no state, and nothing to take off
    np.testing.assert_allclose(states_NE, expected_NE, atol=1e-5)


def test_the_centre_is_part_of_the_fingerprint(centred: Path, folders: dict[str, Path]) -> None:
    first, plain = locate(f"path:{centred}"), locate(f"path:{folders['llama']}")
    (centred / "centre.json").write_text(json.dumps({"centre": [0.5] * 32}))
    assert len({plain.fingerprint, first.fingerprint, locate(f"path:{centred}").fingerprint}) == 3
    assert "centre.json" in first.files


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"centre": [1, 2]}', '{"centre": "no"}', json.dumps({"centre": [float("nan")] * 32})]
)
def test_a_centre_that_does_not_fit_is_refused(text: str, centred: Path) -> None:
    (centred / "centre.json").write_text(text)
    with pytest.raises(PretrainedError, match=r'centre\.json must hold 32 numbers as "centre"'):
        load_text_encoder(locate(f"path:{centred}"))


def test_a_state_that_is_the_centre_itself_is_zero_and_finite(centred: Path, encoders: dict[str, TextEncoder]) -> None:
    state_E = encoders["llama"].encode(["phone"], 48)[0]
    (centred / "centre.json").write_text(json.dumps({"centre": state_E.tolist()}))
    assert not load_text_encoder(locate(f"path:{centred}")).encode(["phone"], 48).any()
