"""A SuperNode that has given up is told from one that is connected, and from one that only serves its own shims."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from client.uplink import Uplink

# Listens for shims, is connected to the server, and hangs up when it is told to; says when each is so.
NODE = """
import socket, sys
shims = socket.create_server(("127.0.0.1", 0))
shim = socket.create_connection(shims.getsockname())
inbound, _ = shims.accept()
server = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("up", flush=True)
sys.stdin.readline()
server.close(); shim.close()
print("down", flush=True)
sys.stdin.readline()
"""


def wait(there: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not there() and time.monotonic() < deadline:
        time.sleep(0.02)
    return there()


def test_a_process_without_connections_of_its_own_has_given_up() -> None:
    uplink = Uplink(quiet_seconds=0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [sys.executable, "-c", NODE, str(server.getsockname()[1])]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
            assert node.stdin
            assert node.stdout
            assert node.stdout.readline() == "up\n"
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                assert not uplink.is_given_up(node.pid)
                time.sleep(0.02)
            node.stdin.write("\n")
            node.stdin.flush()
            assert node.stdout.readline() == "down\n"
            assert wait(lambda: uplink.is_given_up(node.pid))
            node.communicate("\n", timeout=30)


def test_a_new_process_is_given_its_time_and_a_dead_one_is_not_judged() -> None:
    uplink = Uplink(quiet_seconds=0.2)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as silent:
        assert not uplink.is_given_up(silent.pid)
        assert wait(lambda: uplink.is_given_up(silent.pid))
        assert not uplink.is_given_up(os.getpid())  # another one
        assert wait(lambda: uplink.is_given_up(silent.pid))
        silent.communicate(b"\n")
    assert not uplink.is_given_up(silent.pid)
