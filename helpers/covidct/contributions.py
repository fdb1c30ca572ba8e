"""New images for COVID-CT: check them by the collection's rules, and add those that pass.

The rules: every image has a class, a patient id, a caption and the DOI of a paper that is not in
the collection yet; names "2020.mm.dd.xxxx" are bioRxiv or medRxiv, DOI 10.1101/2020.mm.dd.xxxx.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from helpers.covidct import covid_ct
from helpers.covidct.audit import near_duplicates
from helpers.storage.files import is_system_file, lock

CLASSES = {"covid": "COVID", "noncovid": "NonCOVID"}
FIELDS = ("image", "class", "patient", "paper", "caption")
ALIASES = {"filename": "image", "file": "image", "imagename": "image", "patientid": "patient"}
ALIASES |= {"doi": "paper", "captions": "caption"}
NAME = re.compile(r"[a-z0-9_][a-z0-9_.%+() -]{0,180}\.(png|jpe?g)", re.IGNORECASE)
SHORTEST, LONGEST, MIN_CONTRAST, SAME_IMAGE = 48, 4096, 32, 0.98


class ContributionError(ValueError):
    """A contribution cannot be read or merged; one line says why and what to do."""


@dataclass(frozen=True)
class Report:
    """findings: file, severity ("refuse", "warn"), rule, what_to_do; table: a line an image."""

    findings: pd.DataFrame
    table: pd.DataFrame

    @property
    def is_accepted(self) -> bool:
        """Whether there are images and none is refused."""
        return len(self.table) > 0 and bool(self.table.accepted.all())

    def __str__(self):
        names = self.table.image[self.table.accepted]
        lines = [f"{len(names)} of {len(self.table)} images can be taken: {', '.join(names)}"]
        return "\n".join(lines + [f"{b} {a}: {c}; {d}" for a, b, c, d in self.findings.values])


def check_contribution(folder, metadata, collection, images=None) -> Report:
    """Check new images against the rules and against what the collection already holds.

    folder: holds the images. metadata: .csv, .xlsx or a DataFrame with File name, Class ("COVID"
    or "NonCOVID"), Patient ID, DOI and Captions. collection: table of the present images (image,
    patient, paper); images: these, grey uint8 (H, W), to find copies. Sides of 48 to 4096 pixels
    are taken, with a warning outside the collection's own. ContributionError.
    """
    folder, table, findings = Path(folder), read_metadata(metadata), []
    if not folder.is_dir():
        raise ContributionError(f"{folder}: is no folder; name the folder of the new images")
    if not {"image", "patient", "paper"} <= set(collection):
        raise ContributionError("the collection's table must have image, patient and paper")
    if images is not None and len(images) != len(collection):
        raise ContributionError(f"{len(images)} images but {len(collection)} rows; give one each")

    def find(file, rule, what_to_do, severity="refuse"):
        findings.append((file, severity, rule, what_to_do))

    expected = {*table.image, Path(metadata).name if isinstance(metadata, (str, Path)) else ""}
    listed = [path.name for path in sorted(folder.iterdir()) if not is_system_file(path.name)]
    unlisted = [name for name in listed if name not in expected]
    for name in unlisted:
        find(name, "no line in the metadata", "add one, or remove the file")
    if images is None:
        find("all", "not compared with the collection", "check again with its images", "warn")
    taken = {stem_of(name) for name in collection.image}
    is_twice = table.image.map(stem_of).duplicated(keep=False)
    stated = [*collection.paper.fillna(""), *collection.image]
    papers = set(map(covid_ct.normalise_doi, stated))
    patients, greys, hashes = set(collection.patient), {}, {}
    for place, row in enumerate(table.to_dict("records")):
        name, doi, path = row["image"], row["paper"], folder / row["image"]
        meant = covid_ct.normalise_doi(name)
        on_file = [
            (not NAME.fullmatch(name), "unsafe name", "use letters, digits, _.%+()-, .png or .jpg"),
            (is_twice[place], "name listed twice", "one line and name an image"),
            (stem_of(name) in taken, "name is taken", "give the image another name"),
            (not path.is_file() or path.is_symlink(), "no such file", "add it, or remove its line"),
        ]
        on_file = [fault for fault in on_file if fault[0]][:1]
        if not on_file:
            hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            greys[name] = _read_image(path, collection, find)
        if meant and not doi:
            table.loc[place, "paper"] = doi = meant
            find(name, "no DOI", f"filled in from the name: {meant}", "warn")
        known = {row["patient"], covid_ct.patient_id(row["patient"], row["class"], name)} & patients
        faults = [
            (row["class"] not in CLASSES.values(), "no class", 'write "COVID" or "NonCOVID"'),
            (not row["patient"], "no patient id", "give one, the same for all of a patient"),
            (known, "patient id is taken", "count on from the last one of the collection"),
            (not row["caption"], "no caption", "copy the figure's caption from the paper"),
            (not doi, "no DOI", "give the paper's, 10.xxxx/..."),
            (meant and meant != doi, "DOI and name differ", f"the name means {meant}; mend one"),
            (doi and doi in papers, "DOI is taken", "choose papers that are not there yet"),
        ]
        for is_so, rule, advice in on_file + faults:
            if is_so:
                find(name, rule, advice)
    _find_copies({k: v for k, v in greys.items() if v is not None}, table, collection, images, find)
    findings = pd.DataFrame(findings, columns=["file", "severity", "rule", "what_to_do"])
    extra = pd.DataFrame({"image": unlisted}).reindex(columns=table.columns, fill_value="")
    table = pd.concat([table, extra], ignore_index=True)
    table["sha256"] = [hashes.get(name, "") for name in table.image]
    table["accepted"] = ~table.image.isin(findings.file[findings.severity == "refuse"])
    return Report(findings, table)


def read_metadata(metadata):
    """The lines as text: FIELDS, the class as CLASSES has it, and the other columns by `key_of`."""
    try:
        if isinstance(metadata, pd.DataFrame):
            raw = metadata
        else:
            is_sheet = Path(metadata).suffix.lower() == ".xlsx"
            raw = (pd.read_excel if is_sheet else pd.read_csv)(metadata, dtype=str)
    except Exception as error:  # what the readers raise for damaged files has no common kind
        reason = " ".join(str(error).split())[:200]
        raise ContributionError(f"{metadata}: no .csv or .xlsx table ({reason}); mend it") from None
    keys = [key_of(name) for name in raw.columns]
    if "image" not in keys:
        raise ContributionError("the metadata have no column File name; add it")
    cells = {key: raw.iloc[:, keys.index(key)].map(_clean) for key in keys}
    empty = pd.Series("", index=raw.index)
    table = pd.DataFrame({name: empty for name in FIELDS} | cells)
    table = table[(table != "").any(axis=1)].reset_index(drop=True)
    table["class"] = [CLASSES.get(key_of(text), text) for text in table["class"]]
    table["paper"] = [covid_ct.normalise_doi(text) for text in table["paper"]]
    return table


def _clean(value):
    """Any cell as text in one line, without control characters."""
    text = f"{value:.15g}" if isinstance(value, float) else str(value)
    return "" if pd.isna(value) else " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())


def key_of(name):
    letters = re.sub(r"[^a-z]", "", str(name or "").lower())
    return ALIASES.get(letters, letters)


def stem_of(name):
    """The name without its ending, as the metadata often write it, in lower case."""
    return re.sub(r"\.(png|jpe?g)$", "", name.strip().casefold())


def _read_image(path, collection, find):
    """The grey image (H, W) uint8, or None when it was refused."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            written, mode, size = image.format, image.mode, image.size
            if not SHORTEST <= min(size) <= max(size) <= LONGEST:
                raise ValueError(f"sides must have {SHORTEST} to {LONGEST} pixels")
            grey = covid_ct.to_grey(image)
        if np.ptp(grey) < MIN_CONTRAST:
            raise ValueError("it shows nothing")
    except Exception as error:  # what Pillow raises for damaged files has no common kind
        reason = " ".join(str(error).split())[:100]
        find(path.name, "image cannot be used", f"send it as 8-bit PNG ({reason})")
        return None
    if (written == "PNG") != (path.suffix.lower() == ".png") or mode not in ("L", "RGB"):
        find(path.name, f"{mode} {written}", "better 8-bit grey PNG: format must not tell", "warn")
    for side, n in zip(("width", "height"), size, strict=True):
        if side in collection and not collection[side].min() <= n <= collection[side].max():
            find(path.name, "size", f"{side} {n} is outside the collection's range; look", "warn")
    return grey


def _find_copies(greys, table, collection, images, find):
    new, old = list(greys), [] if images is None else list(images)
    pairs = near_duplicates([*greys.values(), *old] if new else [])
    patients = table.drop_duplicates("image").set_index("image").patient
    for a, b, _, correlation in pairs[pairs.image_a < len(new)].itertuples(index=False):
        if b >= len(new):
            there = collection.image.iloc[b - len(new)]
            find(new[a], "copy", f"it is {there} ({correlation:.2f}); leave it out")
        elif correlation < SAME_IMAGE and patients[new[a]] == patients[new[b]] != "":
            find(new[b], "like a copy", f"see that it is another slice than {new[a]}", "warn")
        else:
            find(new[b], "copy", f"it is {new[a]} ({correlation:.2f}); keep one of them")


def merge(collection_root, folder, metadata, report, only_accepted=False) -> dict[str, int]:
    """Add checked images to a local copy of the data set, in its train part, and lose nothing.

    The data set is copied to a new folder beside it, everything is added there, and the two
    change places by renaming: interrupted before that nothing has changed, and between the two
    renames the next call finishes. What is there already is not added again. Returns how many
    images were added: COVID, NonCOVID, and "there before". Take a copy: a download that finds
    more images than it knows would fetch its files again. ContributionError.
    """
    root, folder = Path(collection_root).resolve(), Path(folder)
    rows = report.table[report.table.accepted]
    if rows.empty or not (report.is_accepted or only_accepted):
        first = str(report).splitlines()[0]
        raise ContributionError(f"{first}; mend the others, or take these with only_accepted=True")
    new, old = (root.with_name(f".{root.name}.{end}") for end in ("merged", "before-merge"))
    try:
        data = _read_checked(folder, metadata, rows)
        with lock(root):
            if old.exists() and new.exists():  # a merge was stopped between its two renames
                os.rename(new, root)
            if not (root / "Data-split").is_dir():
                raise ContributionError(f"{root}: is no copy of the data set, without Data-split/")
            _remove(new, old)
            absent = {kind: _not_there(root, kind, rows, data) for kind in CLASSES.values()}
            if any(absent.values()):
                try:
                    shutil.copytree(root, new, symlinks=True)
                    _make_writable(new)
                    for kind, lines in absent.items():
                        _add(new, kind, lines, data)
                except Exception:
                    _remove(new)
                    raise
                os.rename(root, old)
                os.rename(new, root)
                _remove(old)
    except covid_ct.CovidCTError as error:
        raise ContributionError(str(error).replace(str(new), str(root))) from None
    except OSError as error:
        raise ContributionError(f"{root}: cannot be merged into ({error}); mend it") from None
    counts = {kind: len(lines) for kind, lines in absent.items()}
    return {**counts, "there before": len(rows) - sum(counts.values())}


def _read_checked(folder, metadata, rows):
    """The bytes of the accepted images, by name, if all is as it was when it was checked."""
    fields = ["image", "class", "patient", "caption"]
    now = read_metadata(metadata).drop_duplicates("image").set_index("image", drop=False)
    data = {name: (folder / name).read_bytes() for name in rows.image}
    same = (now.reindex(rows.image)[fields].to_numpy() == rows[fields].to_numpy()).all()
    hashes = [hashlib.sha256(content).hexdigest() for content in data.values()]
    if not same or hashes != [*rows.sha256]:
        raise ContributionError("images or metadata changed after the check; check them again")
    return data


def _remove(*folders):
    for folder in folders:
        if folder.exists():
            _make_writable(folder)
            shutil.rmtree(folder)


def _make_writable(folder):
    """What was copied from a read-only folder can be written to, and deleted."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (stat.S_IRWXU if path.is_dir() else stat.S_IWUSR))


def _not_there(root, kind, rows, data):
    """The rows of one class whose images its archive does not hold; it must be whole."""
    path = root / covid_ct.ARCHIVE.format(kind)
    rows = rows[rows["class"] == kind].to_dict("records")
    if not rows:
        return rows
    with covid_ct.open_archive(path) as (archive, members), covid_ct.reading(path):
        for row in rows:
            name = row["image"]
            if name in members and archive.read(members[name]) != data[name]:
                raise covid_ct.CovidCTError(f"{path}: holds another {name}; rename the new one")
        if bad := archive.testzip():
            raise ValueError(f"{bad} is damaged")
    return [row for row in rows if row["image"] not in members]


def _add(root, kind, rows, data):
    """Add images, metadata and names of one class to a copy of the data set."""
    if not rows:
        return
    path = root / covid_ct.ARCHIVE.format(kind)
    with zipfile.ZipFile(path, "a") as archive:
        for row in rows:
            info = zipfile.ZipInfo(f"{path.stem}/{row['image']}")
            info.external_attr = 0o644 << 16
            archive.writestr(info, data[row["image"]])
    path = root / covid_ct.METADATA[kind]
    with covid_ct.reading(path):
        (_add_to_sheet if path.suffix == ".xlsx" else _add_to_csv)(path, rows)
    path = root / covid_ct.SPLIT.format(kind, "train")
    with covid_ct.reading(path):
        text = path.read_bytes().decode("utf-8")
        end = "\r\n" if "\r\n" in text else "\n"
        text += end if text and not text.endswith("\n") else ""
        path.write_bytes((text + "".join(row["image"] + end for row in rows)).encode())


def _new_lines(lines, rows):
    """The lines for images that a table of metadata, its header first, does not list yet."""
    keys = [key_of(name) for name in lines[0]]
    place = keys.index("image")
    known = {stem_of(str(line[place])) for line in lines[1:] if len(line) > place}
    new = [row for row in rows if stem_of(row["image"]) not in known]
    return [[row.get(key, "") for key in keys] for row in new]


def _add_to_sheet(path, rows):
    import openpyxl

    book = openpyxl.load_workbook(path)
    sheet = next(sheet for sheet in book if "image" in [key_of(cell.value) for cell in sheet[1]])
    for line in _new_lines([*sheet.iter_rows(values_only=True)], rows):
        sheet.append([cell or None for cell in line])
        for cell in sheet[sheet.max_row]:
            if cell.value:  # as text: a caption that begins with "=" must not become a formula
                cell.data_type = "s"
    book.save(path)


def _add_to_csv(path, rows):
    text = path.read_bytes().decode("utf-8")
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    header += [name for name in ("DOI", "Captions") if name not in header]
    for line in _new_lines([header, *lines], rows):
        # the column without a name counts the lines
        lines.append(
            [cell if key else str(len(lines)) for key, cell in zip(header, line, strict=True)]
        )
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n" if "\r\n" in text else "\n")
        writer.writerows([line + [""] * (len(header) - len(line)) for line in (header, *lines)])
