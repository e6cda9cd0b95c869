"""A deployment on one machine, over TLS on loopback: seconds of a round beside stock Flower's, memory, and the shim.

Both sides run the same SuperLink and SuperNodes. Stock: four exchanges of empty messages, the stages of SecAgg+, sent
with `Grid.send_and_receive` to a ClientApp that does nothing. Ours: whole rounds of `hushclick server` and
`hushclick client`, gate and workers included, with secure aggregation, privacy, and a step on a few rows. The sides
take turns, so that a busy moment hits both.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.empty_apps import ANSWER, PLAN
from benchmarks.measuring import REPOSITORY, Options, PeakMemory, spread, spread_text
from common.config import load_config
from common.errors import HushclickError
from common.programs import end_all, environment, free_port, program, running, write_bundle
from server.control import Control
from server.deployment import ServerDeployment, load_deployment, node_keys
from server.superlink import own_link
from simulations.filled_kits import Example, fill_kits

_EXCHANGES = 4
_SECONDS = 1800.0
_SIZES = ((3, 6, 2), (20, 3, 1))  # partners, rounds, repeats
_QUICK = ((3, 2, 1),)
_SHIM_REPEATS = 7


def measure(options: Options) -> dict[str, Any]:
    """Returns round seconds and memory for each number of partners, and what the shim's import takes."""
    cases = [_case(options, *size) for size in (_QUICK if options.quick else _SIZES)]
    return {"cases": cases, "shim": _shim(2 if options.quick else _SHIM_REPEATS)}


def _case(options: Options, partners: int, rounds: int, repeats: int) -> dict[str, Any]:
    stock: list[float] = []
    ours: list[float] = []
    memory: list[float] = []
    for repeat in range(repeats):
        folder = options.scratch / f"{partners}-{repeat}"
        folder.mkdir(parents=True)
        kits = _kits(options, folder, partners, rounds)
        stock += _stock(kits, folder, rounds)[1:]  # the first waits for nodes and for what is imported once
        seconds, peak = _ours(kits, folder)
        ours += seconds[1:]
        memory.append(peak)
    ratio = spread(ours)["median"] / spread(stock)["median"]
    figures = {"stock": spread(stock), "ours": spread(ours), "mib_per_partner": spread(memory)}
    return {"partners": partners, "rounds": rounds, "ours_by_stock": ratio, **figures}


def _kits(options: Options, folder: Path, partners: int, rounds: int) -> Path:
    settings = [f"data.partners={partners}", f"round.num_rounds={rounds}", f"data.generator.users={partners * 40}"]
    settings += [f'model.encoder="{options.encoder}"'] if options.encoder else []
    config = load_config(REPOSITORY / "benchmarks" / "configs" / "deployed.toml", settings)
    names = [f"p{number}" for number in range(partners)]
    sockets = folder / "s"
    worker = {name: {"worker": {"listen": f"unix:{sockets / name / 'w'}"}} for name in names}
    return fill_kits(config, Example(names, ("localhost",), free_port(), worker, {}), folder)


def _stock(kits: Path, folder: Path, rounds: int) -> list[float]:
    """Returns the seconds of each of stock Flower's rounds."""
    deployment = load_deployment(kits / "server" / "server.toml")
    run, partners = folder / "stock", sorted((kits / "partners").iterdir())
    run.mkdir()
    plan = {"nodes": len(partners), "rounds": rounds, "exchanges": _EXCHANGES}
    (run / PLAN).write_text(json.dumps(plan), encoding="utf-8")
    with ExitStack() as stack:
        link = stack.enter_context(own_link(_stock_deployment(deployment, run), run / "flower"))
        control = Control(run / "flower", link.address, Path(deployment.ca))
        control.know(node_keys(deployment))
        for kit in partners:
            words = [
                *(program("flower-supernode"), "--root-certificates", deployment.ca, "--superlink", link.address),
                *("--auth-supernode-private-key", str(kit / "node.key"), "--port", str(free_port())),
            ]
            stack.enter_context(running(words, run / kit.name, run / f"{kit.name}.log"))
        _start_stock(control, run, link.address)
        return list(_wait_for(run / ANSWER, run)["round_seconds"])


def _stock_deployment(deployment: ServerDeployment, run: Path) -> ServerDeployment:
    return replace(deployment, database=str(run / "superlink.db"), log=str(run / "superlink.log"))


def _start_stock(control: Control, run: Path, address: str) -> None:
    """Sends stock Flower's apps as stock Flower does: in the bundle."""
    bundle = write_bundle(run / "flower" / "bundle", server="empty_apps:stock", client="empty_apps:client")
    shutil.copyfile(REPOSITORY / "benchmarks" / "empty_apps.py", bundle / "empty_apps.py")
    project = bundle / "pyproject.toml"
    project.write_text(project.read_text(encoding="utf-8").replace('fab-include = ["/README.md"]\n', ""), "utf-8")
    subprocess.run(
        [program("flwr"), "run", str(bundle), "own", "--run-config", f"run-folder={json.dumps(str(run))}"],
        env=environment(run / "flower"),
        cwd=run,
        check=True,
        capture_output=True,
    )


def _wait_for(path: Path, run: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            log = (run / "superlink.log").read_text(encoding="utf-8", errors="replace")[-2000:]
            raise HushclickError(f"stock Flower did not finish its rounds\n{log}")
        time.sleep(0.5)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _ours(kits: Path, folder: Path) -> tuple[list[float], float]:
    """Returns the seconds of each of our rounds, and the peak memory (PSS) per partner, the server's share included."""
    partners = sorted((kits / "partners").iterdir())
    with PeakMemory() as memory, ExitStack() as stack:
        server = stack.enter_context(_started(folder, "server", kits / "server" / "server.toml"))
        for kit in partners:
            stack.enter_context(_started(folder, "client", kit / "client.toml"))
        if server.wait(_SECONDS) != 0:
            log = (folder / "server-server.log").read_text(encoding="utf-8", errors="replace")[-2000:]
            raise HushclickError(f"the deployment failed\n{log}")
    metrics = json.loads((kits / "server" / "run" / "metrics.json").read_bytes())
    return [record["timings"]["train_seconds"] for record in metrics["rounds"]], memory.above_mib / len(partners)


@contextmanager
def _started(folder: Path, what: str, path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with (folder / f"{what}-{path.parent.name}.log").open("wb") as log:
        process = subprocess.Popen([program("hushclick"), what, str(path)], stdout=log, stderr=log, cwd=folder)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            end_all(folder)


def _shim(repeats: int) -> dict[str, Any]:
    """Returns the seconds in which a fresh Python imports the shim, beside those of Flower's own part of it."""
    words = {"python": "pass", "flwr": "import flwr.app, flwr.clientapp", "shim": "import client.app"}
    found: dict[str, list[float]] = {name: [] for name in words}
    for _ in range(repeats):
        for name, code in words.items():
            started = time.monotonic()
            subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0"})
            found[name].append(time.monotonic() - started)
    return {name: spread(seconds) for name, seconds in found.items()}


def tables(result: dict[str, Any]) -> Sequence[Table]:
    """Returns a table of rounds and one of the shim's start."""
    rounds = Table(title=f"Seconds of a round: ours, and {_EXCHANGES} empty exchanges of stock Flower")
    for column in ("partners", "stock", "ours", "ours / stock", "MiB per partner"):
        rounds.add_column(column, justify="right", no_wrap=True)
    for case in result["cases"]:
        rounds.add_row(
            str(case["partners"]),
            spread_text(case["stock"], 1),
            spread_text(case["ours"], 1),
            f"{case['ours_by_stock']:.2f}",
            spread_text(case["mib_per_partner"], 0),
        )
    shim = Table(title="A fresh Python imports, seconds")
    for column in ("what", "seconds"):
        shim.add_column(column, no_wrap=True)
    for name, seconds in result["shim"].items():
        shim.add_row(name, spread_text(seconds))
    return [rounds, shim]
