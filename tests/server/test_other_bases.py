"""Base weights are part of what partners compare: another encoder of the same shape is left out, and both are named."""

from pathlib import Path

import pytest
import tomli_w
from simulated_runs import run, small_config
from tiny_encoder import write_tiny_encoder

from client.partner import load_partner
from client.worker import Worker
from common.config import parse_config
from common.errors import TooFewPartners
from common.messages import JoinReply, JoinTask
from common.pretrained import locate
from common.runfolder import RunFolder
from server.joining import fitting

PARTNERS = 5
LAYOUT, BASE, OTHER = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the server says of partners that it goes on without."""
    said: list[str] = []
    monkeypatch.setattr("server.joining.say", lambda fact, text, **_: said.append(text))
    return said


@pytest.fixture
def other_encoder(tmp_path: Path) -> Path:
    """The same shape, configuration and tokenizer as `tiny_encoder`: only the weights differ."""
    return write_tiny_encoder(tmp_path / "other", seed=1)


def _give(folder: Path, number: int, encoder: Path) -> None:
    """Puts another encoder into one partner's own configuration."""
    path = RunFolder(folder).partner(number) / "partner.toml"
    text = path.read_text()
    start = text.index("encoder = ")
    line = text[start : text.index("\n", start)]
    path.write_text(text.replace(line, tomli_w.dumps({"encoder": f"path:{encoder}"}).strip()))


@pytest.mark.parametrize("method", ["plain", "secure"])
def test_a_partner_with_other_weights_of_the_same_shape_is_left_out_and_both_hashes_are_named(
    method: str, tmp_path: Path, tiny_encoder: Path, other_encoder: Path, left_out: list[str]
) -> None:
    config = small_config(tiny_encoder, PARTNERS, 1, aggregation={"method": method})
    run(config, tmp_path / "run")
    _give(tmp_path / "run", 2, other_encoder)
    run(config, tmp_path / "run", resume=True)
    own, other = locate(f"path:{tiny_encoder}"), locate(f"path:{other_encoder}")
    assert own.width == other.width
    assert own.weights_sha256 != other.weights_sha256
    (text,) = left_out
    assert text.startswith("partner-0002 is left out: its encoder has the fingerprint ")
    assert other.fingerprint[:12] in text
    assert own.fingerprint[:12] in text


def test_where_too_few_are_left_the_run_ends_and_names_both(
    tmp_path: Path, tiny_encoder: Path, other_encoder: Path
) -> None:
    config = small_config(tiny_encoder, PARTNERS, 1, aggregation={"min_partners": PARTNERS})
    run(config, tmp_path / "run")
    _give(tmp_path / "run", 2, other_encoder)
    with pytest.raises(TooFewPartners) as caught:
        run(config, tmp_path / "run", resume=True)
    for encoder in (tiny_encoder, other_encoder):
        assert locate(f"path:{encoder}").fingerprint[:12] in str(caught.value)


def test_weights_alone_change_the_layout_that_a_partner_says(
    tmp_path: Path, tiny_encoder: Path, other_encoder: Path
) -> None:
    run(small_config(tiny_encoder, 3, 1, aggregation={"min_partners": 3}), tmp_path / "run")
    home = RunFolder(tmp_path / "run").partner(0)
    first = Worker(load_partner(home / "partner.toml")).join(JoinTask("run"))
    _give(tmp_path / "run", 0, other_encoder)
    second = Worker(load_partner(home / "partner.toml")).join(JoinTask("run"))
    assert first.fingerprint != second.fingerprint
    assert (first.base, second.base) == tuple(locate(f"path:{e}").fingerprint for e in (tiny_encoder, other_encoder))


def _reply(name: str, layout: str = LAYOUT, base: str = BASE) -> JoinReply:
    return JoinReply(name, 100, layout, False, "", "", "", base)


def _fitting(replies: list[JoinReply]) -> list[str]:
    config = parse_config({"aggregation": {"method": "plain", "min_partners": 2}})
    return sorted(fitting(config, {reply.partner: reply for reply in replies}, LAYOUT, BASE, None))


def test_another_layout_of_the_same_base_is_told_from_another_base(left_out: list[str]) -> None:
    replies = [_reply("a"), _reply("b"), _reply("c", "d" * 64), _reply("d", "e" * 64, OTHER), _reply("e", "f" * 64, "")]
    assert _fitting(replies) == ["a", "b"]
    assert left_out == [
        f"c is left out: its model layout is {'d' * 12}, the server's {'a' * 12}: compare the [model] tables",
        f"d is left out: its encoder has the fingerprint {'c' * 12}, the server's {'b' * 12}: both need the same"
        " weights, configuration and tokenizer (`hushclick check` prints a partner's)",
        f"e is left out: its encoder has the fingerprint unsaid, the server's {'b' * 12}: both need the same"
        " weights, configuration and tokenizer (`hushclick check` prints a partner's)",
    ]


def test_what_a_partner_says_of_its_base_does_not_stand_in_for_its_layout(left_out: list[str]) -> None:
    """The layout covers the base: a reply that names the right base and another layout stays out."""
    assert _fitting([_reply("a"), _reply("b"), _reply("c", "d" * 64, BASE)]) == ["a", "b"]
    assert len(left_out) == 1
