"""A deployment on one machine, from kits to a model, through Flower's own programs over TLS."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import tomli_w
from kits import Operator, consortium

from common.auditlog import read_audit_log
from common.config import Config, fingerprint, load_config, read_toml, to_table
from common.privacy.ledger import Ledger
from common.programs import END_SECONDS, free_port
from common.runfolder import RunFolder, partner_name
from server.checkpoint import load_checkpoint

SECONDS = 1200.0  # of anything that must happen; minutes on a machine that is busy with other things
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


class Deployment:
    """Kits of a small consortium, filled in, and the processes that were started from them."""

    def __init__(self, root: Path, operator: Operator, config: Config, simulated: RunFolder) -> None:
        self.root, self.kits = root, operator.kits
        self.names = [partner_name(number) for number in range(config.data.partners)]
        self.processes: list[subprocess.Popen[bytes]] = []
        self._provision(operator, config, simulated)

    def _provision(self, operator: Operator, config: Config, simulated: RunFolder) -> None:
        table = to_table(config)
        del table["privacy"]["fixed_seed"]  # which provisioning refuses, as it should
        users = {
            n: read_toml(simulated.partner(i) / "partner.toml")["declared_users"] for i, n in enumerate(self.names)
        }
        partners = [{"name": name, "declared_users": users[name]} for name in self.names]
        server = {"host": "localhost", "port": free_port()}
        operator.provision(consortium(partners=partners, server=server), run=table)
        self.change(self.kits / "server" / "run.toml", ("privacy", "fixed_seed", config.privacy.fixed_seed))
        for number, name in enumerate(self.names):
            kit, theirs = operator.partner(name), simulated.partner(number)
            shutil.copyfile(theirs / "clicks.parquet", kit / "clicks.parquet")
            shutil.copyfile(theirs / "card.toml", kit / "card.toml")
            self.change(kit / "worker.toml", ("privacy", "fixed_seed", config.privacy.fixed_seed))
            self.change(kit / "worker.toml", ("aggregation", "round_secrets", "disk"))
            self.change(kit / "worker.toml", ("worker", "listen", f"unix:{self.socket(number)}"))
        home = self.kits / "server"
        shutil.copyfile(simulated.central, home / "central.parquet")
        shutil.copyfile(simulated.partner(0) / "card.toml", home / "card.toml")

    def socket(self, number: int) -> Path:
        return Path("/tmp") / f"hushd-{os.getpid()}" / str(number) / "socket"

    @staticmethod
    def change(path: Path, change: tuple[str, str, Any]) -> None:
        table, (section, key, value) = read_toml(path), change
        table.setdefault(section, {})[key] = value
        path.write_text(tomli_w.dumps(table), encoding="utf-8")

    def point(self, name: str, address: str) -> None:
        """Has a partner reach the server at another address, a proxy's say."""
        path = self.kits / "partners" / name / "client.toml"
        path.write_text(tomli_w.dumps(read_toml(path) | {"superlink": address}), encoding="utf-8")

    @property
    def port(self) -> int:
        """The gate's."""
        port: int = read_toml(self.kits / "server" / "server.toml")["port"]
        return port

    def start(self, *words: str, wrap: Callable[[list[str]], list[str]] = list) -> "subprocess.Popen[bytes]":
        log = self.root / f"{words[0]}-{len(self.processes)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                wrap([sys.executable, "-m", "common.cli", *words]), stdout=out, stderr=out, env=ENVIRONMENT,
                cwd=self.root,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def log_of(self, process: "subprocess.Popen[bytes]") -> str:
        """Returns what a command has said."""
        (log,) = self.root.glob(f"*-{self.processes.index(process)}.log")
        return log.read_text(errors="replace")

    def start_server(self) -> "subprocess.Popen[bytes]":
        return self.start("server", str(self.kits / "server" / "server.toml"))

    def start_client(self, name: str, wrap: Callable[[list[str]], list[str]] = list) -> "subprocess.Popen[bytes]":
        return self.start("client", str(self.kits / "partners" / name / "client.toml"), wrap=wrap)

    @property
    def result(self) -> RunFolder:
        return RunFolder(self.kits / "server" / "run")

    def rounds_done(self) -> int:
        if not self.result.checkpoint.exists():
            return 0
        return load_checkpoint(self.result.checkpoint, fingerprint(load_config(self.result.config))).round

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        try:
            return process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.said()) from None

    def wait_for_round(self, number: int) -> None:
        deadline = time.monotonic() + SECONDS
        while self.rounds_done() < number:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.3)

    def wait_until(self, there: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        """Waits until something is there, and returns it."""
        deadline = time.monotonic() + seconds
        while not (found := there()):
            assert time.monotonic() < deadline, f"{what}\n{self.said()}"
            time.sleep(0.01)
        return found

    def facts(self, what: str) -> list[dict[str, Any]]:
        """Returns what the server's audit log says of one kind, as far as it goes."""
        if not self.result.audit.exists():
            return []
        return [record for record in read_audit_log(self.result.audit) if record["what"] == what]

    def state(self, name: str) -> Path:
        return self.kits / "partners" / name / "state"

    def ledger(self, name: str) -> Ledger:
        return Ledger(self.kits / "partners" / name / "ledger.jsonl")

    def asked(self, name: str, kind: str, since: int) -> int:
        """Returns the round for which a partner's worker is asked something now, 0 for none from `since` on."""
        path = self.state(name) / "audit.jsonl"
        if not path.exists():
            return 0
        last = read_audit_log(path)[-1]
        number = int(last.get("round", 0))
        return number if (last["what"], last.get("type")) == ("asked", kind) and number >= since else 0

    def processes_of(self, client: "subprocess.Popen[bytes]", word: str) -> list[psutil.Process]:
        """Returns what runs under a command now and has a word in its command line; Flower's own detach themselves."""
        found = psutil.Process(client.pid).children(recursive=True)
        return [process for process in found if word in " ".join(_words(process))]

    def said(self) -> str:
        logs = [*sorted(self.root.glob("*.log")), self.kits / "server" / "superlink.log"]
        logs += sorted(self.kits.glob("partners/*/state/*.log"))
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs if path.exists()
        )

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(5 * END_SECONDS)
            except subprocess.TimeoutExpired:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
        shutil.rmtree(self.socket(0).parents[1], ignore_errors=True)


def same_model(one: RunFolder, other: RunFolder) -> bool:
    """Whether two runs ended with the same bits."""
    files = [sorted(folder.model.glob("*.safetensors"))[0].read_bytes() for folder in (one, other)]
    return files[0] == files[1]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Proxy:
    """A wire between a partner and the server that can be cut: what is on its way stays there, and nothing comes."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._whole = threading.Event()
        self._whole.set()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def restore(self) -> None:
        """Lets new connections through; those from before the cut are dead, as behind a router that forgot them."""
        self._close_all()
        self._whole.set()

    def end(self) -> None:
        self._listener.close()
        self._close_all()

    def _close_all(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets.clear()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        self._whole.wait()
        try:
            far = socket.create_connection(self._target, timeout=30)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        self._sockets.append(far)
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(2**16):
                self._whole.wait()
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
