"""Every fine-tuning mode against one text at a time: states, per-unit gradients, and their bound.

Legend: V texts, n tokens, E text width, D trained parameters.
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_encoder import write_tiny_decoder
from torch import Tensor

from client.distributed import SharedStep
from client.encoder_gradients import summed_gradient
from client.sensitivity import distributed_sum, hostile_neighbours, largest_change, local_sum
from client.training import MAX_WEIGHT, clip_and_sum, per_user_gradients
from common.config import ModelConfig
from common.errors import PretrainedError
from common.features import UserRows, featurise, make_batch
from common.model import packing
from common.model.click_model import ClickModel, build_model, forward_states, used_texts, user_losses
from common.model.packing import pack, portions
from common.model.tuning import Adapter, LowRank, SingularLowRank
from common.pretrained import Pretrained, load_text_encoder, locate
from common.textstates import encode_texts
from common.vector import layout_fingerprint, num_trainable, read_vector, trainable, write_vector

MODES = ("top_layers", "lora", "adalora", "adapter", "prefix", "prompt", "full")
FAMILIES = ("encoder", "decoder")
TEXTS = (
    "toy story",
    "",
    "a heat of crime, action and drama in los angeles",
    "!",
    "今天看电影 film",
    "🎬 no such piece",
    "x" * 10_000,
)
CLIP = 0.05

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(scope="module")
def bases(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pretrained]:
    decoder = write_tiny_decoder(tmp_path_factory.mktemp("decoder"))
    return {"encoder": locate(f"path:{tiny_encoder}"), "decoder": locate(f"path:{decoder}")}


def settings(mode: str, **changes: object) -> ModelConfig:
    values = {"tune": mode, "tune_layers": 1, "tune_rank": 3, "tune_tokens": 2, "width": 4, "hidden": 5}
    return ModelConfig(**(values | {"max_tokens": 16, "history": 3} | changes))  # type: ignore[arg-type]


def trained(config: ModelConfig, base: Pretrained) -> ClickModel:
    """A model whose parameters have all moved away from where they began."""
    model = build_model(config, base.width, 1, seed=1, base=base)
    start_D = read_vector(model)
    write_vector(model, start_D + np.random.default_rng(2).normal(0, 0.1, len(start_D)).astype(np.float32))
    return model


def features_of(config: ModelConfig, base: Pretrained, users: int = 4) -> UserRows:
    rng = np.random.default_rng(3)
    user = np.repeat([f"u{number}" for number in range(users)], np.arange(users) * 2 + 3)
    frame = pd.DataFrame(
        {
            "user": user,
            "time": 1_700_000_000 + 100 * np.arange(len(user)),
            "item": "i",
            "text": rng.choice(np.array(TEXTS, object), len(user)),
            "clicked": rng.integers(0, 2, len(user)).astype(np.int8),
            "domain": "",
        }
    )
    texts = encode_texts(list(frame["text"]), config, base)
    return featurise(frame, texts.index_N, texts.states_TE, config, tokens_T=texts.tokens_T)


def units_of(rows: UserRows) -> list[np.ndarray]:
    return [np.arange(rows.offset_U1[user], rows.offset_U1[user + 1]) for user in range(rows.num_users)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("prefix", "prompt")])
@pytest.mark.parametrize("layers", [1, 0])
def test_before_training_the_states_are_those_of_the_frozen_encoder(
    mode: str, family: str, layers: int, bases: dict[str, Pretrained]
) -> None:
    config, base = settings(mode, tune_layers=layers or 2), bases[family]
    model = build_model(config, base.width, 1, seed=1, base=base)
    texts = encode_texts(TEXTS, config, base)
    assert model.text is not None
    assert texts.tokens_T is not None
    with torch.no_grad():
        states_TE = model.text(texts.tokens_T).numpy()
    assert np.allclose(states_TE, texts.states_TE, atol=1e-5)
    assert len({len(token_TE) for token_TE in texts.tokens_T}) > 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["top_layers", "full", "lora", "adalora"])
def test_trained_layers_give_the_states_of_an_encoder_with_their_weights(
    mode: str, family: str, bases: dict[str, Pretrained]
) -> None:
    """The reference is transformers' whole model, with the products of the low-rank modes added to its weights."""
    config, base = settings(mode, tune_targets="all"), bases[family]
    model = trained(config, base)
    encoder = load_text_encoder(base)
    layers = encoder.model.layers if family == "decoder" else encoder.model.encoder.layer
    assert model.text is not None
    for ours, theirs in zip(model.text.layers, layers[-len(model.text.layers) :], strict=True):
        theirs.load_state_dict(merged(ours).state_dict(), strict=True)
    if family == "decoder":
        encoder.model.norm.load_state_dict(model.text.norm.state_dict())
    texts = encode_texts(TEXTS, config, base)
    with torch.no_grad():
        ours_TE = model.text(texts.tokens_T).numpy()
    assert np.allclose(ours_TE, encoder.encode(TEXTS, config.max_tokens), atol=1e-4)
    assert not np.allclose(ours_TE, texts.states_TE, atol=1e-2)


def merged(layer: torch.nn.Module) -> torch.nn.Module:
    layer = copy.deepcopy(layer)
    for name, module in list(layer.named_modules()):
        if isinstance(module, LowRank | SingularLowRank):
            product = (
                module.up_OR @ module.down_RI
                if isinstance(module, LowRank)
                else module.left_OR @ torch.diag(module.value_R) @ module.right_RI
            )
            module.base.weight.data += product.data
            holder, _, last = name.rpartition(".")
            setattr(layer.get_submodule(holder), last, module.base)
    return layer


def test_low_rank_layers_are_those_of_peft() -> None:
    peft = pytest.importorskip("peft", reason="pip install peft", exc_type=ImportError)
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5)
    ours = LowRank(base, 3, torch.Generator().manual_seed(1))
    ours.up_OR.data.normal_()
    holder = torch.nn.Sequential(copy.deepcopy(base))
    # alpha = rank: their factor alpha / rank is 1.
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=3, target_modules=["0"]), holder)
    holder[0].lora_A["default"].weight.data.copy_(ours.down_RI.data)
    holder[0].lora_B["default"].weight.data.copy_(ours.up_OR.data)
    given = torch.randn(4, 6)
    assert torch.allclose(ours(given), holder(given), atol=1e-6)


def test_an_adapter_adds_what_two_layers_and_a_gelu_do() -> None:
    torch.manual_seed(0)
    adapter = Adapter(torch.nn.Linear(3, 2), 1, torch.Generator().manual_seed(1))
    for value, parameter in zip((0.5, 0.1, -2.0, 0.3), list(adapter.parameters())[:4], strict=True):
        parameter.data.fill_(value)
    given = torch.tensor([[1.0, 2.0, 3.0]])
    below = adapter.base(given)
    inner = below.sum() * 0.5 + 0.1
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    assert torch.allclose(adapter(given), below - 2.0 * gelu + 0.3, atol=1e-6)


@pytest.mark.parametrize("mode", ["prefix", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_learnt_vectors_stand_in_front_of_each_text(mode: str, family: str, bases: dict[str, Pretrained]) -> None:
    """The reference runs each text alone, without any mask but the causal one."""
    config, base = settings(mode, tune_layers=2), bases[family]
    model = trained(config, base)
    tail = model.text
    assert tail is not None
    texts = encode_texts(TEXTS, config, base)
    with torch.no_grad():
        ours_TE = tail(texts.tokens_T)
        for text, token_TE in enumerate(texts.tokens_T or ()):
            if not len(token_TE):
                assert (ours_TE[text] == 0).all()
                continue
            hidden = torch.from_numpy(token_TE.copy())[None]
            vectors = tail.prompt_PE[None] if mode == "prompt" else tail.prefix_LPE[:1]
            hidden = torch.cat([vectors, hidden], dim=1)
            length = hidden.shape[1]
            options = {"attention_mask": torch.zeros(1, 1, length, length)}
            if family == "decoder":
                options["attention_mask"].masked_fill_(~torch.ones(length, length, dtype=torch.bool).tril(), -1e30)
                options["position_embeddings"] = tail._rotary[0](hidden, torch.arange(length)[None])
            for number, layer in enumerate(tail.layers):
                if mode == "prefix":
                    hidden = torch.cat([tail.prefix_LPE[number][None], hidden[:, 2:]], dim=1)
                hidden = layer(hidden, **options)
            mean_E = tail.norm(hidden[0, 2:]).mean(0)
            assert torch.allclose(ours_TE[text], mean_E / mean_E.norm() * base.width**0.5, atol=1e-4)


def reference_gradient(model: ClickModel, rows: UserRows, row_M: np.ndarray) -> Tensor:
    """One text at a time, one graph, torch's own backward pass."""
    batch = make_batch(rows, [row_M])
    text_V = used_texts(batch)
    assert model.text is not None
    assert rows.tokens_T is not None
    state_VE = torch.cat([model.text([rows.tokens_T[text]]) for text in text_V])
    loss = user_losses(forward_states(model, batch, text_V, state_VE), batch).sum()
    found = torch.autograd.grad(loss, [parameter for _, parameter in trainable(model)])
    return torch.cat([part.double().flatten() for part in found])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_a_user_equal_one_text_at_a_time(
    mode: str, family: str, bases: dict[str, Pretrained], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, base = settings(mode), bases[family]
    model, rows = trained(config, base), features_of(config, base)
    units = units_of(rows)
    for row_M, gradient_1D in zip(units, per_user_gradients(model, rows, units), strict=True):
        wanted_D = reference_gradient(model, rows, row_M)
        assert gradient_1D.shape == (1, num_trainable(model))
        assert torch.allclose(gradient_1D[0], wanted_D, atol=1e-6 + 1e-5 * float(wanted_D.abs().max()))
        assert float(wanted_D.abs().max()) > 1e-3
        inside = num_trainable(model.text)
        assert float(gradient_1D[0, -inside:].abs().max()) > 0
    whole_D = sum(gradient_1D[0].clone() for gradient_1D in per_user_gradients(model, rows, units))
    assert torch.allclose(summed_gradient(model, rows, units), whole_D, atol=1e-5)
    monkeypatch.setattr(packing, "TOKENS_AT_A_TIME", 20)  # in several portions, each run twice
    assert torch.allclose(summed_gradient(model, rows, units), whole_D, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_user_s_gradient_does_not_depend_on_who_else_is_sampled(mode: str, bases: dict[str, Pretrained]) -> None:
    config, base = settings(mode), bases["encoder"]
    model, rows = build_model(config, base.width, 1, seed=1, base=base), features_of(config, base)
    sign_D = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), num_trainable(model))
    write_vector(model, sign_D * np.float32(MAX_WEIGHT))
    units = units_of(rows)
    together = [gradient_1D.clone() for gradient_1D in per_user_gradients(model, rows, units)]
    for row_M, beside_1D in zip(units, together, strict=True):
        (alone_1D,) = per_user_gradients(model, rows, [row_M])
        assert torch.equal(torch.nan_to_num(alone_1D), torch.nan_to_num(beside_1D))


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_how_texts_are_numbered_moves_no_gradient_by_a_bit(scale: float, bases: dict[str, Pretrained]) -> None:
    """Numbers follow from who else has a text; so must nothing else."""
    config, base = settings("full"), bases["encoder"]
    model, rows = build_model(config, base.width, 1, seed=1, base=base), features_of(config, base, users=9)
    write_vector(model, np.clip(read_vector(model) * np.float32(scale), -MAX_WEIGHT, MAX_WEIGHT))
    assert rows.tokens_T is not None
    new_T = np.random.default_rng(5).permutation(len(rows.tokens_T))  # old number -> new number
    old_T = np.argsort(new_T)
    other = replace(
        rows,
        text_N=new_T[rows.text_N],
        states_TE=rows.states_TE[old_T],
        tokens_T=[rows.tokens_T[text] for text in old_T],
    )
    units = units_of(rows)
    ours = [one.clone() for one in per_user_gradients(model, rows, units)]
    theirs = [one.clone() for one in per_user_gradients(model, other, units)]
    assert all(torch.equal(one, another) for one, another in zip(ours, theirs, strict=True))


def joint_gradient(model: ClickModel, rows: UserRows, row_M: np.ndarray, others: list[np.ndarray]) -> Tensor:
    """A user's gradient of length 1 where others' texts pass the layers in the same run."""
    batch, text_V = make_batch(rows, [row_M]), used_texts(make_batch(rows, [row_M, *others]))
    assert model.text is not None
    assert rows.tokens_T is not None
    state_VE = model.text([rows.tokens_T[text] for text in text_V])
    loss = user_losses(forward_states(model, batch, text_V, state_VE), batch).sum()
    found = torch.autograd.grad(loss, [parameter for _, parameter in trainable(model)])
    gradient_D = torch.cat([part.double().flatten() for part in found])
    return gradient_D / gradient_D.norm()


def test_weights_of_a_server_make_a_deep_batch_tell_of_the_others(bases: dict[str, Pretrained]) -> None:
    """Why units are worked out one by one: in a common pass others' coming changes every other user's own gradient.

    With its own weights the change is rounding; scaled by 30 it is some 1e-3 of the clip, for each user of a batch.
    """
    config, base = settings("full"), bases["encoder"]
    model, rows = build_model(config, base.width, 1, seed=1, base=base), features_of(config, base, users=9)
    start_D, units = read_vector(model), units_of(rows)

    def moved(scale: float) -> float:
        write_vector(model, np.clip(start_D * np.float32(scale), -MAX_WEIGHT, MAX_WEIGHT))
        pairs = [
            (joint_gradient(model, rows, row_M, []), joint_gradient(model, rows, row_M, units[5:]))
            for row_M in units[:4]
        ]
        return max(float((alone_D - joint_D).norm()) for alone_D, joint_D in pairs)

    assert moved(1.0) < 1e-6
    assert moved(30.0) > 1e-5


def neighbours_of(model: ClickModel, rows: UserRows) -> list:
    generator = np.random.default_rng(4)
    found = hostile_neighbours(rows, units_of(rows), read_vector(model), 12, generator, physical_rows=(4096,))
    return [one for number, one in enumerate(found) if number % 7 == 0]


@pytest.mark.parametrize("mode", MODES)
def test_one_user_moves_the_clipped_sum_by_at_most_the_clip_in_every_mode(
    mode: str, bases: dict[str, Pretrained]
) -> None:
    config, base = settings(mode), bases["encoder"]
    model, rows = trained(config, base), features_of(config, base, users=3)
    change = largest_change(local_sum(model, CLIP), neighbours_of(model, rows), CLIP)
    assert change.holds, change
    assert change.tried > 50
    assert change.ratio > 0.99  # some neighbour reached it: the search looks where the bound is


def test_one_user_moves_the_whole_numbers_by_at_most_the_grid(bases: dict[str, Pretrained]) -> None:
    config, base = settings("lora"), bases["decoder"]
    model, rows = trained(config, base), features_of(config, base, users=3)
    step = SharedStep(0.5, 0.0, 3, CLIP, 2**16, 12, 3)
    change = largest_change(distributed_sum(model, step), neighbours_of(model, rows), step.grid)
    assert change.holds, change
    assert change.tried > 50
    assert change.ratio > 0.9


def test_without_clipping_one_user_moves_the_sum_by_more(bases: dict[str, Pretrained]) -> None:
    """What a bound that is not kept looks like to the same search."""
    config, base = settings("lora"), bases["encoder"]
    model, rows = trained(config, base), features_of(config, base, users=3)

    def unclipped(sample) -> np.ndarray:
        write_vector(model, sample.model_D)
        return clip_and_sum(summed_gradient(model, sample.rows, sample.chosen)[None], None).numpy()

    assert not largest_change(unclipped, neighbours_of(model, rows), CLIP).holds


def test_half_precision_is_of_products_alone(bases: dict[str, Pretrained]) -> None:
    """bfloat16 has 8 bits: states are off by some thousandths, gradients are float32 of float32 parameters."""
    base = bases["encoder"]
    exact, coarse = (trained(settings("lora", precision=kind), base) for kind in ("float32", "bfloat16"))
    rows = features_of(settings("lora"), base)
    units = units_of(rows)
    for (exact_1D,), (coarse_1D,) in zip(
        zip(per_user_gradients(exact, rows, units), strict=True),
        zip(per_user_gradients(coarse, rows, units), strict=True),
        strict=True,
    ):
        off = float((exact_1D - coarse_1D).norm() / exact_1D.norm())
        assert 1e-5 < off < 0.1
    assert {parameter.dtype for _, parameter in trainable(coarse)} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_a_gpu_that_is_not_there_is_named_with_the_mend(bases: dict[str, Pretrained]) -> None:
    with pytest.raises(PretrainedError, match=r'model\.device = "cuda".*none: install.*"auto" or "cpu"'):
        build_model(settings("lora", device="cuda"), bases["encoder"].width, 1, 1, bases["encoder"])


def test_where_layers_run_is_no_part_of_the_layout(bases: dict[str, Pretrained]) -> None:
    base = bases["encoder"]
    one, other = settings("lora", device="cpu"), settings("lora")
    layouts = {layout_fingerprint(trained(config, base), base.fingerprint, config) for config in (one, other)}
    assert len(layouts) == 1
    deeper = settings("lora", precision="bfloat16")
    assert layout_fingerprint(trained(deeper, base), base.fingerprint, deeper) not in layouts


@needs_gpu
def test_layers_on_a_gpu_give_the_gradients_of_the_cpu(bases: dict[str, Pretrained]) -> None:
    base = bases["encoder"]
    rows = features_of(settings("lora"), base)
    units = units_of(rows)
    found = [
        [one.clone() for one in per_user_gradients(trained(settings("lora", device=device), base), rows, units)]
        for device in ("cpu", "cuda")
    ]
    for cpu_1D, gpu_1D in zip(*found, strict=True):
        assert torch.allclose(cpu_1D, gpu_1D, atol=1e-3 * float(cpu_1D.abs().max()))


def test_packing_keeps_every_token_once_and_texts_apart() -> None:
    lengths = [5, 90, 1, 40, 96, 30, 2]
    packed = pack(lengths, learnt=3)
    assert packed.shape == (3, 99)  # the longest sets the width; 99, 93 + 5, 43 + 33 + 8 + 4
    taken = set(zip(packed.sequence_S.tolist(), packed.slot_S.tolist(), strict=True))
    learnt = set(zip(packed.learnt_sequence_VP.ravel().tolist(), packed.learnt_slot_VP.ravel().tolist(), strict=True))
    assert len(taken) == sum(lengths)
    assert len(learnt) == 3 * len(lengths)
    assert not taken & learnt
    for text, length in enumerate(lengths):
        own = packed.text_BT == text + 1
        assert own.sum() == length + 3
        assert len(set(np.nonzero(own)[0])) == 1
        assert sorted(packed.place_BT[own]) == list(range(length + 3))
    assert (packed.text_BT[packed.sequence_S, packed.slot_S] - 1 == packed.text_S).all()


def test_portions_hold_each_text_once_and_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "TOKENS_AT_A_TIME", 10)
    lengths = [3, 0, 12, 4, 4, 1]
    found = portions(lengths)
    assert sorted(np.concatenate(found).tolist()) == list(range(6))
    assert all(len(part) == 1 or sum(lengths[text] for text in part) <= 10 for part in found)
    assert portions([]) == []
