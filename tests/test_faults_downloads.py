"""Downloads from servers that break the protocol, and random runs of bad luck."""

from __future__ import annotations

import hashlib
import random
import socket
import threading

import pytest
from local_server import LocalServer

from helpers.storage import downloads
from helpers.storage.downloads import DownloadError, download

CONTENT = b"PK" + random.Random(3).randbytes(400_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
QUICK = {"timeout": 0.5, "attempts": 3}
LENGTH = len(CONTENT)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(downloads, "MAX_PAUSE", 0.001)
    monkeypatch.setattr(downloads, "BLOCK", 1 << 14)


def head(*lines):
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()


TOLD = f"Content-Length: {LENGTH}"
# what is sent, and whether the file can be told from it
ANSWERS = {
    "nothing": (b"", False),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", False),
    "a status without number": (b"HTTP/1.1 OK\r\n\r\n" + CONTENT, False),
    "status 999": (b"HTTP/1.1 999 ?\r\n\r\n", False),
    "status 204": (b"HTTP/1.1 204 No Content\r\n\r\n", False),
    "status 304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", False),
    "status 206 unasked": (b"HTTP/1.1 206 Partial Content\r\n\r\n" + CONTENT, False),
    "status 100 for ever": (b"HTTP/1.1 100 Continue\r\n\r\n" * 9, False),
    "a header of 1 MB": (head("X: " + "x" * 2**20), False),
    "a thousand headers": (head(*["X: x"] * 1000), False),
    "a header cut": (b"HTTP/1.1 200 OK\r\nContent-Len", False),
    "an empty body": (head("Content-Length: 0"), False),
    "less than told": (head(TOLD) + CONTENT[:-1], False),
    "more than told": (head(TOLD) + CONTENT + b"more", True),
    "another length": (head(f"Content-Length: {LENGTH - 9}") + CONTENT, False),
    "a negative length": (head("Content-Length: -5") + CONTENT, True),
    "a length that is no number": (head("Content-Length: many") + CONTENT, True),
    "two lengths": (head(TOLD, "Content-Length: 5") + CONTENT, False),
    "a length of 1 EB": (head("Content-Length: 1000000000000000000") + CONTENT, False),
    "no length": (head("Connection: close") + CONTENT, True),
    "no length, cut": (head("Connection: close") + CONTENT[:-5], False),
    "chunked": (
        head("Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (LENGTH, CONTENT),
        True,
    ),
    "chunked, cut": (head("Transfer-Encoding: chunked") + b"%x\r\n" % LENGTH + CONTENT[:9], False),
    "chunked, no number": (head("Transfer-Encoding: chunked") + b"zz\r\nabc\r\n", False),
    "chunked, then the end too soon": (
        head("Transfer-Encoding: chunked") + b"5\r\n%b\r\n0\r\n\r\n" % CONTENT[:5],
        False,
    ),
    "gzip, though not asked for": (head(TOLD, "Content-Encoding: gzip") + CONTENT, True),
    "a validator of strange letters": (head(TOLD, 'ETag: "\xfc\x80"') + CONTENT, True),
    "a page that says it is a zip": (
        head("Content-Type: application/zip") + b"<html>no</html>",
        False,
    ),
}
TARGETS = ["http://", "//", "http://[::1", "http://[", "http://\u2603.invalid/a", "javascript:x"]
TARGETS += ["http://127.0.0.1:99999/a", "http://127.0.0.1:0/a", "http://a b/", "\\\\host\\a", "?"]
TARGETS += ["data:application/zip,PK", "ftp://127.0.0.1/a.zip", "http://user:pw@[x]/a", "http:///a"]
for target in TARGETS:
    location = f"Location: {target}\r\nContent-Length: 0\r\n\r\n"
    ANSWERS[f"redirect to {target!a}"] = (b"HTTP/1.1 302 Found\r\n" + location.encode(), False)


@pytest.fixture
def raw_server():
    """A server that says the same bytes to everyone; its address, and how to set the bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    said = {}

    def answer(connection):
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(said["bytes"])
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65536)
            except OSError:
                return

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            # a client that is slow to hang up must not keep the next one waiting
            threading.Thread(target=answer, args=[connection], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.zip", said
    listener.close()


@pytest.mark.faults("Downloads", "a server that breaks the protocol or redirects to nonsense")
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_server_that_breaks_the_protocol(raw_server, tmp_path, kind):
    url, said = raw_server
    said["bytes"], can_be_told = ANSWERS[kind]
    path = tmp_path / "data" / "a.zip"
    options = {**QUICK, "size": LENGTH, "sha256": DIGEST}
    try:
        download(url, path, **options)
    except DownloadError as error:
        assert not can_be_told, error
        assert len(str(error).splitlines()) == 1 and str(path) in str(error)
        assert not path.exists()
    else:
        assert can_be_told and path.read_bytes() == CONTENT
    # and what such a server left behind does not harm a later download
    said["bytes"] = head(TOLD, 'ETag: "good"') + CONTENT
    assert download(url, path, **options).read_bytes() == CONTENT
    assert {name.name for name in path.parent.iterdir()} == {"a.zip", ".a.zip.lock"}


@pytest.fixture(scope="module")
def server():
    site = LocalServer()
    yield site
    site.close()


def bad_luck(rng):
    """One thing that goes wrong, or nothing."""
    other = b"PK" + rng.randbytes(len(CONTENT) - 2 - rng.choice([0, 0, 7]))
    # what ignores If-Range and changes the file under the same ETag can be told by a hash alone
    return rng.choice(
        [
            {"cut": rng.randrange(LENGTH)},
            {"cut": rng.randrange(LENGTH), "etag": rng.choice(["", 'W/"weak"'])},
            {"cut": rng.randrange(LENGTH), "ignore_range": True},
            {"ignore_if_range": True, "cut": rng.randrange(LENGTH)},
            {"range_start": rng.randrange(LENGTH)},
            {"replace": other, "cut": rng.randrange(LENGTH)},
            {"replace": CONTENT},
            {"status": rng.choice([404, 403, 416, 429, 500, 502, 503])},
            {"status": 429, "headers": {"Retry-After": rng.choice(["1", "soon", "-1", "9" * 400])}},
            {"html": b"<html>log in</html>"},
            {"redirect": "/b.zip"},
            {"chunked": True},
            {},
        ]
    )


@pytest.mark.faults("Downloads", "up to six faults of a server in a row, at random")
@pytest.mark.parametrize("seed", range(150))
def test_a_run_of_bad_luck_ends_with_the_file_or_a_clear_line(server, tmp_path, seed):
    rng = random.Random(seed)
    path, options = tmp_path / "a.zip", dict(QUICK)
    options |= {"size": LENGTH} if rng.random() < 0.7 else {}
    options |= {"sha256": DIGEST} if rng.random() < 0.5 else {}
    server.files = {"a.zip": CONTENT, "b.zip": CONTENT}
    server.faults = {"a.zip": [bad_luck(rng) for _ in range(rng.randint(1, 6))]}
    served = [CONTENT, *[f["replace"] for f in server.faults["a.zip"] if "replace" in f]]
    for _ in range(3):
        try:
            download(f"{server.url}/a.zip", path, **options)
        except DownloadError as error:
            assert len(str(error).splitlines()) == 1
            assert not path.exists(), "part of a file under its final name"
        else:
            assert path.read_bytes() in served, "spliced"
            break
    server.files, server.faults = {"a.zip": CONTENT, "b.zip": CONTENT}, {}
    download(f"{server.url}/a.zip", path, size=LENGTH, sha256=DIGEST, **QUICK)
    assert path.read_bytes() == CONTENT
    assert {name.name for name in path.parent.iterdir()} == {"a.zip", ".a.zip.lock"}


NOTES = [b"", b"\xff\xfe", b'"a"\r\nX: y', b"\0", "\u2603".encode(), b'"' * 10_000, b'"other"']


@pytest.mark.faults("Downloads", "what an earlier download left is damaged")
@pytest.mark.parametrize("note", NOTES, ids=range(len(NOTES)))
@pytest.mark.parametrize("part", [b"", CONTENT[:999], b"rubbish" * 9, CONTENT + b"more"], ids=len)
def test_a_damaged_rest_of_a_download_is_begun_again(server, tmp_path, part, note):
    server.files, server.faults = {"a.zip": CONTENT}, {}
    (tmp_path / "a.zip.part").write_bytes(part)
    (tmp_path / "a.zip.part.validator").write_bytes(note)
    url = f"{server.url}/a.zip"
    assert download(url, tmp_path / "a.zip", sha256=DIGEST, **QUICK).read_bytes() == CONTENT
