"""What several test files share."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of the processes side by side
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
FAULTS = pytest.StashKey[dict]()
SLOWEST = ("test_quick_course.py", "test_notebooks.py", "test_browser.py", "test_gpu_benchmark.py")


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "faults(section, what, cases=1): a line of the table in CONTRIBUTING.md; cases: how many "
        "one test tries",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Count the cases of each line of the table, before any test is deselected.

    What takes longest comes first: `pytest -n` gives each file to one process.
    """
    items.sort(key=lambda item: [*SLOWEST, item.path.name].index(item.path.name))
    counted = config.stash.setdefault(FAULTS, {"files": set(), "lines": {}})
    for item in items:
        counted["files"].add(item.path.name)
        if mark := item.get_closest_marker("faults"):
            cases = mark.kwargs.get("cases", 1)
            counted["lines"][mark.args] = counted["lines"].get(mark.args, 0) + cases


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real CT data that REAL_DATA_DIR names."""
    folder = os.environ.get("REAL_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("REAL_DATA_DIR names no folder of real CT data")
    return Path(folder)


@dataclass
class Course:
    """Folders of one course: where it ran, its code, the home and the temporary folder it had."""

    folder: Path
    code: Path
    home: Path
    temporary: Path

    def run(self, profile):
        """Run every notebook in order on the phantom, with nothing but these folders."""
        import matplotlib

        from helpers.course import runner

        ignored = shutil.ignore_patterns("__pycache__")
        for part in ("helpers", "docs/diagrams"):
            shutil.copytree(ROOT / part, self.code / part, ignore=ignored)
        places = {"PYTHONPATH": self.code, "HOME": self.home, "TMPDIR": self.temporary}
        places["MPLCONFIGDIR"] = matplotlib.get_configdir()  # its fonts are listed there
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name, place in places.items():
                patch.setenv(name, str(place))
            runner.run_course("phantom", profile, 0)


@pytest.fixture(scope="session")
def quick_course(tmp_path_factory) -> Course:
    """One quick course on the phantom, in an empty folder."""
    made = Course(*map(tmp_path_factory.mktemp, ("quick", "code", "home", "tmp")))
    made.run("quick")
    return made


@pytest.fixture(scope="session")
def quick_runs(quick_course) -> Path:
    """The folder of the results of the quick course."""
    return quick_course.folder / "runs"


@pytest.fixture
def one_thread():
    """Two threads take longer than one on arrays as small as these."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def killer():
    """Starts processes quickly and kills them."""
    from interrupted import Killer

    return Killer()
