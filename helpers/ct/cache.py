"""A cohort preprocessed once: one memory-mapped array of all its studies, and an index."""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pooch
from threadpoolctl import threadpool_limits

from helpers.ct.layouts import CohortError, files_of
from helpers.ct.nifti import UnreadableStudy
from helpers.ct.preprocessing import SIZE, WINDOW, preprocess_fast
from helpers.ct.studies import Study
from helpers.storage.files import WriteError, lock, write_whole
from helpers.storage.processes import KILLED, start_workers
from helpers.storage.progress import progress

CACHE_VERSION = 2
SKIPPED = ["study", "file", "error"]


@dataclass(frozen=True)
class CohortCache:
    """A preprocessed cohort on disk.

    volumes: memory map, uint8, (N, D, H, W). index: one line a usable study; its column `row`
    is the study's place in `volumes`. skipped: the studies left out, with the reason.
    """

    volumes: np.ndarray
    index: pd.DataFrame
    skipped: pd.DataFrame


def preprocess_cohort(
    table,
    root,
    cache_dir,
    size=SIZE,
    limits=WINDOW,
    executor=None,
    workers=None,
    on_error="raise",
) -> CohortCache:
    """Preprocess every study of `table` once, into one memory-mapped array; returns the cache.

    table: from `find_studies`. size: (D, H, W). limits: the HU window. executor: any
    concurrent.futures executor; by default processes on this machine, `workers` of them.
    What is cached already with these settings from an unchanged file is reused, whatever task it
    was cached for, and an interrupted call goes on where it stopped. A complete cache is not
    written to: it may be shared and read-only. on_error: "raise" (CohortError that lists every bad
    study) or "skip" (they are left out and listed in the cache's `skipped`).
    """
    settings = "x".join(map(str, size)) + f"_hu{limits[0]:g}to{limits[1]:g}_v{CACHE_VERSION}"
    root, folder = Path(root).expanduser(), Path(cache_dir).expanduser() / settings
    if _is_complete(folder, table, root):
        with suppress(FileNotFoundError, KeyError):  # another process is replacing it
            return CohortCache(*_open(folder, table), pd.DataFrame(columns=SKIPPED))
    try:
        with lock(folder):
            kept = _unchanged(_in_array(folder) | _in_rows(folder), table, root)
            todo = table[~table.study.isin(kept)]
            skipped = _preprocess_all(todo, root, folder, size, limits, executor, workers)
            if len(skipped) and (on_error != "skip" or len(skipped) == len(table)):
                listed = "\n".join(f"  {error}" for error in skipped.error)
                raise CohortError(
                    f"{len(skipped)} of {len(table)} studies cannot be used:\n{listed}\n"
                    'Mend or remove them, or leave them out with on_error="skip".'
                )
            asked = table[~table.study.isin(skipped.study)]
            _assemble(asked, kept, folder, size)
            return CohortCache(*_open(folder, asked), skipped)
    except WriteError:
        raise
    except OSError as error:
        text = f"{folder}: the cache is not complete and cannot be written"
        raise WriteError(f"{text} ({error}); choose another folder") from None


def _array_file(folder, lines) -> Path:
    """Named after what the array holds, so that an index can never belong to another array."""
    held = "\n".join(f"{line['study']} {line['sha1']}" for line in lines)
    return folder / f"volumes-{hashlib.blake2b(held.encode(), digest_size=6).hexdigest()}.npy"


def _in_array(folder) -> dict[str, tuple]:
    """Study -> (its line of the index, array file, row in it) of the finished array."""
    try:
        lines = pd.read_csv(folder / "index.csv").to_dict("records")
        array = _array_file(folder, lines)
        np.load(array, mmap_mode="r")
    except (OSError, EOFError, ValueError, KeyError):  # not there, or damaged: made anew
        return {}
    return {line["study"]: (line, array, line["row"]) for line in lines}


def _in_rows(folder) -> dict[str, tuple]:
    """The same of an unfinished call: every study has a file of its own."""
    files = (folder / "rows").glob("*.json")
    return {
        file.stem: (json.loads(file.read_text()), file.with_suffix(".npy"), ...) for file in files
    }


def _unchanged(held, table, root) -> set[str]:
    """The studies whose files are what they were: same size and times, or same content."""
    now, unchanged = dict(zip(table.study, table.file, strict=True)), set()
    for study, (line, _, _) in held.items():
        path = root / now.get(study, line["file"])
        if not path.exists():
            continue
        files = files_of(path)
        n_bytes, modified = _stamp(files)
        if n_bytes == line["n_bytes"] and (
            modified == line["modified_ns"] or _content(files) == line["sha1"]
        ):
            unchanged.add(study)
    return unchanged


def _stamp(files) -> tuple[int, int]:
    """Size and time (ns) of a study's file; of several, one number that stands for all times."""
    stats = [file.stat() for file in files]
    modified = stats[0].st_mtime_ns if stats else 0
    if len(files) > 1:
        each = [
            (file.name, stat.st_size, stat.st_mtime_ns)
            for file, stat in zip(files, stats, strict=True)
        ]
        modified = int(hashlib.blake2b(repr(each).encode(), digest_size=7).hexdigest(), 16)
    return sum(stat.st_size for stat in stats), modified


def _content(files) -> str:
    """SHA-1 of a study's file; of several, the SHA-1 of all their names and contents."""
    if len(files) == 1:
        return pooch.file_hash(str(files[0]), alg="sha1")
    stats = [file.stat() for file in files]
    found = [_sha1(file, s.st_size, s.st_mtime_ns) for file, s in zip(files, stats, strict=True)]
    each = sorted((file.name, sha1) for file, sha1 in zip(files, found, strict=True))
    return hashlib.sha1(repr(each).encode(), usedforsecurity=False).hexdigest()


@lru_cache(maxsize=1 << 16)
def _sha1(file, n_bytes, modified) -> str:
    """SHA-1 of one of several files, which may be asked for once for every study beside it."""
    return pooch.file_hash(str(file), alg="sha1")


def _is_complete(folder, table, root) -> bool:
    """Whether the array holds all of `table`, and nothing in it has changed or is unfinished."""
    held = _in_array(folder)
    lines = {(line["study"], line["category"], line["file"]) for line, _, _ in held.values()}
    has_all = lines.issuperset(zip(table.study, table.category, table.file, strict=True))
    is_finished = has_all and not (folder / "rows").exists()
    return is_finished and len(_unchanged(held, table, root)) == len(held)


def _open(folder, table) -> tuple[np.ndarray, pd.DataFrame]:
    """The array, and the lines of the index that belong to `table`."""
    held = _in_array(folder)
    lines = pd.DataFrame([held[study][0] for study in table.study])
    return np.load(held[table.study.iloc[0]][1], mmap_mode="r"), lines


def _preprocess_one(path, size, limits, row=None) -> tuple | UnreadableStudy:
    """What a worker does: the line and the volume of one study, or why there is none.

    row: a file that the volume goes into; None comes back in its place, since a process that is
    killed while it sends much leaves the others waiting for the rest.
    """
    try:
        study, files = Study(path), files_of(path)
        # before it is read: if a file is changed meanwhile, it will not pass for unchanged
        (n_bytes, modified), sha1 = _stamp(files), _content(files)
        # one process a core is enough: more threads in each only wait for one another
        with threadpool_limits(1):
            volume = preprocess_fast(study, size, limits)
    except UnreadableStudy as error:
        return error
    line = {"n_bytes": n_bytes, "modified_ns": modified, "sha1": sha1}
    line |= dict(zip(("n_slices", "height", "width"), study.shape, strict=True))
    line |= dict(zip(("spacing_z", "spacing_y", "spacing_x"), study.spacing, strict=True))
    # equal for copies of a study, however they are packed
    line["content"] = hashlib.blake2b(volume, digest_size=8).hexdigest()
    if row:
        write_whole(row, partial(np.save, arr=volume))
    return line, None if row else volume


def _preprocess_all(table, root, folder, size, limits, executor, workers) -> pd.DataFrame:
    """Write one row file a study; returns the bad studies: study, file, error."""
    skipped, rows = [], folder / "rows"
    workers = min(workers or joblib.cpu_count(), max(len(table), 1))
    own = None
    if executor is None and workers > 1 and len(table) > 2:
        own = executor = start_workers(workers)
    try:
        # an executor of the caller's may be on another machine: what it makes is written here
        written_there = rows if executor is own else None
        jobs = _in_turn(table, root, size, limits, executor, 4 * workers, written_there)
        options = {"unit": "study", "disable": table.empty}
        for study, result in progress(jobs, "preprocess", len(table), **options):
            if isinstance(result, UnreadableStudy):
                skipped.append({"study": study.study, "file": study.file, "error": str(result)})
                continue
            line, volume = result
            line |= {"study": study.study, "category": study.category, "file": study.file}
            if volume is not None:
                write_whole(rows / f"{study.study}.npy", partial(np.save, arr=volume))
            text = json.dumps(line).encode()
            write_whole(rows / f"{study.study}.json", lambda file, text=text: file.write(text))
    except BrokenExecutor:
        if executor is not own:
            raise
        n_done = len([*rows.glob("*.json")])
        raise CohortError(f"{KILLED}: studies that are kept: {n_done}") from None
    finally:
        if own:
            own.shutdown(cancel_futures=True)
    skipped.sort(key=lambda bad: bad["file"])
    return pd.DataFrame(skipped, columns=SKIPPED)


def _in_turn(table, root, size, limits, executor, n_ahead, rows):
    """Yield (study, result) as results come in, with few volumes in memory at a time."""
    waiting = {}
    todo = (
        (study, (str(root / study.file), size, limits, rows and rows / f"{study.study}.npy"))
        for study in table.itertuples()
    )
    if executor is None:
        for study, job in todo:
            yield study, _preprocess_one(*job)
    while True:
        for study, job in islice(todo, n_ahead - len(waiting)):
            waiting[executor.submit(_preprocess_one, *job)] = study
        if not waiting:
            return
        for job in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield waiting.pop(job), job.result()


def _assemble(table, kept, folder, size):
    """Put all volumes into one array, and write its index.

    kept: what was cached before and is still right, also what `table` does not ask for: it belongs
    to another task. The studies in the array so far stay in their order, what is new comes after.
    """
    in_array = _in_array(folder)
    found = in_array | _in_rows(folder)
    known = {*kept, *table.study}
    names = dict.fromkeys([*in_array, *table.study, *kept])
    names = [name for name in names if name in known]
    asked = table.set_index("study")[["category", "file"]].to_dict("index")
    lines = [
        {**found[name][0], "row": row, **asked.get(name, {})} for row, name in enumerate(names)
    ]
    target, index = _array_file(folder, lines), pd.DataFrame(lines)
    if target not in {array for _, array, _ in in_array.values()}:
        write_whole(target, lambda file: _write_volumes(file, names, found, size))
    write_whole(folder / "index.csv", lambda file: index.to_csv(file, index=False))
    for old in (*folder.glob("volumes-*"), *folder.glob(".volumes-*")):
        if old != target:
            old.unlink()
    if (folder / "rows").exists():
        shutil.rmtree(folder / "rows")


def _write_volumes(file, studies, done, size):
    """Write one array of all volumes, one after the other: only one is in memory."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(studies), *size)}
    np.lib.format.write_array_header_1_0(file, header)
    for study in studies:
        _, array, row = done[study]
        file.write(np.load(array, mmap_mode="r")[row].tobytes())
