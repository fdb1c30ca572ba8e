"""Two notebooks at once, workers whose parent is killed, and Ctrl-C in a notebook."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import interrupted
import numpy as np
import pytest
from fault_marks import TWO
from jupyter_client.manager import start_new_kernel
from test_faults_interruptions import assert_same_run, files

from helpers.course.runner import ROOT
from helpers.ct import cohort
from helpers.ct.cache import preprocess_cohort
from helpers.phantom import simulate

CTRL_C = pytest.mark.faults("Interruptions", "Ctrl-C in a notebook")
PATIENCE = 120


def at_once(killer, *jobs):
    """Start the jobs together; True if all of them end well."""
    running = [killer.start(*job) for job in jobs]
    for process, _ in running:
        process.join(PATIENCE)
    return [process.exitcode for process, _ in running] == [0] * len(jobs)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    simulate.make_cohort(root, {"CT-0": 4, "CT-3": 4}, 64, workers=1, n_slices=16)
    return root


@TWO()
@pytest.mark.parametrize("number", range(5))
def test_two_make_one_cache(killer, studies, tmp_path, number):
    interrupted.preprocess(studies, tmp_path / "alone")
    job = interrupted.preprocess, studies, tmp_path / "both"
    assert at_once(killer, job, job)
    assert files(tmp_path / "both") == files(tmp_path / "alone")


@TWO()
@pytest.mark.parametrize("number", range(3))
def test_two_make_one_phantom(killer, tmp_path, number):
    interrupted.make_phantom(tmp_path / "alone", 1)
    job = interrupted.make_phantom, tmp_path / "both", 1
    assert at_once(killer, job, job)
    alone, both = files(tmp_path / "alone"), files(tmp_path / "both")
    for found in (alone, both):  # its bytes hold the time
        assert found.pop("dataset_registry.xlsx")
    assert both == alone
    tables = [cohort.find_studies(tmp_path / name) for name in ("alone", "both")]
    assert tables[0].equals(tables[1])


@TWO()
@pytest.mark.parametrize("number", range(3))
def test_two_write_the_same_results(killer, tmp_path, number):
    interrupted.save_results(tmp_path)
    running = [killer.start(interrupted.save_results, tmp_path) for _ in range(2)]
    while any(process.is_alive() for process, _ in running):
        values = interrupted.read_results(tmp_path)
        assert len(values) == 20_000 and len(set(values)) == 1
    assert [process.exitcode for process, _ in running] == [0, 0]


@TWO()
def test_two_unpack_one_archive_and_copy_one_folder(killer, tmp_path):
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    for name in "bcde":
        (source / "a" / name).write_bytes(os.urandom(2_000_000))
    archive = Path(shutil.make_archive(tmp_path / "packed", "zip", source))
    job = interrupted.unpack, archive, tmp_path / "out"
    assert at_once(killer, job, job)
    (tmp_path / "drive").mkdir()
    job = interrupted.keep, source, tmp_path / "drive"
    assert at_once(killer, job, job)
    (tmp_path / "copy").mkdir()
    job = interrupted.restore, tmp_path / "copy" / "source", tmp_path / "drive"
    assert at_once(killer, job, job)
    assert files(tmp_path / "out") == files(source) == files(tmp_path / "copy" / "source")


@pytest.mark.faults("Interruptions", "kill -9 of a process that has workers")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("work", ["phantom", "preprocessing"])
def test_workers_end_with_a_killed_parent(tmp_path, work):
    n, begun = (400, "studies/*/*.nii.gz") if work == "phantom" else (60, "cache/*/rows/*.json")

    def begin():
        """Start a notebook's process in which two workers make a cohort, or preprocess it."""
        manager, client = start_new_kernel(cwd=str(tmp_path))
        client.execute(
            "import os, sys; sys.path.insert(0, os.environ['COURSE'])\n"
            "from helpers.ct.cache import preprocess_cohort\n"
            "from helpers.ct.cohort import find_studies\n"
            "from helpers.phantom import simulate\n"
            f"simulate.make_cohort('made', {{'CT-0': {n}}}, 48, workers=2, n_slices=8)\n"
            "table = find_studies('made')\n"
            "preprocess_cohort(table, 'made', 'made/cache', (64, 384, 384), workers=2)\n"
        )
        return manager, client

    def children(pid):
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            found[int(stat.parent.name)] = int(fields[1])
        return [child for child, parent in found.items() if parent == pid]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE", str(ROOT))
        manager, client = begin()
    try:
        deadline = time.monotonic() + PATIENCE
        while len(list(tmp_path.glob(f"made/{begun}"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers = children(manager.provisioner.pid)
        assert len(workers) >= 2
        os.kill(manager.provisioner.pid, 9)
        while [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < deadline, "workers without a parent go on"
            time.sleep(0.1)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        manager, client = start_new_kernel(cwd=str(ROOT))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def interrupt_when(kernel, code, has_begun):
    """Run a cell, press Ctrl-C when it is under way; then the kernel must answer as before."""
    manager, client = kernel
    sent = client.execute(code, stop_on_error=False)  # else the kernel may drop the cell after it
    deadline = time.monotonic() + PATIENCE
    while not has_begun():
        assert time.monotonic() < deadline, "it does not begin"
        time.sleep(0.02)
    manager.interrupt_kernel()
    said = []
    while True:
        reply = client.get_shell_msg(timeout=PATIENCE)
        if reply["parent_header"].get("msg_id") == sent:
            break
    assert reply["content"]["status"] == "error", "it was over before"
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    answer = client.execute_interactive(
        "assert 6 * 7 == 42", timeout=PATIENCE, output_hook=said.append
    )
    assert answer["content"]["status"] == "ok"


def run_cell(kernel, code):
    said = []
    answer = kernel[1].execute_interactive(code, timeout=PATIENCE, output_hook=said.append)
    assert answer["content"]["status"] == "ok", answer["content"]


@CTRL_C
def test_ctrl_c_in_training_leaves_a_checkpoint_and_a_kernel(kernel, killer, tmp_path):
    scans = np.random.default_rng(0).integers(0, 60, size=(16, 6, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "volumes.npy", scans)
    volumes, run = tmp_path / "volumes.npy", tmp_path / "run"
    code = f"import interrupted; interrupted.train({str(volumes)!r}, {str(run)!r}, epochs=60)"
    interrupt_when(kernel, code, (run / "last.pt").exists)
    run_cell(kernel, code)
    killer.finish(interrupted.train, volumes, tmp_path / "whole", 60)
    assert_same_run(run, tmp_path / "whole")


@CTRL_C
def test_ctrl_c_in_preprocessing_and_in_the_phantom(kernel, tmp_path):
    root = tmp_path / "phantom"
    code = (
        "from helpers.phantom import simulate\n"
        f"simulate.make_cohort({str(root)!r}, {{'CT-0': 12, 'CT-3': 12}}, 64, workers=2)"
    )
    interrupt_when(kernel, code, lambda: len(list(root.glob("studies/*/*.nii.gz"))) > 2)
    run_cell(kernel, code)
    code = (
        "from helpers.ct import cohort; from helpers.ct.cache import preprocess_cohort\n"
        f"root = {str(root)!r}; table = cohort.find_studies(root)\n"
        "preprocess_cohort(table, root, root + '/cache', (64, 256, 256), workers=2)"
    )
    interrupt_when(kernel, code, lambda: len(list(root.glob("cache/*/rows/*.json"))) > 2)
    run_cell(kernel, code)
    made = preprocess_cohort(
        cohort.find_studies(root), root, tmp_path / "whole", (64, 256, 256), workers=1
    )
    (cache,) = root.glob("cache/*/volumes-*.npy")
    assert np.array_equal(np.load(cache), made.volumes)
