"""Add checked images to a local copy of COVID-CT, so that nothing there is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

from helpers.contributions import (
    CLASSES,
    ContributionError,
    key_of,
    read_metadata,
    sha256_of,
    stem_of,
)
from helpers.downloads import lock
from helpers.files import write_whole


def merge(collection_root, folder, metadata, report, only_accepted=False) -> dict[str, int]:
    """Add checked images to a local copy of the data set, in its train part, and lose nothing.

    All new files are written beside the old ones first and named in a journal, then put in their
    place: interrupted before the journal nothing has changed, after it the next call finishes.
    The images go first and the list that names them last. What is there already is not added
    again. Returns how many images were added: COVID, NonCOVID, and "there before". Take a copy:
    a download that finds more images than it knows would fetch its files again. ContributionError.
    """
    root, folder = Path(collection_root), Path(folder)
    rows = report.table[report.table.accepted]
    if rows.empty or not (report.is_accepted or only_accepted):
        first = str(report).splitlines()[0]
        raise ContributionError(f"{first}; mend the others, or take these with only_accepted=True")
    fields = ["image", "class", "patient", "caption"]
    now = read_metadata(metadata).drop_duplicates("image").set_index("image", drop=False)
    try:
        data = {name: (folder / name).read_bytes() for name in rows.image}
        same = (now.reindex(rows.image)[fields].to_numpy() == rows[fields].to_numpy()).all()
        if not same or [sha256_of(folder / name) for name in data] != [*rows.sha256]:
            raise ContributionError("images or metadata changed after the check; check them again")
        if not (root / "Data-split").is_dir():
            raise ContributionError(f"{root}: is no copy of the data set; it has no Data-split/")
        with lock(root / "merge"):
            _finish(root)
            try:
                return _merge(root, rows, data)
            finally:
                if not (root / ".merge/ready.json").exists():
                    shutil.rmtree(root / ".merge", ignore_errors=True)
    except OSError as error:
        raise ContributionError(f"{root}: cannot be merged into ({error}); mend it") from None


def _merge(root, rows, data):
    counts, journal = {}, []
    for kind in CLASSES.values():
        chosen, counts[kind] = rows[rows["class"] == kind].to_dict("records"), 0
        metadata = "COVID-CT-MetaInfo.xlsx" if kind == "COVID" else "NonCOVID-CT-MetaInfo.csv"
        train = f"Data-split/{kind}/trainCT_{kind}.txt"
        targets = (f"Images-processed/CT_{kind}.zip", metadata, train) if chosen else ()
        for rank, target in enumerate(targets):
            staged = root / ".merge" / Path(target).name
            staged.parent.mkdir(exist_ok=True)
            shutil.copyfile(root / target, staged)
            before = sha256_of(staged)
            try:
                n_new = ADDERS[staged.suffix](staged, chosen, data)
            except ContributionError:
                raise
            except Exception as error:  # what the readers raise for damage has no common kind
                reason = f"{type(error).__name__} {error}".split("\n")[0]
                raise ContributionError(f"{target}: is damaged ({reason}); get it again") from None
            counts[kind] += n_new if rank == 0 else 0
            if n_new:
                journal.append([rank, staged.name, target, before])
    if journal:
        lines = json.dumps(sorted(journal)).encode()
        write_whole(root / ".merge/ready.json", lambda file: file.write(lines))
    _finish(root)
    return {**counts, "there before": len(rows) - sum(counts.values())}


def _finish(root):
    """Put in place what a merge has made ready; throw away what it has not."""
    staging = root / ".merge"
    if (staging / "ready.json").is_file():
        for _, name, target, before in json.loads((staging / "ready.json").read_bytes()):
            if (staging / name).is_file():
                if sha256_of(root / target) != before:
                    raise ContributionError(
                        f"{target}: changed since a merge began; delete {staging}"
                    )
                os.replace(staging / name, root / target)
    shutil.rmtree(staging, ignore_errors=True)


def _add_images(path, rows, data):
    # opened for reading first: to append to a damaged archive would begin a new one
    with zipfile.ZipFile(path) as archive:
        present = {info.filename.rsplit("/", 1)[-1]: info for info in archive.infolist()}
        new = [row["image"] for row in rows if row["image"] not in present]
        for name in {row["image"] for row in rows} - set(new):
            if archive.read(present[name]) != data[name]:
                raise ContributionError(f"{path.name}: holds another {name}; rename the new one")
        if bad := archive.testzip():
            raise ContributionError(f"{path.name}: {bad} is damaged; get the archive again")
    with zipfile.ZipFile(path, "a") as archive:
        for name in new:
            info = zipfile.ZipInfo(f"{path.stem}/{name}")
            info.external_attr = 0o644 << 16
            archive.writestr(info, data[name])
    return len(new)


def _add_rows(path, rows, data):
    import openpyxl

    book = openpyxl.load_workbook(path)
    sheet = next(sheet for sheet in book if "image" in [key_of(cell.value) for cell in sheet[1]])
    header = [key_of(cell.value) for cell in sheet[1]]
    column = header.index("image") + 1
    known = {stem_of(str(sheet.cell(line, column).value)) for line in range(2, sheet.max_row + 1)}
    new = [row for row in rows if stem_of(row["image"]) not in known]
    for line, row in enumerate(new, start=sheet.max_row + 1):
        for place, name in enumerate(header, start=1):
            if row.get(name):
                # as text: a caption that begins with "=" must not become a formula
                sheet.cell(line, place, row[name]).data_type = "s"
    book.save(path)
    return len(new)


def _add_lines(path, rows, data):
    text = path.read_bytes().decode("utf-8")
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    header += [name for name in ("DOI", "Captions") if name not in header]
    names = [key_of(name) for name in header]
    place = names.index("image")
    known = {stem_of(line[place]) for line in lines if len(line) > place}
    new = [row for row in rows if stem_of(row["image"]) not in known]
    for row in new:
        lines.append([row.get(name, "") if name else str(len(lines)) for name in names])
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n" if "\r\n" in text else "\n")
        writer.writerows([line + [""] * (len(header) - len(line)) for line in (header, *lines)])
    return len(new)


def _add_names(path, rows, data):
    text = path.read_bytes().decode("utf-8")
    end = "\r\n" if "\r\n" in text else "\n"
    new = [row["image"] for row in rows if row["image"] not in text.splitlines()]
    text += end if text and not text.endswith("\n") else ""
    path.write_bytes((text + "".join(name + end for name in new)).encode())
    return len(new)


ADDERS = {".zip": _add_images, ".xlsx": _add_rows, ".csv": _add_lines, ".txt": _add_names}
