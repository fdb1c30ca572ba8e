"""Fetch large files over unreliable connections."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from helpers.storage.files import file_size, lock

MAGIC = {".zip": b"PK", ".gz": b"\x1f\x8b"}
BUSY = {408, 425, 429, 500, 502, 503, 504}
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)$")
# seconds before the second attempt, doubled for each later one, and the most
FIRST_PAUSE, MAX_PAUSE = 1.0, 60.0
BLOCK = 1 << 16
GAIN = 1 << 20
TRY_AGAIN = "check the connection and try again"
SET_PROXY = "set HTTP_PROXY and HTTPS_PROXY to http://user:password@host:port, or unset them"
SET_CERTIFICATES = "set REQUESTS_CA_BUNDLE to the file of your network's certificates"


class DownloadError(RuntimeError):
    """A file that cannot be fetched or stored; the message names it, the reason and the remedy."""


class _Failure(Exception):
    """What went wrong in one attempt; again: whether another one may help, after `pause` s."""

    def __init__(self, reason, again=True, pause=0.0, remedy=TRY_AGAIN):
        super().__init__(reason)
        self.again, self.pause, self.remedy = again, pause, remedy


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
    attempts: int = 5,
    timeout: float = 30,
) -> Path:
    """Fetch `url` to `path` and return the path; at once if the right file is already there.

    size (bytes) and sha256 (hex) are checked where given. attempts: failures in a row, with less
    than 1 MiB gained, before giving up; what no further attempt can mend (no such file, an unknown
    certificate, a proxy) is said at once. timeout: seconds without a byte before the connection
    counts as dead. `path` + ".part" keeps what an interrupted download got; it is continued if
    the server still has the same file (RFC 9110, If-Range) and else begun again. DownloadError.
    """
    path = Path(path)
    by_hand = f"or place the file by hand: {path}"
    if not url.lower().startswith(("http://", "https://")):
        raise DownloadError(f"{url}: is not an http or https address; correct it, {by_hand}")
    try:
        if _fault(path, path.suffix, size, sha256):
            with lock(path):
                if _fault(path, path.suffix, size, sha256):
                    _fetch(url, path, size, sha256, attempts, timeout)
    except _Failure as failure:
        raise DownloadError(f"{url}: {failure}; {failure.remedy}, {by_hand}") from None
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


def _fetch(url, path, size, sha256, attempts, timeout):
    """Ask until the part file is complete, and name it `path` if it is what it should be."""
    part, note = (path.with_name(path.name + end) for end in (".part", ".part.validator"))
    failures, milestone = 0, file_size(part)
    while True:
        try:
            _request(url, part, note, size, timeout)
            break
        except _Failure as failure:
            if file_size(part) >= milestone + GAIN:
                failures, milestone = 0, file_size(part)
            failures += 1
            if not failure.again or failures >= attempts:
                raise
            time.sleep(min(max(FIRST_PAUSE * 2 ** (failures - 1), failure.pause), MAX_PAUSE))
    fault = _fault(part, path.suffix, size, sha256)
    part.unlink() if fault else os.replace(part, path)
    note.unlink(missing_ok=True)
    if fault:
        raise _Failure(f"the file {fault}")


def _request(url, part, note, size, timeout):
    """Ask once: continue the part file, or begin it again if the server's file is another."""
    from urllib3.exceptions import HTTPError

    from helpers.storage.progress import progress

    known = note.read_text(encoding="utf-8", errors="replace") if note.is_file() else ""
    # a validator that cannot stand in a header is damaged, or the server's is
    known = known if known.isascii() and known.isprintable() else ""
    offset = file_size(part) if known else 0
    if offset and offset == size:
        return
    with _answer(url, offset, known, timeout) as response:
        offset, total, validator = _judge(response, note, offset, known)
        if None not in (size, total) and total != size:
            raise _Failure(f"the server has {total:,} bytes instead of {size:,}", again=False)
        check_space(part.parent, (total or size or 0) - file_size(part))
        bar = progress(total=total, initial=offset, unit="B", unit_scale=True, desc=part.stem)
        with bar, open(part, "ab" if offset else "wb") as stream:
            if not offset:
                note.write_text(validator, encoding="utf-8")
            try:
                for block in response.raw.stream(BLOCK, decode_content=False):
                    stream.write(block)
                    bar.update(len(block))
            except (HTTPError, ValueError) as error:
                stream.flush()
                raise _broken(error, file_size(part)) from None
    if total not in (None, file_size(part)):
        raise _Failure(f"only {file_size(part):,} of {total:,} bytes came")


def _answer(url, offset, known, timeout):
    """The server's answer, its body not read yet; known: the validator of the first bytes."""
    import requests
    from urllib3.exceptions import HTTPError

    # "identity": a transparently compressed answer would have another length
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": known}
    try:
        return requests.get(url, headers=headers, stream=True, timeout=timeout)
    except (OSError, HTTPError, ValueError) as error:  # OSError: no file of certificates
        raise _broken(error, offset) from None


def _broken(error, n_bytes):
    """The _Failure for what requests or urllib3 raised after so many bytes."""
    from requests import exceptions

    name, text = type(error).__name__, str(error)
    by_proxy = (exceptions.ProxyError, exceptions.InvalidProxyURL)
    if isinstance(error, by_proxy) or "SOCKS support" in text:
        return _Failure(f"the proxy cannot be used ({name})", again=False, remedy=SET_PROXY)
    # a connection that ends in the handshake may be cut off as any other
    is_refused = isinstance(error, exceptions.SSLError) and "EOF" not in text
    if is_refused or "CA certificate bundle" in text:
        reason = f"the server's certificate cannot be checked ({name})"
        return _Failure(reason, again=False, remedy=SET_CERTIFICATES)
    again = not isinstance(error, ValueError | exceptions.TooManyRedirects)
    return _Failure(f"the connection failed at {n_bytes:,} bytes ({name})", again)


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
    if status == 407:
        raise _Failure("the proxy asks for a password", again=False, remedy=SET_PROXY)
    wait = headers.get("Retry-After", "")
    again = status in BUSY or bool(wait)
    pause = float(wait) if wait.isdecimal() else 0.0
    raise _Failure(f"the server answers {status} {response.reason}", again, pause)
