"""Other wordings of a text, for training that does not hang on single words: words left out, swapped, masked.

What is made of a text is a function of the text alone, so that its encoding is cached like any other's, and no state
tells of anybody's other texts. Which wording a row has in a step is drawn by the partner, like its sample.

Legend: N rows, W other wordings of each text.
Source: Wei, Zou 2019, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification Tasks",
section 2 (random swap and deletion); Devlin et al. 2019, "BERT", section 3.1 (masked words).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from common.config import ModelConfig
from common.features import UserRows

MOST_LETTERS = 4096  # of a text that are reworded; an encoder reads fewer
MASK = "[MASK]"  # where an encoder has no such token, a word like any other


def wordings(text: str, model: ModelConfig) -> list[str]:
    """Returns `model.augment_wordings` other wordings of a text; of a text of one word, that text."""
    return [_reworded(text, number, model) for number in range(model.augment_wordings)]


def _reworded(text: str, number: int, model: ModelConfig) -> str:
    seed = hashlib.sha256(f"{number} {text}".encode("utf-8", "surrogatepass")).digest()
    generator = np.random.default_rng(int.from_bytes(seed[:16], "little"))
    text = text[:MOST_LETTERS]
    words, between = (text.split(), " ") if " " in text.strip() else (list(text), "")  # Chinese has no spaces
    if len(words) < 2:
        return text
    if "delete" in model.augment:
        kept = [word for word in words if generator.random() >= model.augment_share]
        words = kept or [words[int(generator.integers(len(words)))]]
    if "swap" in model.augment:
        for place in range(len(words) - 1):
            if generator.random() < model.augment_share:
                words[place], words[place + 1] = words[place + 1], words[place]
    if "mask" in model.augment:
        words = [MASK if generator.random() < model.augment_share else word for word in words]
    return between.join(words)


def with_wordings(texts: Sequence[str], model: ModelConfig) -> list[str]:
    """Returns N texts, then the first other wording of each, then the second of each, and so on: N (1 + W) texts."""
    others = {text: wordings(text, model) for text in dict.fromkeys(texts)}
    return [*texts, *(others[text][number] for number in range(model.augment_wordings) for text in texts)]


def reworded(rows: UserRows, generator: np.random.Generator) -> UserRows:
    """Returns the rows, each with one of its wordings, its own among them, all as likely; drawn for a step."""
    if rows.wording_NW is None:
        return rows
    num_rows, others = rows.wording_NW.shape
    choice_N = generator.integers(0, others + 1, num_rows)
    all_NX = np.concatenate([rows.text_N[:, None], rows.wording_NW], axis=1)
    return replace(rows, text_N=all_NX[np.arange(num_rows), choice_N])
