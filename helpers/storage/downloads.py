"""Fetch large files over unreliable connections, and unpack zip archives safely."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import struct
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from helpers.storage.files import temporary_beside

MAGIC = {".zip": b"PK", ".gz": b"\x1f\x8b"}
BUSY = {408, 425, 429, 500, 502, 503, 504}
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)$")
MAX_PAUSE = 60.0
MAX_EXPANSION = 100
BLOCK = 1 << 20
DAMAGE = (RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError)
DAMAGE += (struct.error, MemoryError)


class DownloadError(RuntimeError):
    """A file that cannot be fetched or stored; the message names it, the reason and the remedy."""


class ArchiveError(RuntimeError):
    """An archive or a packed file that is damaged or unsafe; the message names it and says why."""


class _Failure(Exception):
    def __init__(self, reason, again=True, pause=0.0):
        super().__init__(reason)
        self.again, self.pause = again, pause


def lock(path: str | os.PathLike):
    """Context manager: one thread or process at a time for `path` (a hidden file beside it)."""
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(str(path.with_name(f".{path.name}.lock")))


def file_size(path: Path) -> int:
    """Bytes in a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def check_space(folder: str | os.PathLike, needed: int) -> None:
    """Raise DownloadError unless the disk of `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder}: {needed / 1e9:,.2f} GB are needed and {free / 1e9:,.2f} GB are free; "
            "make room or choose a folder on another disk"
        )


def download(
    url: str,
    path: str | os.PathLike,
    size: int | None = None,
    sha256: str | None = None,
    chunk: int = BLOCK,
    attempts: int = 5,
    backoff: float = 1.0,
    timeout: float = 30,
) -> Path:
    """Fetch `url` to `path` and return the path; at once if the right file is already there.

    size (bytes) and sha256 (hex) are checked where given. chunk: bytes read at once. attempts:
    failures in a row, with less than 1 MiB gained, before giving up. backoff: seconds before the
    second attempt, doubled for each later one. timeout: seconds without a byte before the
    connection counts as dead. `path` + ".part" keeps what an interrupted download got; it is
    continued if the server still has the same file (RFC 9110, If-Range) and else begun again.
    Raises DownloadError.
    """
    path = Path(path)
    remedy = f"check the connection and try again, or place the file by hand: {path}"
    if not url.lower().startswith(("http://", "https://")):
        raise DownloadError(f"{url}: is not an http or https address; {remedy}")
    try:
        if _fault(path, path.suffix, size, sha256):
            with lock(path):
                if _fault(path, path.suffix, size, sha256):
                    _fetch(url, path, size, sha256, chunk, attempts, backoff, timeout)
    except _Failure as failure:
        raise DownloadError(f"{url}: {failure}; {remedy}") from None
    except OSError as error:
        raise DownloadError(f"{path}: cannot be written ({error}); choose another folder") from None
    return path


def _fault(path, suffix, size, sha256):
    """What is wrong with a downloaded file, or None."""
    if not path.is_file():
        return "is missing"
    if size is not None and file_size(path) != size:
        return f"has {file_size(path):,} bytes instead of {size:,}"
    with open(path, "rb") as stream:
        if not stream.read(2).startswith(MAGIC.get(suffix, b"")):
            return f"is not a {suffix} file, perhaps a web page"
    if sha256:
        import pooch

        if pooch.file_hash(str(path), alg="sha256") != sha256.lower():
            return "has the wrong SHA-256"


def _fetch(url, path, size, sha256, chunk, attempts, backoff, timeout):
    from helpers.storage.progress import progress

    part, note = (path.with_name(path.name + end) for end in (".part", ".part.validator"))
    failures, milestone = 0, file_size(part)
    with progress(total=size, unit="B", unit_scale=True, desc=path.name) as bar:
        while True:
            try:
                _request(url, part, note, size, chunk, timeout, bar)
                break
            except _Failure as failure:
                if file_size(part) >= milestone + BLOCK:
                    failures, milestone = 0, file_size(part)
                failures += 1
                if not failure.again or failures >= attempts:
                    raise
                time.sleep(min(max(backoff * 2 ** (failures - 1), failure.pause), MAX_PAUSE))
    fault = _fault(part, path.suffix, size, sha256)
    part.unlink() if fault else os.replace(part, path)
    note.unlink(missing_ok=True)
    if fault:
        raise _Failure(f"the file {fault}")


def _request(url, part, note, size, chunk, timeout, bar):
    """Ask once: continue the part file, or begin it again if the server's file is another."""
    import requests
    from urllib3.exceptions import HTTPError

    known = note.read_text(encoding="utf-8", errors="replace") if note.is_file() else ""
    # a validator that cannot stand in a header is damaged, or the server's is
    known = known if known.isascii() and known.isprintable() else ""
    offset = file_size(part) if known else 0
    if offset and offset == size:
        return
    # "identity": a transparently compressed answer would have another length
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": known}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            offset, total, validator = _judge(response, note, offset, known)
            if None not in (size, total) and total != size:
                raise _Failure(f"the server has {total:,} bytes instead of {size:,}", again=False)
            check_space(part.parent, (total or size or 0) - file_size(part))
            with open(part, "ab" if offset else "wb") as stream:
                if not offset:
                    note.write_text(validator, encoding="utf-8")
                bar.total, bar.n = total, offset
                for block in response.raw.stream(chunk, decode_content=False):
                    stream.write(block)
                    bar.update(len(block))
    except (requests.RequestException, HTTPError, ValueError) as error:
        again = not isinstance(error, (ValueError, requests.TooManyRedirects))
        reason = f"the connection failed at {file_size(part):,} bytes ({type(error).__name__})"
        raise _Failure(reason, again) from None
    if total not in (None, file_size(part)):
        raise _Failure(f"only {file_size(part):,} of {total:,} bytes came")


def _judge(response, note, offset, known):
    """Where the answer starts in the file, the file's length and validator, or a _Failure."""
    status, headers = response.status_code, response.headers
    etag = headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    span = RANGE.match(headers.get("Content-Range", ""))
    if status == 200:
        if "text/html" in headers.get("Content-Type", ""):
            raise _Failure("the server sends a web page instead of the file", again=False)
        return 0, response.raw.length_remaining, validator
    if status == 206 and span and int(span[1]) == offset and validator in (known, ""):
        return offset, int(span[2]), known
    if status in (206, 416):
        note.unlink(missing_ok=True)
        raise _Failure("the server sent another piece of the file than asked for")
    wait = headers.get("Retry-After", "")
    again = status in BUSY or bool(wait)
    pause = float(wait) if wait.isdecimal() else 0.0
    raise _Failure(f"the server answers {status} {response.reason}", again, pause)


def unpack_zip(
    archive: str | os.PathLike,
    folder: str | os.PathLike,
    members: Iterable[str] | Callable[[str], str | None] | None = None,
    max_bytes: int | None = None,
) -> list[Path]:
    """Unpack a zip archive into `folder`; return the files' paths, in the archive's order.

    members: None for all, the wanted names, or a function from a name in the archive to the path
    below `folder` (None: leave it out). max_bytes: most that may come out, by default 100 times
    the archive. A file that is there with the same size and CRC-32 is not written again.
    Raises ArchiveError for a damaged archive and for anything that could write outside `folder`,
    over another member or without limit; DownloadError if the disk has no room.
    """
    from helpers.storage.progress import progress

    archive, folder = Path(archive), Path(folder)
    try:
        limit = MAX_EXPANSION * file_size(archive) if max_bytes is None else max_bytes
        with zipfile.ZipFile(archive) as source:
            chosen = [(info, folder / name) for info, name in _choose(source, members)]
            total = sum(info.file_size for info, _ in chosen)
            if total > limit:
                raise ArchiveError(f"holds {total:,} bytes, more than the {limit:,} allowed")
            todo = [(info, target) for info, target in chosen if not _is_same(info, target)]
            n_bytes = sum(info.file_size for info, _ in todo)
            folder.mkdir(parents=True, exist_ok=True)
            check_space(folder, n_bytes)
            with progress(total=n_bytes, unit="B", unit_scale=True, desc=archive.name) as bar:
                for info, target in todo:
                    _unpack(source, info, target, bar)
    except DownloadError:
        raise
    except DAMAGE as bad:
        reason = " ".join(str(bad).split())[:200] or "is cut off"
        raise ArchiveError(f"{archive}: {reason}; delete it and get it again") from None
    except OSError as error:
        reason = f"cannot be unpacked into {folder} ({error.strerror or error})"
        raise ArchiveError(f"{archive}: {reason}; see that it is whole and there is room") from None
    return [target for _, target in chosen]


def _choose(source, members):
    """(member, path below the folder) of each wanted file; ArchiveError if one is not safe."""
    source.fp.seek(-22 - len(source.comment), os.SEEK_END)
    n_listed = int.from_bytes(source.fp.read(12)[10:], "little")  # in the end record
    if n_listed not in (len(source.infolist()), 0xFFFF):
        raise ArchiveError(f"lists {len(source.infolist())} of {n_listed} members")
    files = [info for info in source.infolist() if not info.filename.endswith("/")]
    place = members
    if not callable(members):
        names = {info.filename for info in files} if members is None else set(members)
        if absent := names - {info.filename for info in files}:
            raise ArchiveError(f"does not hold {min(absent)}")
        place = {name: name for name in names}.get
    chosen, seen = [], set()
    for info in files:
        if (target := place(info.filename)) is None:
            continue
        key = unicodedata.normalize("NFC", target).casefold()
        problem = None
        if not all(map(_is_safe, (info.orig_filename, info.filename, target))):
            problem = "leads out of the folder"
        elif stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            problem = "is a link or a device"
        elif key in seen:
            problem = "is there twice"
        if problem:
            raise ArchiveError(f"its member {info.orig_filename!r} {problem}")
        seen.add(key)
        chosen.append((info, target))
    return chosen


def _is_safe(name):
    """A relative path on every system; Windows drops dots and blanks at the end of a part."""
    is_plain = not set(name) & set("\\:\0")
    return is_plain and all(part and part == part.rstrip(". ") for part in name.split("/"))


def _is_same(info, target):
    same_size = target.is_file() and file_size(target) == info.file_size
    return same_size and zlib.crc32(target.read_bytes()) == info.CRC


def _unpack(source, info, target, bar):
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(target) as part:
        with source.open(info) as packed, open(part, "wb") as stream:
            while block := packed.read(BLOCK):
                stream.write(block)
                bar.update(len(block))
        if file_size(part) != info.file_size:
            raise ArchiveError(f"{info.filename} is cut off")
        os.replace(part, target)
