"""Who vouches for a model: every file, every field of the lineage, every way to sign it that must not count."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load, save
from signed_models import KEY, OTHER, Files, altered, model_of, resigned, with_file

from common.config import ModelConfig
from common.errors import ModelError
from common.lineage import LINEAGE, MODEL_FILES, PARAMETERS, SETTINGS, SIGNATURE, read_model_folder, sign, verified
from common.model.click_model import build_model
from common.model.saved import load_model, require_base
from common.pretrained import Pretrained, locate
from common.vector import read_vector

CONFIG = ModelConfig(width=4, hidden=6)
PUBLIC = KEY.public_key()


@pytest.fixture(scope="module")
def pretrained(tiny_encoder: Path) -> Pretrained:
    return locate(f"path:{tiny_encoder}")


@pytest.fixture(scope="module")
def files(pretrained: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return model_of(tmp_path_factory.mktemp("model"), pretrained, CONFIG)


def paths(value: Any, *before: Any) -> list[tuple[Any, ...]]:
    """Returns the path to every scalar in a table."""
    if isinstance(value, dict):
        return [path for name, one in value.items() for path in paths(one, *before, name)]
    if isinstance(value, list):
        return [path for place, one in enumerate(value) for path in paths(one, *before, place)]
    return [before]


def at(table: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        table = table[step]
    return table


def test_the_lineage_says_what_was_trained_and_of_which_bytes(files: Files, pretrained: Pretrained) -> None:
    lineage = verified(files, PUBLIC)
    assert set(files) == MODEL_FILES
    for name in (PARAMETERS, SETTINGS):
        assert lineage.files[name].sha256 == hashlib.sha256(files[name]).hexdigest()
        assert lineage.files[name].num_bytes == len(files[name])
    assert (lineage.format, lineage.run_id, lineage.label) == (1, "run", "run-000002")
    assert lineage.base.weights_sha256 == pretrained.weights_sha256
    assert [(one.round, one.asked, one.contributed) for one in lineage.rounds] == [(1, 4, 3), (2, 4, 3)]
    assert {name: one.card_sha256 for name, one in lineage.partners.items()} == {"shop": "d" * 64, "other": ""}
    assert lineage.privacy.epsilon == 1.0
    assert lineage.signed_by == PUBLIC.public_bytes_raw().hex()


def test_the_signature_is_over_a_hash_of_the_very_bytes_in_a_domain_of_its_own(files: Files) -> None:
    signature = bytes.fromhex(files[SIGNATURE].decode().strip())
    PUBLIC.verify(signature, b"hushclick model lineage v1\0" + hashlib.sha256(files[LINEAGE]).digest())
    undomained = files | {SIGNATURE: KEY.sign(files[LINEAGE]).hex().encode() + b"\n"}
    with pytest.raises(ModelError, match="no signature over"):
        verified(undomained, PUBLIC)


def test_every_scalar_of_the_lineage_is_under_the_signature(files: Files) -> None:
    table = json.loads(files[LINEAGE])
    found = paths(table)
    assert len(found) > 30
    for path in found:

        def change(own: dict[str, Any], path: tuple[Any, ...] = path) -> None:
            value = at(own, path)
            at(own, path[:-1])[path[-1]] = f"{value}0" if isinstance(value, str) else (value or 0) + 1

        with pytest.raises(ModelError, match=r"lineage.sig: no signature over"):
            verified(altered(files, change), PUBLIC)


@pytest.mark.parametrize("name", sorted(MODEL_FILES))
@pytest.mark.parametrize("how", ["flipped", "longer", "empty"])
def test_a_file_that_was_altered_is_named(name: str, how: str, files: Files) -> None:
    data = files[name]
    spoilt = {"flipped": bytes([data[0] ^ 1]) + data[1:], "longer": data + b"\n", "empty": b""}[how]
    says = name if name in (PARAMETERS, SETTINGS) else SIGNATURE
    with pytest.raises(ModelError, match=says):
        verified(files | {name: spoilt}, PUBLIC)


def test_another_key_is_said(files: Files) -> None:
    with pytest.raises(ModelError, match=r"no signature .* by the key .*: altered, or signed by another key"):
        verified(files, OTHER.public_key())
    unsaid = resigned(files, lambda _: None, OTHER)
    with pytest.raises(ModelError, match="which is not whose signature it has"):
        verified(unsaid, OTHER.public_key())


@pytest.mark.parametrize("signature", [b"", b"\n", b"00" * 64, b"zz" * 64, b"\xff" * 128, b"0" * 127, b" " * 128])
def test_what_is_no_signature_is_none(signature: bytes, files: Files) -> None:
    with pytest.raises(ModelError, match="no signature over"):
        verified(files | {SIGNATURE: signature}, PUBLIC)


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_another_format_is_refused_by_name(version: Any, files: Files) -> None:
    spoilt = resigned(files, lambda table: table.update(format=version))
    with pytest.raises(ModelError, match="this release of hushclick reads format 1"):
        verified(spoilt, PUBLIC)


LIES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("unknown", lambda table: table.update(more=1), "more"),
    ("missing", lambda table: table.pop("base"), "base"),
    ("run of a path", lambda table: table.update(run_id="../../run"), "run_id"),
    ("run of a folder", lambda table: table.update(run_id="a/b"), "run_id"),
    ("empty run", lambda table: table.update(run_id=""), "run_id"),
    ("hash", lambda table: table["base"].update(fingerprint="A" * 64), "fingerprint"),
    ("card", lambda table: table["partners"]["shop"].update(card_sha256="x"), "card_sha256"),
    ("count", lambda table: table["rounds"][0].update(asked=-1), "rounds.0.asked"),
    ("whole", lambda table: table["rounds"][0].update(asked=1.5), "rounds.0.asked"),
    ("not finite", lambda table: table["privacy"].update(epsilon=float("inf")), "epsilon"),
    ("another file", lambda table: table["files"].update({"../escape": table["files"][SETTINGS]}), "names the files"),
    ("a file less", lambda table: table["files"].pop(SETTINGS), "names the files"),
]


@pytest.mark.parametrize(("change", "says"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_lineage_that_its_signer_spoilt_is_refused(
    change: Callable[[dict[str, Any]], object], says: str, files: Files
) -> None:
    with pytest.raises(ModelError, match=says):
        verified(resigned(files, change), PUBLIC)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 100_000, b'{"format": 1}', b"\xff"])
def test_a_lineage_of_anything_is_refused(text: bytes, files: Files) -> None:
    spoilt = files | {LINEAGE: text, SIGNATURE: sign(KEY, text)}
    with pytest.raises(ModelError):
        verified(spoilt, PUBLIC)


@pytest.mark.parametrize("names", [{"../x"}, {"config.json/../../x"}, {"extra"}, set()])
def test_files_beyond_the_list_are_refused(names: set[str], files: Files) -> None:
    more = files | dict.fromkeys(names, b"")
    less = {name: data for name, data in files.items() if name != SETTINGS}
    for spoilt in ([more] if names else []) + [less]:
        with pytest.raises(ModelError, match="a signed model has exactly"):
            verified(spoilt, PUBLIC)


def test_a_folder_is_read_once_and_is_bounded(files: Files, tmp_path: Path) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "notes.txt").write_text("not of the model")
    assert read_model_folder(tmp_path) == files
    size = sum(map(len, files.values()))
    assert read_model_folder(tmp_path, size) == files
    with pytest.raises(ModelError, match=f"more than {size - 1} bytes"):
        read_model_folder(tmp_path, size - 1)
    (tmp_path / SIGNATURE).unlink()
    with pytest.raises(ModelError, match=r"no lineage.sig: not the folder of a signed model"):
        read_model_folder(tmp_path)


# --- from files to a model --------------------------------------------------------------------------------------------


def test_the_loaded_model_is_the_saved_one(files: Files) -> None:
    model, config = load_model(files, verified(files, PUBLIC))
    assert config.width == 4
    expected = build_model(CONFIG, json.loads(files[SETTINGS])["text_width"], 1, seed=1)
    assert (read_vector(model) == read_vector(expected)).all()


def test_parameters_that_make_no_model_are_refused(files: Files) -> None:
    values = load(files[PARAMETERS])
    bad: dict[str, bytes] = {
        "cannot be read": b"\0" * 9,
        "other parameters": save({name: one for name, one in values.items() if name != "head.bias"}),
        "not finite": save(values | {"head.bias": values["head.bias"] * float("nan")}),
        "finite float32": save(values | {"head.bias": values["head.bias"].astype("float64")}),
    }
    for says, data in bad.items():
        spoilt = with_file(files, PARAMETERS, data)
        with pytest.raises(ModelError, match=says):
            load_model(spoilt, verified(spoilt, PUBLIC))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "this release reads format 1"),
        ({"model": {"width": 5, "hidden": 6}}, "another layout"),
        ({"model": {"width": 4, "hidden": 6, "history": 3}}, "another layout"),
        ({"model": {"widht": 4}}, "not the settings"),
        ({"num_heads": 3}, "not the settings"),
        ({"text_width": 10**12}, "not the settings"),
    ],
)
def test_settings_that_are_not_the_models_are_refused(change: dict[str, Any], says: str, files: Files) -> None:
    spoilt = with_file(files, SETTINGS, json.dumps(json.loads(files[SETTINGS]) | change).encode())
    with pytest.raises(ModelError, match=says):
        load_model(spoilt, verified(spoilt, PUBLIC))


def test_another_base_is_refused_with_both_named(files: Files, pretrained: Pretrained) -> None:
    lineage = verified(files, PUBLIC)
    require_base(lineage, pretrained)
    other = verified(resigned(files, lambda table: table["base"].update(fingerprint="e" * 64)), PUBLIC)
    with pytest.raises(ModelError, match=f"eeeeeeeeeeee.*{pretrained.fingerprint[:12]}.*name the right one"):
        require_base(other, pretrained)


def test_what_was_signed_before_a_restart_stays_byte_for_byte(pretrained: Pretrained, tmp_path: Path) -> None:
    first = model_of(tmp_path, pretrained, CONFIG)
    assert model_of(tmp_path, pretrained, CONFIG) == first
    another = model_of(tmp_path, pretrained, CONFIG, seed=2)
    assert another[LINEAGE] != first[LINEAGE]
    longer = model_of(tmp_path, pretrained, CONFIG, seed=2, rounds=3)
    assert verified(longer, PUBLIC).label == "run-000003"
    rotated = model_of(tmp_path, pretrained, CONFIG, seed=2, rounds=3, key=OTHER)
    assert verified(rotated, OTHER.public_key()).signed_by == OTHER.public_key().public_bytes_raw().hex()


def test_no_private_half_is_among_the_files(files: Files) -> None:
    secret = KEY.private_bytes_raw()
    assert all(secret not in data and secret.hex().encode() not in data for data in files.values())
