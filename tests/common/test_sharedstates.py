"""The table of text states that all partners of a process read: what it is shared by, and what it gives."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.config import ModelConfig
from common.pretrained import Pretrained, locate
from common.sharedstates import encode_shared
from common.textstates import encode_texts

TEXTS = ["one", "two words", "one", "three more words"]


@pytest.fixture
def base(tiny_encoder: Path) -> Pretrained:
    return locate(f"path:{tiny_encoder}")


def test_it_gives_what_encoding_gives(base: Pretrained) -> None:
    model = ModelConfig(tune="lora", tune_layers=1, max_tokens=12)
    plain, shared = encode_texts(TEXTS, model, base), encode_shared(TEXTS, model, base)
    np.testing.assert_array_equal(shared.states_TE[shared.index_N], plain.states_TE[plain.index_N])
    assert shared.tokens_T is not None
    assert plain.tokens_T is not None
    for ours, theirs in zip(shared.index_N, plain.index_N, strict=True):
        np.testing.assert_array_equal(shared.tokens_T[ours], plain.tokens_T[theirs])


def test_settings_that_change_no_state_share_one_table(base: Pretrained) -> None:
    """Else a sweep over them would hold every state as often as it has cells."""
    model = ModelConfig(max_tokens=13)
    one = encode_shared(TEXTS, model, base).states_TE
    assert encode_shared(TEXTS, replace(model, width=5, prior_click_rate=0.3, history=3), base).states_TE is one
    assert encode_shared(TEXTS, replace(model, max_tokens=14), base).states_TE is not one


def test_depth_tells_tables_apart(base: Pretrained) -> None:
    model = ModelConfig(tune="lora", tune_layers=1, max_tokens=15)
    top, whole = (encode_shared(TEXTS, replace(model, tune_layers=layers), base) for layers in (1, 0))
    assert top.tokens_T is not None
    assert whole.tokens_T is not None
    assert not np.allclose(top.tokens_T[top.index_N[0]], whole.tokens_T[whole.index_N[0]])
    assert encode_shared(TEXTS, replace(model, tune="head"), base).tokens_T is None
