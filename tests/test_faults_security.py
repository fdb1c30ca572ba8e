"""What the course opens to others, what it writes, and what two scanners say of it."""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from faults import BANDIT

from helpers.course.runner import ROOT


def security(what, cases=1):
    return pytest.mark.faults("Security", what, cases=cases)


def ask(url, token=None):
    """The status of an answer."""
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"token {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """What `make lab` starts, on a free port: its port and its token."""
    if not shutil.which("make"):
        pytest.skip("no make here")
    said = subprocess.run(
        ["make", "--dry-run", "lab"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (line,) = [line for line in said.stdout.splitlines() if "jupyterlab" in line and " -m " in line]
    _, *command = shlex.split(line)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("lab")
    # only what a test needs: no browser, a known port, and root allowed where root runs it
    command = [sys.executable, *command, "--no-browser", f"--port={port}"]
    command += ["--ServerApp.port_retries=0"]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
    environment["JUPYTER_CONFIG_DIR"] = str(folder / "config")
    environment["JUPYTER_RUNTIME_DIR"] = str(folder / "runtime")
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 90
        while not (notes := list(folder.glob("runtime/jpserver-*.json"))) or not answers(port):
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "JupyterLab does not answer"
            time.sleep(0.2)
        yield port, json.loads(notes[0].read_text())["token"]
    finally:
        server.terminate()
        server.wait(60)


def answers(port, host="127.0.0.1"):
    """Whether somebody listens there."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def other_addresses():
    """Addresses of this machine that are not 127.0.0.1."""
    known = {"127.0.0.2"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; says which address would be used
            known.add(probe.getsockname()[0])
        except OSError:
            pass
    return sorted(known - {"127.0.0.1"})


PATHS = ["contents", "kernels", "sessions", "terminals", "status"]


@security("JupyterLab of `make lab`, asked without its token or from another address")
@pytest.mark.parametrize("path", PATHS)
def test_jupyter_asks_for_its_token(lab, path):
    port, token = lab
    url = f"http://127.0.0.1:{port}/api/{path}"
    assert len(token) >= 32
    assert ask(url) == ask(url, "0" * len(token)) == 403
    assert ask(url, token) == 200


@security("JupyterLab of `make lab`, asked without its token or from another address")
def test_jupyter_listens_on_this_machine_alone(lab):
    port, _ = lab
    assert answers(port)
    for address in other_addresses():
        assert not answers(port, address), address


@security("what bandit finds in helpers/")
def test_bandit_finds_nothing():
    done = subprocess.run(BANDIT, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


MODES = {"w", "wb", "x", "xb", "a", "ab", "r+b"}
WRITERS = {"write_text", "write_bytes", "savefig", "imsave", "to_pickle", "tofile", "memmap"}
WRITERS |= {"open_memmap", "copyfile", "copytree"}
# what writes a file that has no final name yet, or into memory
ALLOWED = {
    "answers.py": {"open"},  # one line appended
    "archives.py": {"open"},  # temporary_beside
    "classroom.py": {"copytree", "write_text"},  # temporary_beside
    "downloads.py": {"open", "write_text"},  # the part of a download, its validator
    "files.py": {"open"},  # write_whole itself, a lock
    "contributions.py": {"open", "copytree", "write_bytes"},  # in a new folder, then renamed
    "mirror.py": {"open"},  # temporary_beside
    "plots.py": {"savefig"},  # memory
    "runner.py": {"write_text"},  # the repository's address, by a maintainer
}


def writes(tree):
    """Names of the calls in a module that may write a file without write_whole."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        words = {part.value for part in ast.walk(call) if isinstance(part, ast.Constant)}
        if name in WRITERS or (name == "open" and words & MODES):
            yield name


@pytest.mark.faults("Checkpoints and results", "modules of helpers/ that may leave half a file")
@pytest.mark.parametrize(
    "module", sorted((ROOT / "helpers").glob("*/*.py")), ids=lambda module: module.stem
)
def test_every_file_is_written_whole(module):
    text = module.read_text(encoding="utf-8")
    assert set(writes(ast.parse(text))) <= ALLOWED.get(module.name, set())
    assert "shell=True" not in text
