"""A registry of model versions: verified, numbered once, promoted as a whole, and left whole by whatever goes wrong."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from signed_models import KEY, OTHER, model_of, pin

import common.runfolder
from common.cli import main
from common.config import ModelConfig
from common.errors import HushclickError, ModelError
from common.lineage import LINEAGE, MODEL_FILES, PARAMETERS
from common.pretrained import Pretrained, locate
from common.registry import Registry

CONFIG = ModelConfig(width=4, hidden=6)
PUBLIC = KEY.public_key()


@pytest.fixture(scope="module")
def models(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three different signed models."""
    pretrained: Pretrained = locate(f"path:{tiny_encoder}")
    root = tmp_path_factory.mktemp("models")
    for number in range(3):
        model_of(root / str(number), pretrained, CONFIG, run_id=f"run{number}", seed=number)
    pin(root)
    return [root / str(number) for number in range(3)]


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_models_become_versions_in_order_and_stay_byte_for_byte(models: list[Path], tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    assert registry.numbers() == []
    assert [registry.add(model, PUBLIC) for model in models] == [1, 2, 3]
    assert registry.add(models[1], PUBLIC) == 2  # the same again
    assert registry.numbers() == [1, 2, 3]
    for number, model in enumerate(models, 1):
        found = registry.version(number)
        assert found.lineage.run_id == f"run{number - 1}"
        for name in MODEL_FILES:
            assert (found.folder / name).read_bytes() == (model / name).read_bytes()
        assert found.added["from"] == str(model)


def test_what_is_not_signed_by_the_key_is_not_taken(models: list[Path], tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    with pytest.raises(ModelError, match="signed by another key"):
        registry.add(models[0], OTHER.public_key())
    with pytest.raises(ModelError, match="not the folder of a signed model"):
        registry.add(tmp_path, PUBLIC)
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize("name", [*sorted(MODEL_FILES), "signing.pub"])
def test_a_version_that_was_altered_is_found(name: str, models: list[Path], tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add(models[0], PUBLIC)
    path = registry.version(1).folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + (b"1\n" if whole.endswith(b"0\n") else b"0\n"))
    with pytest.raises(HushclickError):
        registry.version(1)
    with pytest.raises(HushclickError):
        registry.promote(1)
    assert registry.promoted() is None


def test_a_version_under_a_key_of_its_forger_is_found_with_the_right_key(models: list[Path], tmp_path: Path) -> None:
    """Who can write to the registry can put a key of his own beside a model of his own."""
    pretrained = locate(json.loads((models[0] / "config.json").read_bytes())["encoder"])
    model_of(tmp_path / "forged", pretrained, CONFIG, key=OTHER)
    registry = Registry(tmp_path / "registry")
    registry.add(tmp_path / "forged", OTHER.public_key())
    registry.version(1)
    with pytest.raises(ModelError, match="signed by another key"):
        registry.version(1, PUBLIC)


def test_promotion_keeps_its_history(models: list[Path], tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for model in models:
        registry.add(model, PUBLIC)
    assert registry.promoted() is None
    assert [registry.promote(number) for number in (1, 3, 3, 2)] == [None, 1, 3, 3]
    assert registry.promoted() == 2
    assert [(step["before"], step["version"]) for step in registry.history()] == [(None, 1), (1, 3), (3, 2)]
    assert all(step["by"] and step["when"].endswith("+00:00") for step in registry.history())
    with pytest.raises(ModelError, match="no version 4; there are: 1, 2, 3"):
        registry.promote(4)
    assert registry.promoted() == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"registry": 2, "history": []}', '{"registry": 1, "history": [{"version": "1"}]}']
)
def test_a_damaged_record_of_promotions_is_said_and_not_overwritten(
    text: str, models: list[Path], tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    registry.add(models[0], PUBLIC)
    (tmp_path / "promoted.json").write_text(text)
    with pytest.raises(ModelError, match=r"promoted.json"):
        registry.promote(1)
    assert (tmp_path / "promoted.json").read_text() == text


def _add_one(root: Path, model: Path, barrier: Any, numbers: Any) -> None:
    barrier.wait()
    numbers.put((model.name, Registry(root).add(model, PUBLIC)))


def test_adds_at_the_same_time_do_not_clobber_each_other(models: list[Path], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, numbers = context.Barrier(6), context.Queue()
    adding = [context.Process(target=_add_one, args=(tmp_path, model, barrier, numbers)) for model in models * 2]
    for process in adding:
        process.start()
    found: dict[str, int] = {}
    given = [numbers.get(timeout=60) for _ in adding]
    for process in adding:
        process.join()
        assert process.exitcode == 0
    for name, number in given:
        assert found.setdefault(name, number) == number  # twice the same model: one version
    assert sorted(found.values()) == [1, 2, 3]
    registry = Registry(tmp_path)
    for name, number in found.items():
        assert registry.version(number).lineage.run_id == f"run{name}"


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_refuses_leaves_the_registry_whole(
    call: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused at each call in turn: nothing half-made is left, and the next add gets the number."""
    registry = Registry(tmp_path)
    registry.add(models[0], PUBLIC)
    registry.promote(1)
    before, owner = everything(tmp_path), Path if call == "rename" else os
    original, refusals = getattr(owner, call), 0
    for place in range(20):
        calls = iter(range(20))

        def refuse(*arguments: Any, place: int = place, calls: Any = calls) -> Any:
            if next(calls) == place:
                raise OSError(28, "No space left on device")
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, call, refuse)
            try:
                number = registry.add(models[1], PUBLIC)
            except HushclickError:
                refusals += 1
                if registry.numbers() == [1]:  # else the flush after the rename was refused: it is there, and whole
                    assert everything(tmp_path) == before
                else:
                    assert registry.version(2).lineage.run_id == "run1"
                continue
        assert number == 2
        break
    assert refusals >= (1 if call == "rename" else 4)
    with monkeypatch.context() as patch:
        patch.setattr(common.runfolder.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(HushclickError, match="No space left"):
            registry.promote(2)
    assert registry.promoted() == 1


def test_a_number_that_was_promoted_is_not_given_again(models: list[Path], tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add(models[0], PUBLIC)
    registry.promote(1)
    for path in registry.version(1).folder.iterdir():
        path.unlink()
    (tmp_path / "versions" / "0001").rmdir()
    assert registry.add(models[1], PUBLIC) == 2


# --- the command ------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> dict[str, Any]:
    assert main(["models", *map(str, words), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_from_the_first_model_to_a_promoted_one(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, key = tmp_path / "registry", models[0].parent / "signing.pub"
    for number, model in enumerate(models, 1):
        assert run(capsys, "add", registry, "--model", model, "--key", key)["version"] == number
    assert "is there already" in run(capsys, "add", registry, "--model", models[0], "--key", key)["says"]
    assert run(capsys, "promote", registry, "--version", 2)["before"] is None
    assert run(capsys, "promote", registry, "--version", 3)["before"] == 2
    listed = run(capsys, "list", registry)
    assert listed["promoted"] == 3
    assert [(one["version"], one["run"], one["epsilon"]) for one in listed["versions"]] == [
        (1, "run0", 1.0),
        (2, "run1", 1.0),
        (3, "run2", 1.0),
    ]
    shown = run(capsys, "show", registry)
    assert (shown["version"], shown["promoted"], shown["lineage"]["run_id"]) == (3, True, "run2")
    assert run(capsys, "show", registry, "--version", 1)["lineage"]["run_id"] == "run0"
    assert run(capsys, "verify", registry, "--key", key)["ok"] is True
    assert main(["models", "show", str(registry)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "card dddddddddddd" in text
    assert "2: 6 contributions of 8 that were asked for" in text
    assert main(["models", "list", str(registry)]) == 0
    assert "promoted" in capsys.readouterr().out


def test_the_command_names_what_was_altered(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, key = tmp_path / "registry", models[0].parent / "signing.pub"
    for model in models[:2]:
        run(capsys, "add", registry, "--model", model, "--key", key)
    path = registry / "versions" / "0002" / PARAMETERS
    path.write_bytes(path.read_bytes() + b"\0")
    found = run(capsys, "verify", registry, code=1)
    assert [one["ok"] for one in found["checked"]] == [True, False, True]
    assert "altered after it was signed" in found["checked"][1]["says"]
    assert [one["ok"] for one in run(capsys, "list", registry)["versions"]] == [True, False]
    assert run(capsys, "verify", models[0], "--key", key)["ok"] is True
    (registry / "promoted.json").write_text(
        '{"registry": 1, "history": [{"version": 9, "when": "", "by": "", "before": 1}]}'
    )
    assert run(capsys, "verify", registry, "--version", 1, code=1)["checked"][-1]["says"].endswith("which is not there")


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["add", "r"], "needs --model DIR", 2),
        (["add", "r", "--model", "m"], "needs --key FILE", 2),
        (["add", "r", "--model", "m", "--key", "nowhere.pub"], "no such file", 2),
        (["list", "nowhere"], "no such registry", 2),
        (["promote", ".", "--version", "1"], "no version 1; there are: none", 1),
        (["promote", "."], "needs --version N", 2),
        (["show", "."], "no version 0", 1),
        (["list", ".", "--set", "a.b=1"], "takes neither --set nor --out", 2),
    ],
)
def test_the_command_names_the_mend(
    words: list[str], says: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["models", *words]) == code
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_a_model_outside_a_registry_needs_a_key(models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert (models[0] / LINEAGE).exists()
    assert main(["models", "verify", str(models[0])]) == 2
    assert "needs --key FILE" in capsys.readouterr().err
