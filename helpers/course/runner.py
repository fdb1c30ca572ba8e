"""Executes the notebooks, for `make course`, `make notebooks` and the tests; copies them; GIFs."""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import nbformat
import pandas as pd
from PIL import Image

from helpers.ct.preprocessing import SIZE
from helpers.storage.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
START_TIMEOUT = 120
CELL_TIMEOUT = {"tiny": 300, "quick": 600, "full": 48 * 3600}
ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")


class NotebookError(RuntimeError):
    """A notebook failed; the message names the notebook, the cell and the error."""


def notebook_files() -> list[Path]:
    """The notebooks in reading order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def execute(source, target, parameters=None, cwd=ROOT, environment=None) -> float:
    """Run one notebook with papermill in a fresh kernel; returns the seconds it took.

    source, target: the notebook and where its executed copy goes. parameters: values for its
    `parameters` cell. Both the start of the kernel and every cell have a time limit.
    NotebookError names the cell that failed or took too long.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    parameters = dict(parameters or {})
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: os.environ.get(key) for key in (environment or {})}
    os.environ.update(environment or {})
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters=parameters,
            cwd=str(cwd),
            kernel_name="python3",
            progress_bar=False,
            start_timeout=START_TIMEOUT,
            extra_arguments=["--log-level=50"],
            execution_timeout=CELL_TIMEOUT[parameters.get("PROFILE", "quick")],
        )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(
            f"{Path(source).name}, cell {error.cell_index}: {error.ename}: {error.evalue}"
        ) from error
    except CellTimeoutError as error:
        preview = str(error).split("-------------------")
        where = " ".join((preview[1] if len(preview) > 1 else preview[0]).split())[:200]
        raise NotebookError(f"{Path(source).name}: a cell ran out of time: {where}") from error
    except (DeadKernelError, RuntimeError) as error:
        raise NotebookError(
            f"{Path(source).name}: the kernel died or never began: {error}"
        ) from error
    finally:
        for key, value in kept.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    return time.perf_counter() - started


def run_course(
    dataset, profile, seed, data_dir="data", runs_dir="runs", images="phantom"
) -> list[dict]:
    """Execute every notebook in order, with a line each, and print the table of results.

    dataset, images: what the notebooks on 3-D studies and on 2-D images take. data_dir, runs_dir:
    relative to the folder that this is called in.
    """
    files, lines = notebook_files(), []
    values = {"DATASET": dataset, "IMAGES": images, "PROFILE": profile, "SEED": seed}
    values |= {"DATA_DIR": str(data_dir), "RUNS_DIR": str(runs_dir)}
    for position, file in enumerate(files, start=1):
        print(f"[{position}/{len(files)}] {file.stem} ...", end=" ", flush=True)
        target = Path(runs_dir) / "notebooks" / file.name
        quiet = {"TQDM_DISABLE": "1"}
        known = parameter_names(file)
        parameters = {name: value for name, value in values.items() if name in known}
        seconds = execute(file, target, parameters, cwd=Path.cwd(), environment=quiet)
        print(f"{seconds:.0f} s", flush=True)
        results = json.loads((Path(runs_dir) / file.stem / "results.json").read_text())
        lines.append({"notebook": file.stem, "seconds": seconds, "summary": results["summary"]})
    print_table(lines)
    print(f"\nThe executed notebooks lie in {runs_dir}/notebooks.")
    return lines


def print_table(lines) -> None:
    """Print notebook, seconds and key results."""
    width = max(len(line["notebook"]) for line in lines)
    print(f"\n{'notebook':{width}}  seconds  key results")
    for line in lines:
        first, *more = [f"{key}: {value}" for key, value in line["summary"].items()] or ["-"]
        print(f"{line['notebook']:{width}}  {line['seconds']:7.0f}  {first}")
        for text in more:
            print(f"{'':{width}}  {'':7}  {text}")
    print(f"{'all':{width}}  {sum(line['seconds'] for line in lines):7.0f}")


def refresh(files, parameters=None) -> None:
    """Execute notebooks in place, as they are committed: quick, on the phantom, no extras."""
    for file in files:
        executed = ROOT / "runs" / "notebooks" / file.name
        seconds = execute(file, executed, parameters, environment={"TQDM_DISABLE": "1"})
        original, result = nbformat.read(file, 4), nbformat.read(executed, 4)
        result.cells = [cell for cell in result.cells if "injected-parameters" not in tags(cell)]
        for cell, source in zip(result.cells, original.cells, strict=True):
            cell.metadata = source.metadata
            for output in cell.get("outputs", []):
                if "image/jpeg" in output.get("data", {}):
                    output.data.pop("image/png", None)  # Pillow gives both; one is enough
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = squeezed(output.data["image/png"])
        result.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        nbformat.write(result, file)
        print(f"{file.name}: {seconds:.0f} s, {file.stat().st_size / 1e3:.0f} kB")


def squeezed(png: str) -> str:
    """The same picture (base64 PNG) with 256 colours, or 64 where that still takes 100 kB."""
    picture, found = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), [png]
    for n_colours in (256, 64):
        picture.quantize(n_colours).save(buffer := io.BytesIO(), "PNG", optimize=True)
        found.append(base64.b64encode(buffer.getvalue()).decode())
        if len(found[-1]) < 100_000:
            break
    return min(found, key=len)


def parameter_names(file) -> set[str]:
    """The names that a notebook's `parameters` cell sets."""
    cells = nbformat.read(file, 4).cells
    source = "\n".join(cell.source for cell in cells if "parameters" in tags(cell))
    return set(re.findall(r"^([A-Z_]+) = ", source, re.M))


def tags(cell) -> list[str]:
    """The tags of a notebook cell."""
    return cell.metadata.get("tags", [])


def exercises(notebook) -> list[tuple]:
    """(exercise cell, its solution's cell, the solution's code) in order."""
    stubs = [cell for cell in notebook.cells if "exercise" in tags(cell)]
    answers = [cell for cell in notebook.cells if "solution" in tags(cell)]
    codes = [re.search(r"```python\n(.+?)```", cell.source, re.S)[1] for cell in answers]
    return list(zip(stubs, answers, codes, strict=True))


def copy_for_class(file, solved):
    """The notebook without outputs, as `copies` writes it."""
    notebook = nbformat.read(file, 4)
    for stub, answer, code in exercises(notebook):
        notebook.cells.remove(answer)
        if solved:
            check = stub.source.strip().rsplit("\n", 1)[-1]
            stub.source = f"{code}\n{check}"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    return notebook


def copies(folder, solved) -> list[Path]:
    """Copies of all notebooks without outputs, for a class, in a folder of the repository.

    solved: with the solutions in their cells, for whoever teaches; otherwise with no solution at
    all, for whoever learns.
    """
    written = []
    for file in notebook_files():
        text = nbformat.writes(copy_for_class(file, solved)).encode()
        target = Path(folder) / file.name
        written.append(write_whole(target, lambda into, text=text: into.write(text)))
    return written


def progress_table(files) -> pd.DataFrame:
    """Exercise by learner: the tries until it was solved, or in brackets where it was not.

    files: what `answers.note` has written, one for each learner, named as the column shall be.
    SystemExit, in one line, for a file that is something else.
    """
    rows, table = {}, defaultdict(dict)
    for file in notebook_files():
        stubs = [cell for cell in nbformat.read(file, 4).cells if "exercise" in tags(cell)]
        for n, stub in enumerate(stubs, start=1):
            check = re.search(r"checks\.check_(\w+)", stub.source)[1]
            rows[check] = f"{int(file.name[:2])}.{n} {check}"
    for file in map(Path, files):
        tries = defaultdict(list)
        try:
            for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
                tries[rows[line["check"]]].append(line["right"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{file}: not a file of COURSE_PROGRESS: {error!r}") from None
        for name, rights in tries.items():
            n = rights.index(True) + 1 if True in rights else f"({len(rights)})"
            table[file.stem][name] = n
    names = [name for name in rows.values() if any(name in column for column in table.values())]
    cells = [[column.get(name, "") for column in table.values()] for name in names]
    return pd.DataFrame(cells, names, [*table], dtype=object)


def repository_url() -> str:
    """The repository's address, as it stands in pyproject.toml."""
    return re.search(r'^Repository = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]


def set_repository_url(url) -> None:
    """Write the repository's address into pyproject.toml, every notebook and the README."""
    if not ADDRESS.fullmatch(url):
        raise SystemExit(f"{url}: give an address like https://github.com/OWNER/NAME")
    old, start = repository_url(), len("https://github.com/")
    texts = [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "CITATION.cff", *notebook_files()]
    for path in texts:
        text = path.read_text(encoding="utf-8").replace(old, url)
        text = text.replace(f"github/{old[start:]}/blob", f"github/{url[start:]}/blob")
        path.write_text(text, encoding="utf-8")


def phantom_gifs(folder="gifs", matrix=512, size=SIZE, seed=2020) -> list[Path]:
    """Make the README's four GIFs: a healthy and an ill phantom, raw and normalised."""
    from helpers.ct.cohort import find_studies
    from helpers.figures.gifs import pair_gifs
    from helpers.phantom.simulate import make_cohort

    with tempfile.TemporaryDirectory() as made:
        make_cohort(made, {"CT-0": 1, "CT-3": 1}, matrix, seed, workers=1)
        healthy, ill = (Path(made) / file for file in find_studies(made).file)
        return pair_gifs(healthy, ill, folder, size, "synthetic phantom")


def main(arguments=None) -> None:
    """The command line behind the Makefile."""
    parser = argparse.ArgumentParser(prog="python -m helpers.course.runner", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    course = commands.add_parser("course", help="execute every notebook in order")
    course.add_argument("--dataset", default="phantom")
    course.add_argument("--images", default="phantom")
    course.add_argument("--profile", default="quick", choices=["tiny", "quick", "full"])
    course.add_argument("--seed", default=0, type=int)
    again = commands.add_parser("notebooks", help="execute notebooks in place")
    again.add_argument("names", nargs="*", help="all, unless some are named")
    address = commands.add_parser("repo-url", help="change the repository's address")
    address.add_argument("url")
    commands.add_parser("gifs", help="make the README's GIFs of the phantom")
    commands.add_parser("student", help="copies of the notebooks without solutions, in student/")
    commands.add_parser("solutions", help="copies with the solutions filled in, in solutions/")
    room = commands.add_parser("classroom", help="one folder for a room without a connection")
    room.add_argument("--profile", default="quick", choices=["tiny", "quick", "full"])
    room.add_argument("--wheels", default="yes", choices=["yes", "no"])
    systems = ["windows", "macos", "linux"]
    room.add_argument("--platform", default="", choices=systems, help="default: this machine's")
    room.add_argument("--python", default="", help="its version, as 3.12; default: this one's")
    done = commands.add_parser("progress", help="who has solved what, from COURSE_PROGRESS's files")
    done.add_argument("files", nargs="+")
    chosen = parser.parse_args(arguments)
    if chosen.command == "progress":
        return print(progress_table(chosen.files).to_string())
    os.chdir(ROOT)
    try:
        if chosen.command == "course":
            run_course(chosen.dataset, chosen.profile, chosen.seed, images=chosen.images)
        elif chosen.command == "notebooks":
            files = notebook_files()
            wanted = [f for f in files if any(name in f.name for name in chosen.names)]
            refresh(wanted if chosen.names else files)
        elif chosen.command == "gifs":
            for gif in phantom_gifs():
                print(f"{gif}: {gif.stat().st_size / 1e6:.1f} MB")
        elif chosen.command in ("student", "solutions"):
            made = copies(chosen.command, chosen.command == "solutions")
            print(f"{len(made)} notebooks in {chosen.command}/")
        elif chosen.command == "classroom":
            from helpers.course import classroom

            options = (chosen.wheels == "yes", chosen.platform, chosen.python)
            classroom.make_classroom("classroom", chosen.profile, *options)
            print("classroom/learner is for the stick, classroom/instructor for you alone")
        else:
            set_repository_url(chosen.url)
    except NotebookError as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    main()
