"""A cohort: a folder of studies in MosMedData's layout, its labels and its split.

Layout: studies/CT-*/study_*.nii.gz, masks/study_*_mask.nii.gz, dataset_registry.xlsx (optional).
A registry column `patient_id` says which studies are of one patient; without it each is its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from helpers.storage.files import write_whole

TASKS = {
    "ct0-ct23": {"CT-0": 0, "CT-2": 1, "CT-3": 1},
    "ct0-ct1234": {"CT-0": 0, "CT-1": 1, "CT-2": 1, "CT-3": 1, "CT-4": 1},
}
PARTS = ("train", "validation", "test")


class CohortError(ValueError):
    """Studies are missing or cannot be used; the message lists every one of them."""


class SplitError(ValueError):
    """A split cannot be made, or the saved one does not belong to these studies."""


def find_studies(root) -> pd.DataFrame:
    """List the studies below `root`: study, category, file, mask (paths relative to root), patient.

    CohortError if there are none.
    """
    root = Path(root)
    files = sorted(root.glob("studies/CT-*/study_*.nii.gz"))
    if not files:
        raise CohortError(f"{root}: no studies/CT-*/study_*.nii.gz in it; give a cohort's folder")
    table = pd.DataFrame(
        {
            "study": [file.name.removesuffix(".nii.gz") for file in files],
            "category": [file.parent.name for file in files],
            "file": [file.relative_to(root).as_posix() for file in files],
        }
    )
    if len(twice := table.study[table.study.duplicated()].unique()):
        raise CohortError(f"{root}: {', '.join(twice[:5])} lie in two folders; keep one of each")
    masks = [f"masks/{study}_mask.nii.gz" for study in table.study]
    table["mask"] = [mask if (root / mask).exists() else "" for mask in masks]
    table["patient"] = table.study
    registry = root / "dataset_registry.xlsx"
    if registry.exists():
        listed = pd.read_excel(registry)
        if "patient_id" in listed:
            patients = listed.set_index("study_id").patient_id.astype(str)
            table["patient"] = table.study.map(patients).fillna(table.study)
    return table


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

    SplitError if a part lacks a class, or if the stored split does not know a study.
    """
    path = Path(path)
    if path.exists():
        stored = pd.read_csv(path, dtype=str).set_index("study").part
        unknown = table.study[~table.study.isin(stored.index)]
        if len(unknown):
            raise SplitError(
                f"{path}: does not know {len(unknown)} studies ({unknown.iloc[0]} ...); "
                "delete it to split anew, and train anew"
            )
        return table.study.map(stored).rename("part")
    parts = split_by_patient(table, fractions, seed)
    counts = pd.crosstab(parts, table.label).reindex(PARTS, fill_value=0)
    if (counts < 1).any(axis=None):
        raise SplitError(f"{len(table)} studies are too few: a part has no study of one class")
    lines = pd.DataFrame({"study": table.study, "patient": table.patient, "part": parts})
    write_whole(path, lambda file: lines.to_csv(file, index=False))
    return parts
