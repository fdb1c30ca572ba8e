"""A cohort: a folder of studies in MosMedData's layout, its labels and its split.

Layout: studies/CT-*/study_*.nii.gz, masks/study_*_mask.nii.gz, dataset_registry.xlsx (optional);
.nii is read like .nii.gz. A registry column `patient_id` says which studies are of one patient;
without it, and where its cell is empty, a study is a patient of its own.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pooch

from helpers.storage.files import is_system_file, write_whole

ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
REGISTRY = "dataset_registry.xlsx"
MOSMED = {"studyid", "category", "studyfile", "maskfile"}  # its registry's titles, letters alone
TASKS = {
    "ct0-ct23": {"CT-0": 0, "CT-2": 1, "CT-3": 1},
    "ct0-ct1234": {"CT-0": 0, "CT-1": 1, "CT-2": 1, "CT-3": 1, "CT-4": 1},
}
PARTS = ("train", "validation", "test")


class CohortError(ValueError):
    """A cohort that cannot be used; the message names the file or lists the studies."""


class SplitError(ValueError):
    """A split cannot be made, or the saved one does not belong to these studies."""


def find_studies(root) -> pd.DataFrame:
    """List the studies below `root`: study, category, file, mask (paths relative to root), patient.

    Files with the same bytes are of one patient. What lies below studies/ and is left out is said
    in a warning. CohortError if there are no studies, if one is there twice, or if the registry
    cannot be understood.
    """
    root = Path(root).expanduser()
    files = [
        file for file in _niftis(root, "studies/CT-*/*") if file.name.lower().startswith("study_")
    ]
    others = sorted({*_niftis(root, "studies/**/*")} - {*files})
    if others:
        text = f"{root}: {len(others)} files below studies/ are left out: no CT-*/study_*"
        warnings.warn(f"{text} ({others[0].relative_to(root)} ...)", stacklevel=2)
    if not files:
        raise CohortError(f"{root}: no studies/CT-*/study_*.nii.gz in it; give a cohort's folder")
    for file in files:
        if not file.name.isprintable():
            raise CohortError(f"{root}: the file name {file.name!a} cannot be printed; rename it")
    table = pd.DataFrame(
        {
            "study": [ENDING.sub("", file.name) for file in files],
            "category": [file.parent.name for file in files],
            "file": [file.relative_to(root).as_posix() for file in files],
        }
    )
    is_twice = table.study.str.casefold().duplicated(keep=False)
    if is_twice.any():
        listed = ", ".join(table.file[is_twice].iloc[:4])
        raise CohortError(f"{root}: a study is there twice ({listed}); keep one of each")
    masks = {_key(file.name): file for file in _niftis(root, "masks/*")}
    masks = [masks.get(f"{_key(study)}_mask") for study in table.study]
    table["mask"] = [mask.relative_to(root).as_posix() if mask else "" for mask in masks]
    patients, copies = _find_patients(root, table.study), _copies(files)
    originals = [ENDING.sub("", copies.get(file, file).name) for file in files]
    table["patient"] = [patients.get(study, study) for study in originals]
    if copies:
        some = ", ".join(f"{copy.name} of {first.name}" for copy, first in [*copies.items()][:3])
        text = f"{root}: {len(copies)} files are copies ({some}), counted as the same patient"
        warnings.warn(f"{text}; delete them", stacklevel=2)
    return table


def _niftis(root, pattern) -> list[Path]:
    """The NIfTI files by their name, without what a system put beside them ("._study.nii.gz")."""
    found = sorted(root.glob(pattern))
    return [file for file in found if ENDING.search(file.name) and not is_system_file(file.name)]


def _key(name) -> str:
    """A study's name as it is compared: without folder, ending, case and blanks around it."""
    return ENDING.sub("", re.split(r"[/\\]", str(name).strip())[-1]).casefold()


def _copies(files) -> dict[Path, Path]:
    """File -> the first file with the same bytes.

    What has the same size is compared in the middle, and only what is alike there as a whole.
    """

    def size(file):
        return file.stat().st_size or file  # what is empty is no copy of anything

    def middle(file):
        with open(file, "rb") as opened:
            opened.seek(size(file) // 2)
            return opened.read(1 << 16)

    def whole(file):
        return pooch.file_hash(str(file), alg="sha1")

    groups = [files]
    for property_of in (size, middle, whole):
        alike = {}
        for number, group in enumerate(groups):
            for file in group:
                try:
                    key = property_of(file)
                except OSError:  # refused when it is read as a study
                    continue
                alike.setdefault((number, key), []).append(file)
        groups = [group for group in alike.values() if len(group) > 1]
    groups = [sorted(group, key=lambda file: len(file.name)) for group in groups]
    return {copy: first for first, *others in groups for copy in others}


def _find_patients(root, studies) -> dict[str, str]:
    """Study -> patient, as far as the registry says; CohortError if it cannot be understood."""
    path = root / REGISTRY
    if not path.exists():
        for other in root.glob("*"):
            if other.stem.lower() == path.stem:
                raise CohortError(f"{other}: is not read; save it as {REGISTRY}, or rename it")
        return {}
    registry = _read_registry(path)
    if "patientid" not in registry:
        if {*registry.columns} - MOSMED - {""}:
            text = f"{path}: has no column patient_id"
            warnings.warn(f"{text}, so every study counts as a patient of its own", stacklevel=3)
        return {}
    known = {_key(study): study for study in studies}
    known |= {re.sub(r"^\D.*?0*(\d+)$", r"\1", key): study for key, study in known.items()}
    rows = pd.DataFrame(
        {
            "study": [known.get(_key(study)) for study in registry.studyid],
            "patient": registry.patientid,
        }
    ).dropna(subset="study")
    n_unlisted = len({*studies} - {*rows.study})
    if n_unlisted == len(studies):
        raise CohortError(f"{path}: lists none of the studies; name them in study_id as the files")
    if n_unlisted:
        text = f"{path}: does not list {n_unlisted} of {len(studies)} studies"
        warnings.warn(f"{text}, which count as patients of their own", stacklevel=3)
    rows = rows[rows.patient != ""].drop_duplicates()
    is_twice = rows.study.duplicated(keep=False)
    if is_twice.any():
        study, patients = rows.study[is_twice].iloc[0], " and ".join(rows.patient[is_twice][:2])
        raise CohortError(f"{path}: gives {study} two patients ({patients}); keep one")
    return dict(zip(rows.study, rows.patient, strict=True))


def _read_registry(path) -> pd.DataFrame:
    """The registry's first sheet as text, "" where a cell is empty; titles as `MOSMED` has them."""
    try:
        cells = pd.read_excel(path, header=None, dtype=str, engine="openpyxl")
    except Exception as error:  # each library below has its own for a file that is no workbook
        reason = f"cannot be read as an Excel workbook ({type(error).__name__})"
        raise CohortError(f"{path}: {reason}; save it anew as .xlsx, or remove it") from None
    cells = cells.astype("string").fillna("").apply(lambda column: column.str.strip())
    titles = cells.map(lambda cell: re.sub("[^a-z]", "", cell.lower()))
    is_header = titles.eq("studyid").any(axis=1)
    if not is_header.any():
        raise CohortError(f"{path}: has no column study_id in its first sheet; name it so")
    header = int(np.argmax(is_header))
    rows = cells.iloc[header + 1 :].set_axis(titles.iloc[header], axis=1)
    rows = rows.loc[:, ~rows.columns.duplicated()]
    # 7 may come as 7.0, and Excel turns "007" into 7
    return rows.replace(r"^0*(\d+)(\.0+)?$", r"\1", regex=True)


def label_studies(table, task="ct0-ct23") -> pd.DataFrame:
    """Keep the studies whose category `task` names, and add their `label` (1 = COVID).

    task: a key of TASKS, or a mapping from category to label. CohortError if a label is empty.
    """
    labels = TASKS[task] if isinstance(task, str) else dict(task)
    chosen = table[table.category.isin(labels)].copy()
    chosen["label"] = chosen.category.map(labels).astype(int)
    missing = {*labels.values()} - {*chosen.label}
    if missing:
        wanted = [category for category, label in labels.items() if label in missing]
        raise CohortError(f"no study of {', '.join(wanted)}; add some or choose another task")
    return chosen.reset_index(drop=True)


def split_by_patient(table, fractions=(0.6, 0.15, 0.25), seed=0) -> pd.Series:
    """Deal patients out to train, validation and test; returns the part of each line of `table`.

    Patients are shuffled within their category and dealt out in that order, each to the part
    that is furthest behind its share, so every part gets its share of every category. All
    studies of a patient go to one part.
    """
    patients = table.sort_values(["category", "patient"])
    patients = patients.drop_duplicates("patient", keep="last")
    rng = np.random.default_rng(seed)
    shuffled = patients.iloc[rng.permutation(len(patients))]
    shuffled = shuffled.sort_values("category", kind="stable")
    dealt, part_of = np.zeros(len(PARTS)), {}
    for n_dealt, patient in enumerate(shuffled.patient, start=1):
        part = int(np.argmax(np.array(fractions) * n_dealt - dealt))
        dealt[part] += 1
        part_of[patient] = PARTS[part]
    return table.patient.map(part_of).rename("part")


def saved_split(table, path, fractions=(0.6, 0.15, 0.25), seed=0) -> pd.Series:
    """The split stored at `path`; made with `split_by_patient` and stored if there is none.

    SplitError if a part lacks a class, if two studies have the same content (a column of the
    cache's index), or if the stored split does not know a study, or a patient of today stands in
    two of its parts.
    """
    path = Path(path).expanduser()
    if "content" in table:
        for _, same in table.groupby("content").study:
            if len(same) > 1:
                raise SplitError(f"{' and '.join(same[:3])} hold the same scan; keep one of them")
    is_new = not path.exists()
    parts = split_by_patient(table, fractions, seed) if is_new else _stored_split(table, path)
    counts = pd.crosstab(parts, table.label).reindex(PARTS, fill_value=0)
    if (counts < 1).any(axis=None):
        raise SplitError(f"{len(table)} studies are too few: a part has no study of one class")
    if is_new:
        lines = pd.DataFrame({"study": table.study, "patient": table.patient, "part": parts})
        write_whole(path, lambda file: lines.to_csv(file, index=False))
    return parts


def _stored_split(table, path) -> pd.Series:
    """The part of each line of `table`, if the split at `path` is right for its patients."""
    remedy = "delete it to split anew, and train anew"
    try:
        stored = pd.read_csv(path, dtype=str, keep_default_na=False)
        stored = stored[stored["part"].isin(PARTS)].set_index("study")["part"]
        if not stored.index.is_unique:
            raise ValueError("a study twice")
    except (KeyError, ValueError) as error:
        raise SplitError(f"{path}: is no split ({error}); {remedy}") from None
    unknown = table.study[~table.study.isin(stored.index)]
    if len(unknown):
        studies = f"{len(unknown)} studies ({unknown.iloc[0]} ...)"
        raise SplitError(f"{path}: does not know {studies}; {remedy}")
    parts = table.study.map(stored).rename("part")
    n_parts = parts.groupby(table.patient).nunique()
    torn = n_parts.index[n_parts > 1]
    if len(torn):
        patients = f"{len(torn)} patients ({', '.join(torn[:3])} ...)"
        raise SplitError(f"{path}: puts {patients} into two parts; {remedy}")
    return parts
