"""Ending a long-lived process from outside, in good order."""

import signal
import threading


def stop_on_signals() -> threading.Event:
    """Returns an event that SIGTERM and SIGINT set; to be called in the main thread."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
