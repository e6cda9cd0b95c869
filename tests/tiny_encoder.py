"""A tiny random BERT with a small WordPiece tokenizer, for tests: no network, well under a second once imported."""

import string
from pathlib import Path

from common.pretrained import stay_offline

WIDTH = 32
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_COMMON_CHINESE = (
    "的一是不了人我在有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都然没日于起还发成事只作"
    "当想看文无开手用方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进把法此实回二理美点月明其种声全工己话儿者向情部正名定女问力"
    "机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化由却代军产入先山五太水万市"
)


def write_tiny_encoder(folder: Path, seed: int = 0, max_positions: int = 512) -> Path:
    """Writes config, safetensors and tokenizer into `folder` and returns it: use as `f"path:{folder}"`.

    The same seed gives the same weights; the global random state is left as it was.
    """
    stay_offline()
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    letters = string.ascii_lowercase + string.digits
    pieces = [*_SPECIAL, *letters, *(f"##{c}" for c in letters), *string.punctuation, *dict.fromkeys(_COMMON_CHINESE)]
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=max_positions,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    model.save_pretrained(folder)
    vocabulary = {piece: row for row, piece in enumerate(pieces)}
    BertTokenizer(vocab=vocabulary, model_max_length=max_positions).save_pretrained(folder)
    return folder


def write_tiny_decoder(folder: Path, family: str = "llama", seed: int = 0, max_positions: int = 512) -> Path:
    """Writes a tiny random decoder over bytes, without padding or begin token, into `folder` and returns it.

    Args:
        folder: made when it is not there.
        family: llama, qwen2 or qwen3.
        seed: of the weights; the global random state is left as it was.
        max_positions: most tokens that it reads.
    """
    stay_offline()
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    letters = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={letter: row for row, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = AutoConfig.for_model(
        family,
        vocab_size=len(letters),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=WIDTH // 2,
        intermediate_size=64,
        max_position_embeddings=max_positions,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", model_max_length=max_positions
    )
    wrapped.save_pretrained(folder)
    return folder
