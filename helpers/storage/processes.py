"""Processes that share the work of a whole cohort."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor

KILLED = (
    "a process was killed, most likely because memory ran out; close other programs or give "
    "workers=1, and run it again"
)


def start_workers(n: int) -> ProcessPoolExecutor:
    """An executor of `n` processes that end with this one, even where it is killed.

    Ctrl-C is left to this process: a worker finishes what it does and says nothing.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(n, context, initializer=_follow_the_parent)


def _follow_the_parent():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
