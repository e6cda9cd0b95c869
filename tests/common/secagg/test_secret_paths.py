"""No generator but the one that is passed in, and no secret in a repr or an error."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from vectors.play import Play, play

import common.secagg
from common.errors import ProtocolError
from common.secagg import client_role as client
from common.secagg.masking import Masker, self_mask

ROOT = Path(common.secagg.__file__).parents[2]
PURE = sorted((ROOT / "common" / "secagg").glob("*.py"))
SOURCES = PURE + [ROOT / "client" / name for name in ("participant.py", "roundstore.py", "identity.py")]
GENERATORS = {"random", "secrets", "torch", "uuid", "time"}


def uses_of_generators(source: str) -> list[str]:
    """Names every way to another source of randomness: imports of a module, or an attribute `.random`, `.rand...`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in GENERATORS | {"numpy.random"}]
            found += [alias.name for alias in node.names if alias.name.startswith("numpy.random")]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if name.split(".")[0] in GENERATORS or name.startswith("numpy.random")]
            found += [name for name in names if name.startswith("os.") and name != "os.path"]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if node.value.id in {"np", "numpy", "torch"} and node.attr.startswith(("rand", "default_rng")):
                found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_other_randomness_on_a_secret_path(path: Path) -> None:
    assert uses_of_generators(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.name)
def test_the_systems_randomness_is_a_default_argument_and_is_never_called_in_place(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Attribute) and call.attr in {"urandom", "getrandom"}]


@pytest.mark.parametrize(
    "line",
    [
        "import random",
        "import secrets",
        "import torch",
        "import numpy.random as r",
        "from numpy import random",
        "from numpy.random import default_rng",
        "from random import Random",
        "from os import urandom",
        "key = np.random.bytes(32)",
        "key = numpy.random.default_rng().bytes(32)",
        "key = torch.rand(3)",
        "key = torch.randint(0, 2, (3,))",
        "import uuid",
    ],
)
def test_the_reader_of_sources_finds(line: str) -> None:
    assert uses_of_generators(f"import numpy as np\n\ndef f():\n    {line}\n")


def test_the_reader_of_sources_leaves_arguments_of_that_name_alone() -> None:
    assert not uses_of_generators("import os\ndef f(random=os.urandom):\n    return random(32)\n")


@pytest.fixture(scope="module")
def played() -> Play:
    return play(4, "secrets").run(mask=[4])


def secrets_of(played: Play) -> set[bytes]:
    """Every secret byte string of the round, and the draws that they came from."""
    found = {draw for draw in played.source.draws if len(draw) >= 32}
    for step in played.steps["share"].values():
        found |= {step.after.mask_secret, step.after.channel_secret, step.after.seed, step.after.own_shares}
    for step in played.steps["mask"].values():
        pairs = list(step.after.held.values())
        found |= {part for pair in pairs for part in (pair, pair[:33], pair[33:])}
        mask = self_mask(step.before.seed, step.after.context, 1)
        found |= {mask.body, mask.slots}
    found |= {key.private_bytes_raw() for key in played.cast.identities.values()}
    return found


def shows(text: str, secret: bytes) -> bool:
    """Whether a text holds the first eight bytes of a secret, as Python or as hex or as an integer."""
    return any(
        form in text
        for form in (
            repr(secret[:8])[2:-1],
            secret[:8].hex(),
            str(int.from_bytes(secret, "little")),
            str(list(secret)[:8])[1:-1],
        )
    )


def test_no_repr_shows_a_secret(played: Play) -> None:
    things: list[object] = [played.server, played.tally, played.unmasking, played.cast.roster]
    things += list(played.members.values())
    for stage in played.steps.values():
        for step in stage.values():
            things += [step.before, step.after, step.opened, step.reply]
    opened = played.steps["mask"][1].opened
    assert opened is not None
    mask = self_mask(opened.shared.seed, opened.context, 1)
    things += [mask, Masker([mask]), client.Masking(played.members[1], opened)]
    text = "\n".join(repr(thing) for thing in things)
    secrets = secrets_of(played)
    assert len(secrets) > 40
    assert not [secret for secret in secrets if shows(text, secret)]


def test_the_reader_of_reprs_finds_a_secret_in_every_form(played: Play) -> None:
    secret = played.steps["share"][1].after.seed
    for text in (repr(secret), secret.hex(), repr({"seed": list(secret)}), str(int.from_bytes(secret, "little"))):
        assert shows(text, secret)


def test_refusals_show_no_secret(played: Play) -> None:
    step = played.steps["mask"][1]
    flipped = bytearray(step.task.boxes)
    flipped[0] ^= 1
    with pytest.raises(ProtocolError) as caught:
        client.open_boxes(played.members[1], step.before, replace(step.task, boxes=bytes(flipped)))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not [secret for secret in secrets_of(played) if shows(str(caught.value), secret)]
