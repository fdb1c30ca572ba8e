"""Downloads against a local server that misbehaves; archives that try to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fault_marks import CONNECTIONS, DAMAGED, ONCE, REFUSALS, UNSAFE, WRONG
from local_server import LocalServer

from helpers.storage import archives, downloads
from helpers.storage.archives import ArchiveError, unpack_zip
from helpers.storage.downloads import DownloadError, download

CONTENT = b"PK" + bytes(range(256)) * 12_000


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(downloads, "FIRST_PAUSE", 0.01)


@pytest.fixture
def server():
    site = LocalServer()
    site.files["a.zip"] = CONTENT
    yield site
    site.close()


@pytest.fixture
def fetch(server, tmp_path):
    def get(**options):
        target = tmp_path / "data" / "a.zip"
        return download(f"{server.url}/a.zip", target, **{"size": len(CONTENT), **options})

    return get


def ranges(server):
    return [asked for _, asked in server.requests]


def left_behind(folder: Path):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_fetch_checks_and_returns_at_once_when_there(server, fetch):
    digest = hashlib.sha256(CONTENT).hexdigest()
    path = fetch(sha256=digest)
    assert path.read_bytes() == CONTENT
    assert left_behind(path.parent) == ["a.zip"]
    assert fetch(sha256=digest.upper()) == path
    assert len(server.requests) == 1
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch(sha256=digest).read_bytes() == CONTENT
    assert len(server.requests) == 2


@CONNECTIONS()
@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_broken_connection_is_continued_where_it_broke(server, fetch, fault):
    server.faults["a.zip"] = [{fault: 1_000_000}, {fault: 500_000}]
    assert fetch(timeout=1.0).read_bytes() == CONTENT
    first, second, third = ranges(server)
    offsets = [int(asked[6:-1]) for asked in (second, third)]
    assert first is None
    # a stalled connection may lose what had not filled a chunk of 65,536 bytes
    assert 1_000_000 - (1 << 16) <= offsets[0] <= 1_000_000
    assert 500_000 - (1 << 16) <= offsets[1] - offsets[0] <= 500_000


@CONNECTIONS()
def test_a_later_call_continues_the_part_file(server, fetch, tmp_path):
    server.faults["a.zip"] = [{"cut": 700_000}]
    with pytest.raises(DownloadError, match="failed at 700,000 bytes"):
        fetch(attempts=1)
    assert left_behind(tmp_path / "data") == ["a.zip.part", "a.zip.part.validator"]
    assert fetch().read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=700000-"]


@CONNECTIONS()
def test_more_cuts_than_attempts_are_survived_while_it_gains(server, fetch):
    server.faults["a.zip"] = [{"cut": 1 << 20}] * 2
    assert fetch(attempts=2).read_bytes() == CONTENT
    assert len(server.requests) == 3


@CONNECTIONS()
def test_no_gain_gives_up(server, fetch):
    server.faults["a.zip"] = [{"cut": 1000}] * 9
    with pytest.raises(DownloadError):
        fetch(attempts=3)
    assert len(server.requests) == 3


@CONNECTIONS()
def test_server_without_ranges_starts_again(server, fetch):
    server.faults["a.zip"] = [{"cut": 600_000}, {"ignore_range": True}]
    assert fetch().read_bytes() == CONTENT
    assert ranges(server)[1] == "bytes=600000-"


@CONNECTIONS()
def test_server_without_validator_is_not_spliced(server, fetch):
    server.faults["a.zip"] = [{"cut": 600_000, "etag": ""}]
    assert fetch().read_bytes() == CONTENT
    assert ranges(server) == [None, None]


@CONNECTIONS()
def test_wrong_content_range_is_not_spliced(server, fetch):
    server.faults["a.zip"] = [{"cut": 600_000}, {"range_start": 599_000}]
    assert fetch().read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=600000-", None]


@CONNECTIONS()
@pytest.mark.parametrize("ignore_if_range", [False, True])
def test_file_that_changes_between_attempts_is_not_spliced(server, fetch, ignore_if_range):
    other = b"PK" + CONTENT[2:][::-1]
    second = {"replace": other, "ignore_if_range": ignore_if_range}
    server.faults["a.zip"] = [{"cut": 600_000}, second]
    assert fetch().read_bytes() == other
    # If-Range lets a good server answer with the whole new file at once
    assert len(server.requests) == (3 if ignore_if_range else 2)


@CONNECTIONS()
def test_part_file_past_the_end_is_dropped(server, fetch, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.zip.part").write_bytes(CONTENT + b"more")
    etag = f'"{hashlib.sha1(CONTENT).hexdigest()}"'
    (folder / "a.zip.part.validator").write_text(etag)
    assert fetch(size=None).read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={len(CONTENT) + 4}-", None]


@CONNECTIONS()
def test_complete_part_file_needs_no_request(server, fetch, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.zip.part").write_bytes(CONTENT)
    (folder / "a.zip.part.validator").write_text('"x"')
    assert fetch().read_bytes() == CONTENT
    assert server.requests == []


@REFUSALS(4)
def test_busy_server_is_asked_again_after_the_pause_it_names(server, fetch, monkeypatch):
    pauses = []
    monkeypatch.setattr(downloads, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    server.faults["a.zip"] = [
        {"status": 429, "headers": {"Retry-After": "7"}},
        {"status": 403, "headers": {"Retry-After": "86400"}},
        {"status": 500},
        {"status": 503},
    ]
    assert fetch().read_bytes() == CONTENT
    assert pauses == [7.0, downloads.MAX_PAUSE, 4.0, 8.0]


@REFUSALS()
@pytest.mark.parametrize("status", [404, 403, 410])
def test_dead_address_is_one_clear_line(server, fetch, tmp_path, status):
    server.faults["a.zip"] = [{"status": status}] * 3
    with pytest.raises(DownloadError) as caught:
        fetch()
    message = str(caught.value)
    assert len(server.requests) == 1
    assert f"{server.url}/a.zip" in message
    assert str(status) in message
    assert f"place the file by hand: {tmp_path / 'data' / 'a.zip'}" in message
    assert "\n" not in message
    assert not (tmp_path / "data" / "a.zip").exists()


@REFUSALS()
def test_nobody_listens(tmp_path):
    site = LocalServer()
    site.close()
    with pytest.raises(DownloadError, match=r"ConnectionError.*by hand"):
        download(f"{site.url}/a.zip", tmp_path / "a.zip", attempts=2)


@REFUSALS(3)
def test_redirects(server, fetch):
    server.files["b.zip"] = CONTENT
    server.faults["a.zip"] = [{"redirect": "/b.zip"}]
    assert fetch().read_bytes() == CONTENT
    server.files["a.zip"] = b"PK"
    server.faults["a.zip"] = [{"redirect": "file:///etc/hostname"}] * 5
    with pytest.raises(DownloadError, match="InvalidSchema"):
        fetch(size=2)
    server.faults["a.zip"] = [{"redirect": "/a.zip"}] * 99
    with pytest.raises(DownloadError, match="TooManyRedirects"):
        fetch(size=2)


@REFUSALS()
@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/a.zip", "a.zip"])
def test_other_schemes_are_refused(tmp_path, url):
    with pytest.raises(DownloadError, match="http or https"):
        download(url, tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


def told_at_once(*words, url, path):
    """A download that fails without a second attempt, in one line that holds the words."""
    begun = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        download(url, path, attempts=3)
    assert time.monotonic() - begun < 3, "tried again"
    message = str(caught.value)
    assert message.startswith(url) and "\n" not in message
    assert f"place the file by hand: {path}" in message and not path.exists()
    for word in words:
        assert word in message, message


@pytest.fixture
def slow_pauses(monkeypatch):
    monkeypatch.setattr(downloads, "FIRST_PAUSE", 5.0)


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory):
    """The address of a server whose certificate nobody knows, as behind a proxy that opens TLS."""
    folder = tmp_path_factory.mktemp("tls")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -days 2 -subj /CN=localhost"
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl")
    subprocess.run(make.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "c", folder / "k")
    site = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    site.handle_error = lambda *arguments: None
    threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
    yield f"https://localhost:{site.server_address[1]}/a.zip"
    site.shutdown()
    site.server_close()


@pytest.mark.usefixtures("slow_pauses")
def test_a_certificate_that_nobody_knows_is_said_at_once(tls_server, server, tmp_path, monkeypatch):
    path = tmp_path / "data" / "a.zip"
    told_at_once("certificate", "set REQUESTS_CA_BUNDLE to", url=tls_server, path=path)
    # the address of a server that does not speak TLS
    plain = f"{server.url}/a.zip".replace("http:", "https:")
    told_at_once("certificate", "SSLError", url=plain, path=path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    told_at_once("certificate", "REQUESTS_CA_BUNDLE", url=tls_server, path=path)
    assert left_behind(tmp_path / "data") == []


@pytest.fixture(scope="module")
def proxy():
    """The address of a proxy that asks for a password."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(407)
            self.send_header("Proxy-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_CONNECT = do_GET

        def log_message(self, *arguments):
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{site.server_address[1]}"
    site.shutdown()
    site.server_close()


PROXIES = ["asks for a password", "http://127.0.0.1:9", "socks5://127.0.0.1:9", "http://", "://a"]


@pytest.mark.usefixtures("slow_pauses")
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("address", PROXIES)
def test_a_proxy_that_does_not_let_through_is_said_at_once(
    proxy, tmp_path, monkeypatch, scheme, address
):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, proxy if "password" in address else address)
    monkeypatch.setenv("no_proxy", "")
    url, path = f"{scheme}://example.invalid/a.zip", tmp_path / "data" / "a.zip"
    told_at_once("the proxy", "set HTTP_PROXY and HTTPS_PROXY to", url=url, path=path)


def test_a_complete_file_needs_no_lock_and_a_complete_folder_is_not_written_to(
    tmp_path, monkeypatch
):
    def refuse(*arguments):
        raise PermissionError("read-only")

    (tmp_path / "a.zip").write_bytes(CONTENT)
    archive = make_zip(tmp_path / "b.zip", [("x/1", b"one"), ("2", b"two")])
    paths = unpack_zip(archive, tmp_path / "out")
    for module, name in ((downloads, "lock"), (archives, "temporary_beside")):
        monkeypatch.setattr(module, name, refuse)
    assert download("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", len(CONTENT)).exists()
    assert unpack_zip(archive, tmp_path / "out") == paths


@WRONG(2)
def test_wrong_size_and_hash_leave_no_file(server, fetch, tmp_path):
    with pytest.raises(DownloadError, match=rf"{len(CONTENT):,} bytes instead of 17"):
        fetch(size=17)
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(sha256="0" * 64)
    assert not (tmp_path / "data" / "a.zip").exists()
    assert fetch().read_bytes() == CONTENT


@WRONG(3)
def test_web_page_instead_of_the_file_is_refused(server, tmp_path):
    page = b"<html>log in first</html>"
    server.faults["a.csv"] = [{"html": page}]
    with pytest.raises(DownloadError, match="sends a web page"):
        download(f"{server.url}/a.csv", tmp_path / "a.csv")
    server.files |= {"page.zip": page, "page.nii.gz": page, "good.nii.gz": b"\x1f\x8bdata"}
    for name in ("page.zip", "page.nii.gz"):
        with pytest.raises(DownloadError, match="web page"):
            download(f"{server.url}/{name}", tmp_path / name, attempts=1)
    download(f"{server.url}/good.nii.gz", tmp_path / "good.nii.gz")
    assert left_behind(tmp_path) == ["good.nii.gz"]
    assert (tmp_path / "good.nii.gz").read_bytes() == b"\x1f\x8bdata"


@WRONG()
def test_disk_space_counts_what_is_already_there(server, fetch, monkeypatch):
    server.faults["a.zip"] = [{"cut": 1_000_000}]
    with pytest.raises(DownloadError):
        fetch(attempts=1)
    usage = shutil.disk_usage(".")
    rest = len(CONTENT) - 1_000_000
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=rest - 1))
    with pytest.raises(DownloadError, match="make room"):
        fetch()
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=rest))
    assert fetch().read_bytes() == CONTENT


@ONCE()
def test_threads_that_want_the_same_file_fetch_it_once(server, fetch):
    got = []
    threads = [threading.Thread(target=lambda: got.append(fetch())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in got] == [True] * 4
    assert len(server.requests) == 1


@ONCE()
def test_processes_that_want_the_same_file_fetch_it_once(server, tmp_path):
    server.faults["a.zip"] = [{"stall": 1_000_000, "seconds": 1.0}]
    code = (
        "import sys; from helpers.storage.downloads import download;"
        "download(sys.argv[1], sys.argv[2], size=int(sys.argv[3]))"
    )
    target = tmp_path / "a.zip"
    command = [sys.executable, "-c", code, f"{server.url}/a.zip", str(target), str(len(CONTENT))]
    root = Path(__file__).resolve().parents[1]
    running = [subprocess.Popen(command, cwd=root) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_import_is_light():
    code = "import sys, helpers.storage.downloads as d;"
    code += "print([m in sys.modules for m in ('requests', 'pooch')])"
    root = Path(__file__).resolve().parents[1]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert json.loads(answer.stdout.decode().lower()) == [False, False]


def make_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_unpack_all_and_again(tmp_path):
    members = [("b/zwölf %25.txt", b"x" * 50), ("a.bin", os.urandom(3_000_000)), ("empty", b"")]
    archive = make_zip(tmp_path / "a.zip", [*members, ("folder/", b"")])
    paths = unpack_zip(archive, tmp_path / "out")
    assert [p.relative_to(tmp_path / "out").as_posix() for p in paths] == [n for n, _ in members]
    assert [path.read_bytes() for path in paths] == [content for _, content in members]
    os.utime(paths[0], (1, 1))
    same_size = os.urandom(3_000_000)
    paths[1].write_bytes(same_size)
    assert unpack_zip(archive, tmp_path / "out") == paths
    assert paths[0].stat().st_mtime == 1
    assert paths[1].read_bytes() == members[1][1]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(files) == sorted(paths)


@UNSAFE(2)
def test_unpack_chosen_members(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("x/1", b"one"), ("../2", b"two")])
    with pytest.raises(ArchiveError, match="'../2' leads outside"):
        unpack_zip(archive, tmp_path / "moved", {"x/1": "y/z"}.get)
    assert not (tmp_path / "moved").exists(), "unsafe, though that member was not asked for"
    archive = make_zip(tmp_path / "a.zip", [("x/1", b"one"), ("2", b"two")])
    moved = unpack_zip(archive, tmp_path / "moved", {"x/1": "y/z"}.get)
    assert moved == [tmp_path / "moved" / "y" / "z"]
    assert moved[0].read_bytes() == b"one"


def link(name, mode=stat.S_IFLNK):
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    return info


BAD_MEMBERS = {
    "parent": [("../out.txt", b"x")],
    "inner parent": [("a/../../out.txt", b"x")],
    "absolute": [("/tmp/out.txt", b"x")],
    "drive": [("C:/out.txt", b"x")],
    "stream": [("a.txt:b", b"x")],
    "backslash": [("..\\out.txt", b"x")],
    "windows parent": [("a/.. /.. /out.txt", b"x")],
    "dot": [("./a", b"x")],
    "link": [(link("a"), b"/etc/passwd")],
    "device": [(link("a", stat.S_IFCHR), b"")],
    "twice": [("a", b"1"), ("a", b"2")],
    "case": [("a/B", b"1"), ("A/b", b"2")],
    "composed": [("\u00e9", b"1"), ("e\u0301", b"2")],
    "huge": [("a", bytes(5_000_000))],
}


@UNSAFE()
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", BAD_MEMBERS)
def test_unsafe_archive_is_refused_before_anything_is_written(tmp_path, kind):
    archive = make_zip(tmp_path / "a.zip", [("good", b"fine" * 1000), *BAD_MEMBERS[kind]])
    with pytest.raises(ArchiveError) as caught:
        unpack_zip(archive, tmp_path / "in" / "out")
    assert str(caught.value).startswith(str(archive))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [archive]


@UNSAFE(2)
def test_limits_of_size(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", [("a", bytes(5_000_000))])
    with pytest.raises(ArchiveError, match="'a' is too large"):
        unpack_zip(archive, tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_EXPANSION", 5_000_000 // archive.stat().st_size + 1)
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=4_999_999))
    with pytest.raises(DownloadError, match="make room"):
        unpack_zip(archive, tmp_path / "out")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    assert unpack_zip(archive, tmp_path / "out")[0].stat().st_size == 5_000_000


@DAMAGED()
def test_a_member_that_its_neighbour_s_entry_hides_is_missed(tmp_path):
    """One flipped bit in the length of the first entry's comment swallows the second entry."""
    archive = make_zip(tmp_path / "a.zip", [("a", b"first"), ("b", b"second")])
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + 32] ^= 0x5A
    archive.write_bytes(content)
    assert zipfile.ZipFile(archive).namelist() == ["a"]
    with pytest.raises(ArchiveError, match="lists 1 of 2 members"):
        unpack_zip(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@DAMAGED()
def test_member_larger_than_it_says(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("a", bytes(3_000_000))])
    content = archive.read_bytes()
    lying = content.replace((3_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    assert lying != content
    archive.write_bytes(lying)
    with pytest.raises(ArchiveError, match="CRC"):
        unpack_zip(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@DAMAGED()
@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_archives_are_one_line_and_leave_no_file(tmp_path, method):
    text = " ".join(map(str, range(1500))).encode()
    good = make_zip(tmp_path / "good.zip", [("a", os.urandom(9000)), ("b", text)], method)
    content = good.read_bytes()
    damaged = [content[:n] for n in (0, 3, 1000, len(content) - 30, len(content) - 1)]
    for position in range(0, len(content), 47):
        flipped = bytearray(content)
        flipped[position] ^= 0x5A
        damaged.append(bytes(flipped))
    n_refused = 0
    for k, data in enumerate(damaged):
        archive, out = tmp_path / "bad.zip", tmp_path / f"out{k}"
        archive.write_bytes(data)
        try:
            paths = unpack_zip(archive, out)
        except ArchiveError as error:
            n_refused += 1
            assert "\n" not in str(error)
            names = {path.name for path in out.rglob("*")} if out.exists() else set()
            assert names <= {"a", "b"}
        else:
            # a flipped bit in a time stamp or a file mode is no damage to the content
            assert [path.stat().st_size for path in paths] == [9000, len(text)]
    assert n_refused > 0.9 * len(damaged)


@DAMAGED(2)
def test_encrypted_and_missing_archives(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("a", b"secret")])
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="encrypted"):
        unpack_zip(archive, tmp_path / "out")
    with pytest.raises(ArchiveError, match=r"none\.zip"):
        unpack_zip(tmp_path / "none.zip", tmp_path / "out")


def test_real_archives_of_covid_ct(real_data, tmp_path):
    archive = real_data / "covid_ct" / "Images-processed" / "CT_COVID.zip"
    paths = unpack_zip(archive, tmp_path)
    assert len([path for path in paths if path.suffix in (".png", ".jpg")]) == 349
    assert any("%" in path.name for path in paths)
