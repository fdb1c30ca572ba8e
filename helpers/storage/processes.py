"""Processes that share the work of a whole cohort."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, ProcessPoolExecutor
from itertools import count

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


def kill(pid: int) -> None:
    """End a process without warning, as a machine that fails would."""
    os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


class LosesAWorker(Executor):
    """`executor`, of which process `pid` is killed when task number `n` (from 1) is handed in."""

    def __init__(self, executor: Executor, pid: int, n: int):
        self.executor, self.pid, self.n, self.numbers = executor, pid, n, count(1)

    def submit(self, *task):
        """Hand in a task: a function and its arguments; returns its future."""
        if next(self.numbers) == self.n:
            kill(self.pid)
        return self.executor.submit(*task)
