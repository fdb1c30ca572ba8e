"""Files that are either whole or not there; locks, and files that are nobody's data."""

from __future__ import annotations

import os
import secrets
import shutil
import time
import warnings
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

DAY = 24 * 3600
SYSTEM_FILES = {"desktop.ini", "thumbs.db", "ehthumbs.db", "icon\r", "__macosx", "@eadir"}
SYSTEM_FILES |= {"$recycle.bin", "system volume information", "lost+found"}


class WriteError(OSError):
    """A file that cannot be written; the message names it, the reason and the remedy."""


def is_system_file(name: str) -> bool:
    """Whether a system or an office program put a file of this name beside one's data.

    Hidden files, macOS's "._a.png", locks of Office ("~$a.xlsx"), Windows's marks of a download
    ("a.xlsx:Zone.Identifier"), thumbnails and icons.
    """
    name = name.lower()
    is_mark = name.startswith((".", "~$")) or name.endswith("zone.identifier")
    return is_mark or name in SYSTEM_FILES


def file_size(path: Path) -> int:
    """Bytes in a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def find_copies(files) -> dict[Path, Path]:
    """File -> the one with the same bytes and the shortest name, of every file that is a copy.

    What has the same size is compared in the middle, and only what is alike there as a whole. What
    is empty or cannot be read is no copy of anything.
    """
    import pooch

    def size(file):
        return file.stat().st_size or file

    def middle(file):
        with open(file, "rb") as opened:
            opened.seek(size(file) // 2)
            return opened.read(1 << 16)

    def whole(file):
        return pooch.file_hash(str(file), alg="sha1")

    groups = [files]
    for property_of in (size, middle, whole):
        alike = {}
        for number, group in enumerate(groups):
            for file in group:
                with suppress(OSError):
                    alike.setdefault((number, property_of(file)), []).append(file)
        groups = [group for group in alike.values() if len(group) > 1]
    groups = [sorted(group, key=lambda file: len(file.name)) for group in groups]
    return {copy: first for first, *others in groups for copy in others}


@contextmanager
def lock(path: str | os.PathLike):
    """One thread or process at a time for `path`, by a hidden file beside it.

    Where no lock can be had (a file system without locks, a folder that is read-only) the work
    goes on without one, and a warning says so. OSError if there is no folder for `path`.
    """
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    held = FileLock(str(file))
    try:
        _check_locks(file)
        held.acquire()
    except (OSError, NotImplementedError) as error:
        text = f"{file}: cannot be locked ({getattr(error, 'strerror', None) or error})"
        warnings.warn(f"{text}; let only one program at a time work there", stacklevel=3)
    try:
        yield
    finally:
        held.release()


def _check_locks(file):
    """OSError on a file system without locks: some versions of filelock wait there for ever."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    with open(file, "a") as probe, suppress(BlockingIOError, PermissionError):
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
