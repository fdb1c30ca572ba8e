"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

DAY = 24 * 3600


class WriteError(OSError):
    """A file that cannot be written; the message names it, the reason and the remedy."""


@contextmanager
def temporary_beside(path: Path):
    """A new hidden name beside `path`; gone at the end, with what a killed process left there."""
    own = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        yield own
    finally:
        for old in (own, *path.parent.glob(f".{escape(path.name)}.*.part")):
            with suppress(OSError):
                if old == own or time.time() - old.stat().st_mtime > DAY:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()


def write_whole(path, write) -> Path:
    """Call `write` with a new binary file, and name it `path` only when it is complete.

    Whatever happens while it is written, a file that was there before stays as it was. WriteError,
    in one line, where the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(path) as temporary:
            with open(temporary, "wb") as file:
                write(file)
            os.replace(temporary, path)
    except WriteError:
        raise
    except OSError as error:
        # NumPy says of a full disk only how much it wrote
        reason = error.strerror or f"perhaps no space left on device: {error}"
        remedy = "make room or choose another folder"
        raise WriteError(f"{path}: cannot be written ({reason}); {remedy}") from None
    return path
