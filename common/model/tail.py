"""The layers of a text encoder that are trained, or that something trained is put into; what is below stays frozen.

What enters the first of these layers is a function of the text alone, so it is worked out once for each distinct text
and kept (`common.textstates.TokenStates`): a training step never runs the layers below.

Legend: V texts, n tokens of a text, S tokens of all, B sequences of T tokens, P learnt vectors, L layers, E text width.
"""

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import ModelConfig
from common.errors import PretrainedError
from common.model.packing import Packing, pack
from common.model.tuning import put_in
from common.pretrained import Pretrained, encoder_layers, load_text_encoder

Float = NDArray[np.float32]

_PROBE = ("a short text", "another, which is a little longer than that", "!")
_CLOSE = 1e-3  # of states of unit mean square: the layers run here must be those that the encoder runs


@dataclass(frozen=True)
class Family:
    """How to run the layers of a family of encoders one by one.

    Attributes:
        name: as the errors say it.
        causal: whether a token sees only those before it.
        query_value: where low-rank products go by default, as names within a layer.
        attention: and with `tune_targets = "attention"`.
        outputs: what writes to the residual stream: adapters go behind it.
    """

    name: str
    causal: bool
    query_value: tuple[str, ...]
    attention: tuple[str, ...]
    outputs: tuple[str, ...]


_BERT = Family(
    name="BERT",
    causal=False,
    query_value=("attention.self.query", "attention.self.value"),
    attention=(*(f"attention.self.{part}" for part in ("query", "key", "value")), "attention.output.dense"),
    outputs=("attention.output.dense", "output.dense"),
)
_LLAMA = Family(
    name="Llama",
    causal=True,
    query_value=("self_attn.q_proj", "self_attn.v_proj"),
    attention=tuple(f"self_attn.{part}_proj" for part in "qkvo"),
    outputs=("self_attn.o_proj", "mlp.down_proj"),
)
_FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
}


class TextTail(nn.Module):
    """The upper layers of an encoder: token states that enter them -> one state per text.

    The state is what `TextEncoder.encode` gives of a text, so that a model whose training has not begun reads what a
    model of frozen states does.
    """

    def __init__(
        self,
        encoder: Any,
        family: Family,
        config: ModelConfig,
        frozen_layers: int,
        seed: int,
        centre_E: Float | None = None,
    ) -> None:
        super().__init__()
        self.width = int(encoder.config.hidden_size)
        self._causal = family.causal
        self._precise = config.precision == "float32"
        # Its buffers are of positions, not of data; as an attribute of a tuple it is no part of this module.
        self._rotary: tuple[Any, ...] = (encoder.rotary_emb,) if family.causal else ()
        self._centre_E = None if centre_E is None else torch.from_numpy(centre_E.copy())
        self.layers = nn.ModuleList(encoder_layers(encoder)[frozen_layers:])
        self.norm = encoder.norm if family.causal else nn.Identity()
        self.requires_grad_(config.tune in ("top_layers", "full"))
        self.prompt_PE: nn.Parameter | None = None
        self.prefix_LPE: nn.Parameter | None = None
        put_in(self, config, family, torch.Generator().manual_seed(seed))
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # unseeded, and what it drops is not what the sampler drew
        self.train()

    def train(self, mode: bool = True) -> "TextTail":
        """Keeps everything in evaluation mode: what a layer drops at random, the sampler did not draw."""
        return super().train(False)

    def forward(self, tokens_V: Sequence[Float]) -> Tensor:
        """Returns states_VE: the mean of the last hidden state over a text's tokens, scaled to unit mean square.

        A text without tokens has the zero state.

        Args:
            tokens_V: float32 [n, E] for each text.
        """
        kept = [text for text, token_TE in enumerate(tokens_V) if len(token_TE)]
        device = next(self.parameters()).device
        total_VE = torch.zeros(len(tokens_V), self.width, device=device)
        if not kept:
            return total_VE
        packing = pack([len(tokens_V[text]) for text in kept], self._learnt)
        # Torch's own memory, whose alignment is always the same: sums must not depend on where numpy put an array.
        token_SE = torch.empty(len(packing.text_S), self.width)
        np.concatenate([tokens_V[text] for text in kept], out=token_SE.numpy())
        with torch.autocast(device.type, torch.bfloat16, enabled=not self._precise):
            hidden_SE = self._through(token_SE.to(device), packing).float()
        total_VE = total_VE.index_add(0, torch.from_numpy(np.array(kept)[packing.text_S]).to(device), hidden_SE)
        # The sum points where the mean points, and only the direction outlives the normalisation.
        state_VE: Tensor = nn.functional.normalize(total_VE, dim=1) * self.width**0.5
        if self._centre_E is not None:
            off_VE = nn.functional.normalize(state_VE - self._centre_E.to(device), dim=1) * self.width**0.5
            state_VE = torch.where((total_VE != 0).any(dim=1, keepdim=True), off_VE, state_VE)
        return state_VE

    @property
    def _learnt(self) -> int:
        """How many learnt vectors stand in front of each text."""
        if self.prompt_PE is not None:
            return len(self.prompt_PE)
        return 0 if self.prefix_LPE is None else self.prefix_LPE.shape[1]

    def _through(self, token_SE: Tensor, packing: Packing) -> Tensor:
        """Returns what leaves the last layer, hidden_SE."""
        device = token_SE.device
        own = [torch.from_numpy(part).to(device) for part in (packing.sequence_S, packing.slot_S)]
        learnt = [torch.from_numpy(part).to(device) for part in (packing.learnt_sequence_VP, packing.learnt_slot_VP)]
        hidden_BTE = token_SE.new_zeros(*packing.shape, self.width).index_put(tuple(own), token_SE)
        if self.prompt_PE is not None:
            hidden_BTE = hidden_BTE.index_put(tuple(learnt), self.prompt_PE.expand(*learnt[0].shape, -1))
        options = self._options(hidden_BTE, packing)
        for number, layer in enumerate(self.layers):
            if self.prefix_LPE is not None:
                hidden_BTE = hidden_BTE.index_put(tuple(learnt), self.prefix_LPE[number].expand(*learnt[0].shape, -1))
            hidden_BTE = layer(hidden_BTE, **options)
        found: Tensor = self.norm(hidden_BTE[tuple(own)])
        return found

    def _options(self, hidden_BTE: Tensor, packing: Packing) -> dict[str, Any]:
        """Returns what each layer is told: that a token sees its own text alone, and where it stands."""
        text_BT = torch.from_numpy(packing.text_BT).to(hidden_BTE.device)
        seen_BTT = text_BT[:, :, None] == text_BT[:, None, :]
        if self._causal:
            seen_BTT = seen_BTT.tril()
        least = torch.finfo(hidden_BTE.dtype).min
        mask_B1TT = torch.zeros_like(seen_BTT, dtype=hidden_BTE.dtype).masked_fill(~seen_BTT, least)[:, None]
        if not self._causal:
            return {"attention_mask": mask_B1TT}
        place_BT = torch.from_numpy(packing.place_BT).to(hidden_BTE.device)
        where = self._rotary[0](hidden_BTE, place_BT)
        return {"attention_mask": mask_B1TT, "position_ids": place_BT, "position_embeddings": where}


def require_tunable(config: ModelConfig, pretrained: Pretrained) -> None:
    """Refuses, before anything else is done, what could not be trained.

    The encoder stays loaded: whoever trains in this process needs it.

    Raises:
        PretrainedError: as `build_tail`.
    """
    if config.tune != "head":
        build_tail(config, pretrained, seed=0)


def build_tail(config: ModelConfig, pretrained: Pretrained, seed: int) -> TextTail:
    """Returns the trained part of an encoder, its own parameters initialised from a seed, the frozen ones shared.

    Raises:
        PretrainedError: for an encoder of a family whose layers are not known here, or that has fewer layers than
            `tune_layers`, or for a GPU that is not there.
    """
    device = device_of(config, pretrained.spec)
    encoder, family, centre_E = _loaded(pretrained, device)
    layers = len(encoder_layers(encoder))
    if config.tune_layers > layers:
        raise PretrainedError(
            f"model.tune_layers = {config.tune_layers}: {pretrained.spec} has {layers} layers; use at most that many,"
            " or 0 for all"
        )
    whole = config.tune in ("top_layers", "full")
    # What is not trained is the same for every model of this process; what is, is each model's own.
    shared = {} if whole else {id(parameter): parameter for parameter in encoder.parameters()}
    own = copy.deepcopy(encoder, shared)
    return TextTail(own, family, config, config.frozen_layers(layers), seed, centre_E).to(device)


def device_of(config: ModelConfig, spec: str) -> str:
    """Returns the device that the layers of an encoder run on, once this process may take its share of it.

    Raises:
        PretrainedError: for a GPU that is not there, naming those that are.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cpu" or (config.device == "auto" and not count):
        return "cpu"
    number = int(config.device.partition(":")[2] or 0)
    if number >= count:
        there = f"{count} of them, from cuda:0 on" if count else "none: install a driver and a torch that has CUDA"
        raise PretrainedError(
            f'model.device = "{config.device}": torch finds no such GPU for the layers of {spec}, but {there}; or set'
            ' "auto" or "cpu"'
        )
    device = f"cuda:{number}" if count > 1 else "cuda"
    if config.device_memory < 1:
        torch.cuda.set_per_process_memory_fraction(config.device_memory, number)
    return device


def dealt(config: ModelConfig, number: int) -> ModelConfig:
    """Returns the model as simulated partner `number` has it: partners are dealt out to the GPUs of the machine."""
    if config.tune == "head" or config.device not in ("auto", "cuda") or not torch.cuda.is_available():
        return config
    return replace(config, device=f"cuda:{number % torch.cuda.device_count()}")


_Loaded = tuple[Any, Family, Float | None]  # an encoder, its family, and what is taken off its states

_encoders: dict[tuple[str, str], _Loaded] = {}
_lock = threading.Lock()


def _loaded(pretrained: Pretrained, device: str) -> _Loaded:
    """Returns this process' copy of an encoder, and its family, once its layers were seen to do what it does."""
    with _lock:
        key = (pretrained.fingerprint, device)  # a copy for each: moving a model moves what it shares with others
        if key not in _encoders:
            encoder, family, centre_E = _load(pretrained)
            _encoders[key] = encoder.to(device), family, centre_E
        return _encoders[key]


def _load(pretrained: Pretrained) -> _Loaded:
    loaded = load_text_encoder(pretrained)
    kind = str(getattr(loaded.model.config, "model_type", ""))
    if kind not in _FAMILIES:
        raise PretrainedError(
            f"{pretrained.spec}: of the kind {kind!r:.40}, whose layers cannot be trained here; known:"
            f' {", ".join(sorted(_FAMILIES))}; model.tune = "head" works with every encoder'
        )
    family = _FAMILIES[kind]
    tail = TextTail(copy.deepcopy(loaded.model), family, ModelConfig(), 0, 0, loaded.centre_E)
    length = min(16, loaded.most_tokens)
    with torch.no_grad():
        ours_VE = tail(loaded.token_states(_PROBE, length, 0)).numpy()
    if not np.allclose(ours_VE, loaded.encode(_PROBE, length), atol=_CLOSE):
        raise PretrainedError(
            f"{pretrained.spec}: its layers, one by one, do not do what the encoder does; only"
            ' model.tune = "head" works with it'
        )
    del loaded.model.__dict__["train"]  # bound to the object, and copies are made of it
    return loaded.model, family, loaded.centre_E
