"""What the operator asks of its own SuperLink: which nodes it knows, and runs started, watched and stopped.

Everything goes through Flower's own `flwr` program, which prints JSON; `flwr run` ends with 0 whatever becomes of the
run, so that its state is asked for.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import HushclickError
from common.programs import environment, program, write_bundle, write_connection
from common.runfolder import write_atomically

NODES_VERSION = 1
_CALL_SECONDS = 120.0
_MEND = "remove it together with the SuperLink's database: partners are then registered anew"


class Control:
    """The control API of a SuperLink, https://ADDRESS.

    Args:
        home: FLWR_HOME of these calls; the connection is written there.
        address: host:port on loopback.
        ca: that signed the SuperLink's certificate.
    """

    def __init__(self, home: Path, address: str, ca: Path) -> None:
        write_connection(home, address, ca)
        self._home, self._nodes = home, home / "nodes.json"

    def know(self, keys: Mapping[str, Path]) -> None:
        """Registers the partners' public node keys, and takes off the list what is not among them.

        A SuperLink that was restarted with its database knows its nodes already.
        """
        nodes = self._ask("supernode", "list")["nodes"]  # those that were taken off among them
        listed = {str(node["node-id"]) for node in nodes if node.get("status") != "unregistered"}
        known = {name: found for name, found in self._written().items() if found["node"] in listed}
        wanted = {name: path.read_text(encoding="ascii").strip() for name, path in keys.items()}
        for name in sorted(known):
            if wanted.get(name) != known[name]["key"]:
                self._ask("supernode", "unregister", known.pop(name)["node"])
        for name in sorted(wanted.keys() - known.keys()):
            node = self._ask("supernode", "register", str(keys[name]), more=("--name", name))["node-id"]
            known[name] = {"node": str(node), "key": wanted[name]}
        write_atomically(self._nodes, json.dumps({"version": NODES_VERSION, "nodes": known}, indent=1).encode())

    def _written(self) -> dict[str, dict[str, str]]:
        """Returns partner -> node id and key, as registered before: Flower's own list has no names."""
        try:
            found = json.loads(self._nodes.read_bytes())
            version, nodes = found.get("version"), found.get("nodes", {})
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError):
            raise HushclickError(f"{self._nodes}: damaged; {_MEND}") from None
        if version != NODES_VERSION:
            raise HushclickError(
                f"{self._nodes}: version {version!r:.20}, and this release reads {NODES_VERSION}; go on with the"
                f" release that wrote it, or {_MEND}"
            )
        return dict(nodes)

    def start(self, run_folder: Path) -> str:
        """Starts a run of the installed apps and returns its id."""
        bundle = write_bundle(self._home / "bundle")
        settings = f"run-folder={json.dumps(str(run_folder))}"
        return str(self._ask("run", str(bundle), more=("--run-config", settings))["run-id"])

    def state(self, run: str) -> tuple[str, str]:
        """Returns the status of a run, such as "running" or "finished:failed", and its details."""
        found = self._ask("list", more=("--run-id", run))["runs"]
        return (str(found[0]["status"]), str(found[0]["status-details"])) if found else ("unknown", "")

    def stop(self, run: str) -> None:
        """Stops a run."""
        self._ask("stop", run)

    def _ask(self, *words: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
        try:
            done = subprocess.run(  # noqa: S603 (a program of this environment, words of this operator)
                [program("flwr"), *words, "own", *more, "--format", "json"],
                env=environment(self._home),
                cwd=self._home,
                capture_output=True,
                text=True,
                timeout=_CALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise HushclickError(f"flwr {words[0]}: no answer of the SuperLink in {_CALL_SECONDS:g} s") from None
        start = done.stdout.find("{")
        try:
            found: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
        except ValueError:
            found = {}
        if done.returncode or not found.get("success"):
            said = str(found.get("error-message") or done.stderr.strip() or done.stdout.strip())[-500:]
            raise HushclickError(f"flwr {' '.join(words[:2])}: {said or 'failed without a word'}")
        return found
