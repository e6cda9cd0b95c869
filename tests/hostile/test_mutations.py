"""Every protection is held by a test: taken out, in a copy of the source, that test fails."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pytest
from hostile.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
ROOMS = ("common", "client", "server", "simulations", "tests")
AT_A_TIME = 2
FAILED, PASSED = 1, 0  # pytest's exit codes

pytestmark = pytest.mark.slow


def copy_source(to: Path) -> Path:
    """Returns a copy of all that tests need."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, to / room, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


def environment_of(copy: Path) -> dict[str, str]:
    """The copy's source comes before the installed one, the repository; no bytecode outlives a change."""
    return os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class Bench:
    """A copy of the source and a process beside it that runs tests there."""

    copy: Path
    process: subprocess.Popen[str]

    def run(self, test: str) -> tuple[int, str]:
        """Returns pytest's exit code and output for one test (or several, by a folder or an option)."""
        output = self.copy / "output.txt"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{test}\t{output}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), output.read_text(encoding="utf-8")


@contextmanager
def bench(copy: Path) -> Iterator[Bench]:
    copy_source(copy)
    command = [sys.executable, "-P", str(copy / "tests" / "hostile" / "warm_pytest.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=copy, env=environment_of(copy), **pipes) as process:  # type: ignore[call-overload]
        yield Bench(copy, process)
        process.stdin.close()


@contextmanager
def mutated(copy: Path, mutation: Mutation) -> Iterator[None]:
    """Takes a protection out of a copy, for a while."""
    path = copy / mutation.file
    honest = path.read_text(encoding="utf-8")
    changed = honest
    for text, instead in mutation.edits:
        changed = changed.replace(text, instead or "pass")
    path.write_text(changed, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(honest, encoding="utf-8")


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Bench]]:
    with ExitStack() as stack:
        yield [stack.enter_context(bench(tmp_path_factory.mktemp("source"))) for _ in range(AT_A_TIME)]


@pytest.fixture(scope="module")
def outcomes(benches: list[Bench]) -> dict[Mutation, tuple[int, str]]:
    """Mutation -> what its test did without the protection."""
    free: SimpleQueue[Bench] = SimpleQueue()
    for each in benches:
        free.put(each)

    def play(mutation: Mutation) -> tuple[Mutation, tuple[int, str]]:
        taken = free.get()
        try:
            with mutated(taken.copy, mutation):
                return mutation, taken.run(mutation.test)
        finally:
            free.put(taken)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return dict(pool.map(play, MUTATIONS))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_protection_stands_in_the_source_once(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    for text, _ in mutation.edits:
        assert source.count(text) == 1, f"{mutation.file} holds {text!r} {source.count(text)} times"


def test_the_copy_is_what_is_tested(benches: list[Bench]) -> None:
    """The package is installed from the repository itself: without this, nothing below would be changed at all."""
    copy = benches[0].copy
    (copy / "tests" / "test_where.py").write_text(
        "import client.worker\nimport common.secagg.checks\nimport server.secure\n\n\ndef test_where() -> None:\n"
        "    for module in (client.worker, common.secagg.checks, server.secure):\n"
        f"        assert module.__file__.startswith({str(copy)!r})\n"
    )
    code, output = benches[0].run("tests/test_where.py")
    assert code == PASSED, output
    with mutated(copy, Mutation("common/secagg/checks.py", (("from collections", "1 / 0\nfrom collections"),), "")):
        assert "ZeroDivisionError" in benches[0].run("tests/test_where.py")[1]


def test_without_a_mutation_every_named_test_passes(benches: list[Bench]) -> None:
    copy = benches[0].copy
    (copy / "named.txt").write_text("\n".join(sorted({mutation.test for mutation in MUTATIONS})))
    code, output = benches[0].run("@named.txt")
    assert code == PASSED, output[-3000:]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_without_its_protection_a_test_fails(mutation: Mutation, outcomes: dict[Mutation, tuple[int, str]]) -> None:
    code, output = outcomes[mutation]
    assert code == FAILED, output[-2000:]
    assert f"FAILED {mutation.test.split('[')[0]}" in output, output[-2000:]
