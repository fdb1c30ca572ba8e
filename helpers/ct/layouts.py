"""Where studies lie: in MosMedData's layout, in class folders or in a table, whichever it is.

MosMedData: studies/CT-*/study_*.nii.gz, or CT-*/study_* as its archives unpack, a few folders deep
at most; masks/study_*_mask.nii.gz and dataset_registry.xlsx are optional. A registry's column
`patient_id` says which studies are of one patient; without it, and where its cell is empty, a study
is a patient of its own. Class folders: <class>/<scan>, where a scan is a file, a folder with DICOM
files in it, or DICOM files that lie there themselves; masks/<scan>_mask.* is optional. A table:
COLUMNS says what it holds.

Names of files and folders may be those of patients: outside MosMedData's layout a study is called
by a fingerprint of its path, and a patient by the first of its studies.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections import Counter
from contextlib import suppress
from glob import escape
from pathlib import Path

import pandas as pd

from helpers.ct import dicom
from helpers.ct.nifti import UnreadableStudy
from helpers.storage.files import find_copies, is_system_file
from helpers.storage.tables import TableError, plain_numbers, read_table

NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
SCAN = re.compile(r"\.(nii(\.gz)?|hdr|img|mha|mhd|nrrd|nhdr|zip)$", re.IGNORECASE)
RAW = (".raw", ".zraw", ".raw.gz")
OTHER_HALF = {".hdr": (".img",), ".img": (".hdr",), ".mhd": RAW, ".nhdr": RAW}
NAMING = (".mhd", ".nhdr")  # say how the file with their voxels is called
NAMES_IT = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.M | re.I)
REGISTRY = "dataset_registry.xlsx"
MOSMED = {"studyid", "category", "studyfile", "maskfile"}  # its registry's titles, letters alone
TABLES = (".csv", ".xlsx")
# what a table holds, and the titles that mean it (letters alone); it must have the first two.
# Paths count from the table's folder; a label is a name, or 0 or 1.
COLUMNS = {
    "path": ("path", "file"),
    "category": ("label", "class", "category"),
    "patient": ("patient", "patientid"),
    "mask": ("mask",),
    "part": ("part",),
}
PARTS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
ACCEPTED = "a folder with studies/CT-*/study_*.nii.gz or <class>/<scan> in it, or a table (.csv, "
ACCEPTED += ".xlsx) with the columns path and label"
DEPTH = 3  # how many folders deep MosMedData's may lie
MOST_NESTED = 6  # how many folders deep the DICOM files of a study may lie


class CohortError(ValueError):
    """A cohort that cannot be used; the message names the file or lists the studies."""


def layout_of(root: Path) -> str:
    """How studies lie there: as "table", "mosmed" or "classes"; "" if there are none."""
    if root.is_file():
        return "table" if root.suffix.lower() in TABLES else ""
    if mosmed_places(root):
        return "mosmed"
    places = (path for folder in _class_folders(root) for path in _visible(folder))
    return "classes" if any(map(_is_scan, places)) else ""


def list_studies(root: Path) -> pd.DataFrame:
    """What `cohort.find_studies` returns and raises."""
    layout = layout_of(root)
    if not layout:
        raise CohortError(f"{root}: no studies there; give {ACCEPTED}")
    return {"table": _in_table, "mosmed": _in_mosmed, "classes": _in_classes}[layout](root)


def files_of(path: str | os.PathLike) -> list[Path]:
    """All the files that a scan consists of, sorted.

    Of a folder, all below it; of a DICOM file, all beside it; of a header, also the file that it
    names or that is called like it; of anything else, itself.
    """
    path = Path(path)
    if path.is_dir():
        return _files(path.rglob("*"))
    if not SCAN.search(path.name) and dicom.is_dicom(path):
        return _files(path.parent.glob("*"))
    return sorted([path, *_other_half(path)])


def scans_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The scans in a folder, one a study, and what in it belongs to none; both sorted.

    DICOM files that lie here themselves are told apart by study: the first file of the largest
    axial series stands for each. UnreadableStudy where that cannot be done.
    """
    inside = _visible(folder)
    scans = [path for path in inside if _is_scan(path)]
    loose = [path for path in scans if not path.is_dir() and not SCAN.search(path.name)]
    halves = {half for scan in scans if scan.suffix.lower() != ".img" for half in _other_half(scan)}
    studies = {}
    for series in dicom.list_series(loose[0]) if loose else []:  # the largest comes first
        studies.setdefault(series.study, []).append(series)
    best = [next((one for one in found if one.is_axial), found[0]) for found in studies.values()]
    slices = {file for found in studies.values() for series in found for file in series.files}
    scans = ({*scans} - {*loose} - halves) | {series.files[0] for series in best}
    return sorted(scans), sorted({*inside} - scans - halves - slices)


def _is_scan(path) -> bool:
    """Whether a path is a scan, or a DICOM file that may be of one."""
    if path.is_dir():
        return _first_dicom(path) is not None
    return bool(SCAN.search(path.name)) or dicom.is_dicom(path)


def _first_dicom(folder, depth=MOST_NESTED) -> Path | None:
    """Any DICOM file in a folder or below it."""
    inside = list(_visible(folder))
    for path in inside:
        if not path.is_dir() and dicom.is_dicom(path):
            return path
    below = (_first_dicom(path, depth - 1) for path in inside if depth and path.is_dir())
    return next(filter(None, below), None)


def _other_half(path) -> list[Path]:
    """The file in which the rest of the scan is, if `path` is half of one.

    For .mhd and .nhdr the one that they name, or else what is called like it.
    """
    suffix, named = path.suffix.lower(), None
    if suffix not in OTHER_HALF or not path.is_file():
        return []
    # what cannot be opened is refused when it is read as a study
    with suppress(OSError), open(path, "rb") as file:
        named = suffix in NAMING and NAMES_IT.search(file.read(1 << 16))
    if named and (file := path.parent / os.fsdecode(named[1])).is_file():
        return [file]
    alike = path.parent.glob(f"{escape(path.stem)}.*")
    return sorted(f for f in alike if f.name[len(path.stem) :].lower() in OTHER_HALF[suffix])


def _visible(folder) -> list[Path]:
    """What lies in a folder, sorted, without what a system put there; UnreadableStudy."""
    try:
        names = os.listdir(folder) if folder.is_dir() else []
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
        raise UnreadableStudy(folder, reason, "check its permissions") from None
    return sorted(folder / name for name in names if not is_system_file(name))


def _files(paths) -> list[Path]:
    """The files among paths, sorted, without what a system put there."""
    return [path for path in sorted(paths) if path.is_file() and not is_system_file(path.name)]


def _stem(name) -> str:
    """A scan's or mask's name as it is compared: without folder, ending, case and blanks around."""
    return SCAN.sub("", re.split(r"[/\\]", str(name).strip())[-1]).casefold()


def _some(things, n=1) -> str:
    """How many there are, and the first n, in words."""
    things = [*map(str, things)]
    return f"{len(things)} ({', '.join(things[:n])}{', ...' * (len(things) > n)})"


def _warn(root, text):
    warnings.warn(f"{root}: {text}", stacklevel=6)  # whoever called find_studies


def _check_names(root, files):
    """CohortError if a name cannot be shown, or written into a table."""
    for file in files:
        if not str(file).isprintable():
            raise CohortError(f"{root}: the name {file.as_posix()!a} cannot be printed; rename it")


# MosMedData's layout


def mosmed_places(root: Path, depth=DEPTH) -> list[Path]:
    """The folders nearest below `root` with CT-*/study_* in them, at most `depth` folders deep."""
    level = [root]
    for _ in range(depth + 1):
        inside = [_visible(folder) for folder in level]
        found = [next(filter(_mosmed_files, (at / "studies", at)), None) for at in level]
        if any(found):
            return [place for place in found if place]
        # what holds more is no wrapping: a thousand folders of DICOM slices are not searched
        level = [path for paths in inside if len(paths) <= 100 for path in paths if path.is_dir()]
    return []


def mosmed_root(place: Path) -> Path:
    """The folder that masks and registry lie in, by one of `mosmed_places`."""
    return place.parent if place.name == "studies" else place


def _mosmed_files(place) -> list[Path]:
    found = _niftis(place, "CT-*/*")
    return [file for file in found if file.name.lower().startswith("study_")]


def _niftis(folder, pattern) -> list[Path]:
    """What is named as a NIfTI file; a folder of that name, too: it is refused, not passed over."""
    found = sorted(folder.glob(pattern))
    return [file for file in found if NIFTI.search(file.name) and not is_system_file(file.name)]


def _in_mosmed(root) -> pd.DataFrame:
    """The studies in MosMedData's layout."""
    place, *more = mosmed_places(root)
    if more:
        text = f"{len(more) + 1} folders with CT-*/study_* ({place}, {more[0]} ...)"
        raise CohortError(f"{root}: there are {text}; give one of them")
    top, files = mosmed_root(place), _mosmed_files(place)
    inside = "**/*" if place != top else "CT-*/**/*"
    others = sorted({*_niftis(place, inside)} - {*files})
    if others:
        text = f"left out below {place.name}/, because they are no CT-*/study_*"
        _warn(root, f"{text}: {_some(file.relative_to(root) for file in others)}")
    _check_names(root, [file.relative_to(root) for file in files])
    table = pd.DataFrame(
        {
            "study": [NIFTI.sub("", file.name) for file in files],
            "category": [file.parent.name for file in files],
            "file": [file.relative_to(root).as_posix() for file in files],
        }
    )
    is_twice = table.study.str.casefold().duplicated(keep=False)
    if is_twice.any():
        listed = ", ".join(table.file[is_twice].iloc[:4])
        raise CohortError(f"{root}: a study is there twice ({listed}); keep one of each")
    masks = {_stem(file.name): file for file in _niftis(top, "masks/*")}
    masks = [masks.get(f"{_stem(study)}_mask") for study in table.study]
    table["mask"] = [mask.relative_to(root).as_posix() if mask else "" for mask in masks]
    patients, copies = _registered_patients(top, table.study), _copies(root, files)
    originals = [NIFTI.sub("", copies.get(file, file).name) for file in files]
    table["patient"] = [patients.get(study, study) for study in originals]
    return table


def _copies(root, files) -> dict[Path, Path]:
    """As `find_copies`; a warning names some."""
    copies = find_copies(files)
    if copies:
        pairs = [[f"{f.parent.name}/{f.name}" for f in pair] for pair in copies.items()]
        some = _some((f"{copy} of {first}" for copy, first in pairs), 3)
        _warn(root, f"copies, counted as the same patient: {some}; delete them")
    return copies


def _registered_patients(root, studies) -> dict[str, str]:
    """Study -> patient, as far as the registry says; CohortError if it cannot be understood."""
    path = root / REGISTRY
    if not path.exists():
        for other in root.glob("*"):
            if other.stem.lower() == path.stem:
                raise CohortError(f"{other}: is not read; save it as {REGISTRY}, or rename it")
        return {}
    registry = plain_numbers(_table(path, ("study_id",)))
    if "patientid" not in registry:
        if {*registry.columns} - MOSMED - {""}:
            _warn(path, "has no column patient_id, so every study counts as a patient of its own")
        return {}
    known = {_stem(study): study for study in studies}
    known |= {re.sub(r"^\D.*?0*(\d+)$", r"\1", key): study for key, study in known.items()}
    rows = pd.DataFrame(
        {
            "study": [known.get(_stem(study)) for study in registry.studyid],
            "patient": registry.patientid,
        }
    ).dropna(subset="study")
    n_unlisted = len({*studies} - {*rows.study})
    if n_unlisted == len(studies):
        raise CohortError(f"{path}: lists none of the studies; name them in study_id as the files")
    if n_unlisted:
        text = f"does not list {n_unlisted} of {len(studies)} studies"
        _warn(path, f"{text}; each counts as a patient of its own")
    rows = rows[rows.patient != ""].drop_duplicates()
    is_twice = rows.study.duplicated(keep=False)
    if is_twice.any():
        study, patients = rows.study[is_twice].iloc[0], " and ".join(rows.patient[is_twice][:2])
        raise CohortError(f"{path}: gives {study} two patients ({patients}); keep one")
    return dict(zip(rows.study, rows.patient, strict=True))


# Class folders and tables


def _class_folders(root) -> list[Path]:
    return [path for path in _visible(root) if path.is_dir() and path.name.lower() != "masks"]


def _in_classes(root) -> pd.DataFrame:
    """The studies in class folders."""
    files, categories, others = [], [], _files(root.glob("*"))
    for folder in _class_folders(root):
        scans, rest = scans_in(folder)
        files += scans
        categories += [folder.name] * len(scans)
        others += rest if scans else [folder]
    if others:
        some = _some(path.relative_to(root) for path in others)
        _warn(root, f"left out, because they are no scans of a class: {some}")
    _check_names(root, [file.relative_to(root) for file in files])
    relative, masks = [file.relative_to(root).as_posix() for file in files], {}
    for mask in _files(root.glob("masks/*")):
        fitting = [file for file in files if f"{_stem(file.name)}_mask" == _stem(mask.name)]
        if len(fitting) > 1:
            raise CohortError(f"{mask}: fits {len(fitting)} scans; give each a name of its own")
        masks |= {file: mask.relative_to(root).as_posix() for file in fitting}
    studies = _fingerprints(relative)
    return pd.DataFrame(
        {
            "study": studies,
            "category": categories,
            "file": relative,
            "mask": [masks.get(file, "") for file in files],
            "patient": _patients(root, studies, files, [*map(_id_in_header, files)]),
        }
    )


def _in_table(path) -> pd.DataFrame:
    """The studies that a table names; their files are absolute paths."""
    rows, folder = _read_table(path), path.absolute().parent
    files, masks = rows.path.map(_below(folder)), rows["mask"].map(_below(folder))
    has_parts = bool((rows.part != "").any())
    counted = f"paths count from {folder}, or are absolute"
    for is_bad, what, remedy in (
        (files == "", "without a path", "fill it in"),
        (~files.map(os.path.exists), "with a scan that is not there", counted),
        (files.duplicated(keep=False), "that name the same scan", "keep one of them"),
        (rows.category == "", "without a label", "fill it in"),
        (~rows.category.map(str.isprintable), "with an unprintable label", "write it in letters"),
        (has_parts & ~rows.part.isin(PARTS), "without a known part", f"write {', '.join(PARTS)}"),
        ((masks != "") & ~masks.map(os.path.exists), "with a mask that is not there", counted),
    ):
        _refuse(path, rows, is_bad, what, remedy)
    files = [Path(file) for file in files]
    _check_names(path, files)
    studies = _fingerprints([f.relative_to(folder) if folder in f.parents else f for f in files])
    ids = [known or _id_in_header(file) for known, file in zip(rows.patient, files, strict=True)]
    table = pd.DataFrame(
        {
            "study": studies,
            "category": [*rows.category],
            "file": [file.as_posix() for file in files],
            "mask": [Path(mask).as_posix() if mask else "" for mask in masks],
            "patient": _patients(path, studies, files, ids),
        }
    )
    if has_parts:
        table["part"] = [PARTS[part] for part in rows.part]
        n_parts = table.groupby("patient").part.transform("nunique")
        text, remedy = "with a patient of two parts", "give all scans of a patient the same part"
        _refuse(path, rows, (n_parts > 1).to_numpy(), text, remedy)
    return table


def _below(folder):
    """The function that turns a cell into an absolute path, and an empty one into ""."""
    return lambda cell: os.path.abspath(folder / cell.replace("\\", "/")) if cell else ""


def _refuse(path, rows, is_bad, what, remedy):
    """CohortError with the number of bad lines, and the first of them."""
    bad = rows.path[is_bad]
    if len(bad):
        some = _some((f"line {line}: {cell[:100]!r}" for line, cell in bad.items()), 3)
        raise CohortError(f"{path}: lines {what}: {some}; {remedy}")


def _read_table(path) -> pd.DataFrame:
    """The lines of a table, with all of COLUMNS as text."""
    found, columns = _table(path, COLUMNS["path"]), {}
    for name, titles in COLUMNS.items():
        title = next((title for title in titles if title in found), None)
        if title is None and name == "category":
            raise CohortError(f"{path}: has no column {' or '.join(titles)}; add one")
        columns[name] = "" if title is None else found[title]
    rows = pd.DataFrame(columns, index=found.index)
    rows = rows[(rows != "").any(axis=1)]
    if rows.empty:
        raise CohortError(f"{path}: names no scan; give each a line of its own")
    rows[["category", "patient"]] = plain_numbers(rows[["category", "patient"]])
    one_line = rows.category.map(lambda cell: " ".join(cell.split()))
    return rows.assign(category=one_line, part=rows.part.str.lower())


def _table(path, titles) -> pd.DataFrame:
    """As `tables.read_table`; CohortError."""
    try:
        return read_table(path, titles)
    except TableError as error:
        raise CohortError(str(error)) from None


def _fingerprints(paths) -> list[str]:
    """A name for each of these different paths, the same whatever else there is."""

    def name(path, n_bytes):
        digest = hashlib.blake2b(Path(path).as_posix().encode(), digest_size=n_bytes)
        return f"scan_{digest.hexdigest()}"

    counts = Counter(name(path, 4) for path in paths)
    return [name(path, 16 if counts[name(path, 4)] > 1 else 4) for path in paths]


def _patients(root, studies, files, ids) -> list[str]:
    """For every study the first one of the same patient.

    ids: how a table or DICOM headers call the patients, "" for unknown. They are compared here,
    and no more. A file's copy is of the patient of its original.
    """
    if len(ids) > 1 and len({*ids}) == 1 and ids[0]:
        text = f"all {len(ids)} studies have the same patient's number, as if it had been removed"
        _warn(root, f"{text}: each counts as a patient of its own")
        ids = [""] * len(ids)
    voxels = [_other_half(file)[:1] or [file] for file in files]
    place_of = {file: k for k, (file,) in enumerate(voxels) if file.is_file()}
    originals = {place_of[copy]: place_of[first] for copy, first in _copies(root, place_of).items()}
    for copy, first in originals.items():
        ids[first] = ids[first] or ids[copy]
    first_of, found = {}, []
    for k, study in enumerate(studies):
        original = originals.get(k, k)
        found.append(first_of.setdefault(ids[original] or (studies[original],), study))
    return found


def _id_in_header(path) -> str:
    """The patient's id in a study's DICOM header, "" if there is none or it cannot be read."""
    file = _first_dicom(path) if path.is_dir() else path
    is_dicom = file and (file.suffix.lower() == ".zip" or dicom.is_dicom(file))
    try:
        return dicom.patient_of(file) if is_dicom else ""
    except UnreadableStudy:  # refused when it is read as a study
        return ""
