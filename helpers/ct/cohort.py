"""A cohort: its studies, wherever they lie, their labels and their split."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.ct.layouts import CohortError, list_studies
from helpers.storage.files import write_whole

# an archive of MosMedData holds CT-2 and CT-3 in one folder, CT-23
TASKS = {
    "ct0-ct23": {"CT-0": 0, "CT-2": 1, "CT-3": 1, "CT-23": 1},
    "ct0-ct1234": {"CT-0": 0, "CT-1": 1, "CT-2": 1, "CT-3": 1, "CT-4": 1, "CT-23": 1},
}
# how a class without the disease is called, letters and digits alone
NEGATIVE = {"normal", "negative", "healthy", "control", "controls", "noncovid", "nocovid"}
NEGATIVE |= {"notcovid", "covidnegative", "ct0", "0", "no", "none", "false"}
PARTS = ("train", "validation", "test")


class SplitError(ValueError):
    """A split cannot be made, or the saved one does not belong to these studies."""


def find_studies(root) -> pd.DataFrame:
    """List the studies of a folder or a table: study, category, file, mask, patient.

    root: see `layouts`. file and mask are relative to it, those of a table absolute. A table's
    column `part` comes as well. Files with the same bytes are of one patient. What lies there and
    is left out is said in a warning. CohortError if there are no studies, if one is there twice,
    or if registry or table cannot be understood.
    """
    return list_studies(Path(root).expanduser())


def label_studies(table, task="ct0-ct23") -> pd.DataFrame:
    """Keep the studies whose category the task names, and add their `label` (1 = COVID).

    task: as in `labels_of`. CohortError if no study has one of the labels.
    """
    labels = labels_of(table, task)
    chosen = table[table.category.isin(labels)].copy()
    chosen["label"] = chosen.category.map(labels).astype(int)
    missing = {*labels.values()} - {*chosen.label}
    if missing:
        wanted = [category for category, label in labels.items() if label in missing]
        raise CohortError(f"no study of {', '.join(wanted)}; add some or choose another task")
    return chosen.reset_index(drop=True)


def labels_of(table, task="ct0-ct23") -> dict[str, int]:
    """The label of every category, 0 or 1, by a task.

    task: a key of TASKS, a mapping from category to label, or None. Where TASKS know none of the
    table's categories, two of which one is called NEGATIVE get 0 and 1, and a line is printed that
    says so. CohortError for others.
    """
    if hasattr(task, "items"):
        labels = {str(category): label for category, label in task.items()}
        if {*labels.values()} != {0, 1}:
            raise CohortError(f"task={task}: give some categories the label 0 and others 1")
        return {category: int(label) for category, label in labels.items()}
    if task not in (None, *TASKS):
        raise CohortError(f"task={task!r}: choose one of {', '.join(TASKS)}, or give a dictionary")
    labels = TASKS[task or "ct0-ct23"]
    counts = table.category.value_counts(sort=False)
    known = {category for each in TASKS.values() for category in each}
    is_foreign = {*counts.index} - known and {*map(labels.get, counts.index)} < {0, 1, None}
    return _guess_labels(counts) if is_foreign else labels


def _guess_labels(counts) -> dict[str, int]:
    """0 for the category that is called NEGATIVE and 1 for the other; CohortError otherwise."""
    plain = [re.sub("[^a-z0-9]", "", category.casefold()) for category in counts.index]
    labels = {c: int(p not in NEGATIVE) for c, p in zip(counts.index, plain, strict=True)}
    listed = ", ".join(f"{category[:40]} ({n})" for category, n in counts[:10].items())
    if len({*counts.index.str.casefold()}) != 2 or {*labels.values()} != {0, 1}:
        example = {category: k for k, category in enumerate(counts.index[:2])}
        text = f"the categories {listed} are of no known task"
        raise CohortError(f"{text}; say which is 0 and which 1, such as task={example}")
    if {*labels} != {"0", "1"}:
        print(f"labels by name: {labels}; if that is wrong, give such a dictionary")
    return labels


def name_of_task(labels) -> str:
    """A name for files, different for different labels: a key of TASKS, or a fingerprint."""
    known = next((name for name, each in TASKS.items() if each == labels), None)
    text = json.dumps(sorted(labels.items()))
    return known or f"labels-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


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


def saved_split(table, path, seed=0) -> pd.Series:
    """The split stored at `path`; made with `split_by_patient` and stored if there is none.

    Where `table` has a column part, that is the split, and nothing is stored. SplitError if a part
    lacks a class, if two studies have the same content (a column of the cache's index), if the
    stored split does not know a study, or if a patient of today stands in two parts.
    """
    path = Path(path).expanduser()
    if "content" in table:
        for _, same in table.groupby("content").study:
            if len(same) > 1:
                raise SplitError(f"{' and '.join(same[:3])} hold the same scan; keep one of them")
    is_told, is_new = "part" in table, not path.exists()
    if is_told:
        parts = table.part
        _check_patients(table, parts, "the column part", "give each patient one part")
    elif is_new:
        parts = split_by_patient(table, seed=seed)
    else:
        parts = _stored_split(table, path)
    counts = pd.crosstab(parts, table.label).reindex(PARTS, fill_value=0)
    if (counts < 1).any(axis=None):
        n_patients = table.patient.nunique()
        text = f"too few studies ({len(table)}) or patients ({n_patients})"
        raise SplitError(f"{text}: a part has no study of one class")
    if is_new and not is_told:
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
        studies = f"{len(unknown)} of {len(table)} studies, {unknown.iloc[0]} first"
        raise SplitError(f"{path}: does not know {studies}; {remedy}")
    parts = table.study.map(stored).rename("part")
    _check_patients(table, parts, f"{path}:", remedy)
    return parts


def _check_patients(table, parts, what, remedy):
    """SplitError if a patient stands in two parts."""
    n_parts = parts.groupby(table.patient).nunique()
    torn = n_parts.index[n_parts > 1]
    if len(torn):
        text = f"patients in two parts: {len(torn)}, {torn[0]} first"
        raise SplitError(f"{what} has {text}; {remedy}")
