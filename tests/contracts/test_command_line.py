"""The command line's surface, frozen: add, do not rename. Exit codes, and errors without tracebacks."""

import json
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from common.cli import COMMANDS, build_parser, main

NAMES = [
    *("simulate", "sweep", "audit", "budget", "check", "provision", "keys", "server", "worker", "client"),
    *("erase", "report", "data", "models", "predict", "rank", "explain", "copy", "refresh", "serve"),
]


def test_the_commands_are_the_promised_ones_in_their_order() -> None:
    assert list(COMMANDS) == NAMES


# The word that follows a command's name.
ACTIONS = {
    "budget": ["plan", "show", "forecast"],
    "keys": ["new", "rotate", "show"],
    "models": ["add", "list", "show", "promote", "verify"],
}
SPELT = [[name, *action] for name in NAMES for action in [[one] for one in ACTIONS.get(name, [])] or [[]]]


def test_the_actions_are_the_promised_ones_in_their_order() -> None:
    found = {name: [action for action, _ in command.actions] for name, command in COMMANDS.items() if command.actions}
    assert found == ACTIONS


@pytest.mark.parametrize("words", SPELT, ids=" ".join)
def test_every_command_takes_the_common_arguments(words: list[str]) -> None:
    arguments = build_parser().parse_args(
        [*words, "x.toml", "--set", "a.b=1", "--set", "c.d=2", "--out", "o", "--json"]
    )
    assert arguments.config == Path("x.toml")
    assert arguments.set == ["a.b=1", "c.d=2"]
    assert arguments.out == Path("o")
    assert arguments.json is True


def test_the_options_of_sweep_are_the_promised_ones() -> None:
    words = ["--epsilon", "1", "8", "--seeds", "3", "--modes", "local", "pooled", "--vary", "privacy.clip=0.1,1.0"]
    words += ["--vary", "model.width=4,8", "--set-for", "local:round.local_steps=2", "--budget", "9", "--resume"]
    found = vars(build_parser().parse_args(["sweep", "x.toml", *words]))
    assert {name: found[name] for name in ("epsilon", "seeds", "modes", "vary", "set_for", "budget", "resume")} == {
        "epsilon": [1.0, 8.0],
        "seeds": 3,
        "modes": ["local", "pooled"],
        "vary": ["privacy.clip=0.1,1.0", "model.width=4,8"],
        "set_for": ["local:round.local_steps=2"],
        "budget": 9.0,
        "resume": True,
    }


def test_it_is_installed_as_hushclick() -> None:
    (script,) = entry_points(group="console_scripts", name="hushclick")
    assert script.value == "common.cli:main"


@pytest.mark.parametrize("name", [name for name in NAMES if not COMMANDS[name].built])
def test_what_is_not_built_yet_says_so_and_exits_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "x.toml"]) == 2
    assert "not in this version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["simulate"], "needs a configuration"),
        (["simulate", "nowhere.toml"], "no such file"),
        (["simulate", "simulations"], "is a folder"),
        (["simulate", "simulations/configs/smoke.toml", "--set", "round.num_round=3"], "did you mean round.num_rounds"),
        (["simulate", "simulations/configs/smoke.toml", "--set", "privacy.epsilon=-1"], "greater than 0"),
        (["simulate", "simulations/configs/smoke.toml", "--set", "nonsense"], "expected table.key=value"),
        (["sweep"], "sweep needs a configuration"),
        (["sweep", "nowhere.toml"], "no such file"),
        (["sweep", "simulations/configs/sweep.toml", "--modes", "central"], "of local, distributed, pooled, none"),
        (["sweep", "simulations/configs/sweep.toml", "--seeds", "1"], "at least 2"),
        (["sweep", "simulations/configs/sweep.toml", "--budget", "9"], "nothing is charged, generated clicks"),
        (["sweep", "simulations/configs/smoke.toml"], "one mode alone is set with --set-for MODE:KEY=VALUE"),
        (["report", "nowhere"], "no such run folder"),
        (["check"], "check needs a configuration"),
        (["check", "nowhere.toml"], "no such file"),
        (["check", "simulations/configs/smoke.toml"], "unknown key"),
        (["check", "nowhere.toml", "--overlap", "ask"], "needs --with NAME"),
        (["data", "nowhere.toml"], "no such file"),
        (["budget"], "budget needs one of plan, show, forecast"),
        (["budget", "plan"], "budget plan needs a configuration"),
        (["budget", "plan", "nowhere.toml"], "no such file"),
        (["budget", "show"], "budget show needs a ledger file or a run folder"),
        (["budget", "show", "nowhere.jsonl"], "no such ledger"),
        (["budget", "forecast", "nowhere"], "no such run folder"),
        (["provision"], "provision needs a consortium"),
        (["provision", "nowhere.toml"], "provision needs --out DIR"),
        (["provision", "nowhere.toml", "--out", "runs/kits"], "no such file"),
        (["erase"], "erase needs a configuration"),
        (["erase", "nowhere.toml", "--user", "u1"], "no such file"),
        (["erase", "nowhere.toml"], "erase needs --user ID"),
        (["keys"], "keys needs one of new, rotate, show"),
        (["keys", "new"], "keys new needs --out DIR"),
        (["keys", "new", "x"], "keys new takes no file"),
        (["keys", "rotate", "nowhere"], "no such folder"),
        (["keys", "show"], "keys show needs a key or certificate file"),
        (["keys", "show", "nowhere.pem"], "no such file"),
        (["models"], "models needs one of add, list, show, promote, verify"),
        (["models", "list"], "models list needs a registry"),
        (["models", "list", "nowhere"], "no such registry"),
        (["models", "add", "nowhere"], "models add needs --model DIR"),
        (["predict"], "predict needs a worker.toml or a model folder"),
        (["predict", "nowhere"], "no such worker.toml and no such model folder"),
    ],
)
def test_usage_errors_name_the_mend_and_exit_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_errors_are_json_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "nowhere.toml", "--json"]) == 2
    out = json.loads(capsys.readouterr().out)
    assert out["exit_code"] == 2
    assert "nowhere.toml" in out["error"]


@pytest.mark.parametrize(
    "argv",
    [
        ["frobnicate", "x"],
        ["simulate", "x.toml", "--frobnicate"],
        ["simulate", "--out"],
        ["budget", "x.toml"],
        ["check", "x", "--overlap", "y"],
    ],
)
def test_unknown_words_exit_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2


def test_help_and_version_need_no_heavy_import() -> None:
    code = (
        "import sys; from common.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "main(['--version'])\n"
        "heavy = {'torch', 'flwr', 'transformers', 'opacus', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "simulate" in done.stdout
    assert "hushclick 0." in done.stdout


def test_the_readme_shows_the_help_that_the_program_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    help_text = build_parser().format_help()
    listed = help_text[help_text.index("commands:") :]
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert " ".join(listed.split()) in " ".join(readme.split())


def test_every_command_of_the_readme_is_understood() -> None:
    """Each `hushclick ...` line of README and docs parses, and each make target that they name exists."""
    root = Path(__file__).parents[2]
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    lines = 0
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        for line in page.read_text(encoding="utf-8").splitlines():
            words = line.strip().removeprefix("$ ").split()
            if words and words[0] in ("hushclick", ".venv/bin/hushclick") and "..." not in line:
                build_parser().parse_args(shlex.split(line.strip().removeprefix("$ "), comments=True)[1:])
                lines += 1
            if line.startswith("make "):
                assert f"\n{words[1]}:" in makefile, line
    assert lines >= 3
