"""MosMedData (COVID19_1110 v1.0): 1110 chest CT studies of 1110 patients, by degree of COVID-19.

Morozov et al. 2020, "MosMedData: Chest CT Scans With COVID-19 Related Findings Dataset",
doi 10.1101/2020.05.20.20100362. Licence CC BY-NC-ND 3.0: copy it with credit, not for money, and
publish nothing derived from it, neither resampled volumes nor slices nor GIFs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.storage import downloads
from helpers.storage.archives import ArchiveError, unpack_zip
from helpers.storage.downloads import DownloadError
from helpers.storage.files import file_size, lock, write_whole

CREDIT = "Morozov et al. 2020, doi 10.1101/2020.05.20.20100362, CC BY-NC-ND 3.0"
CATEGORIES = {"CT-0": 254, "CT-1": 684, "CT-2": 125, "CT-3": 45, "CT-4": 2}
FIRST_MASK, LAST_MASK = 255, 304
BASE_URL = "https://github.com/hasibzunair/3D-image-classification-tutorial/releases/download/v0.2"
RELEASE = {"CT-0.zip": 1_065_471_431, "CT-23.zip": 1_045_162_547, "CT-1.zip": 1_050_898_487}
SETS = {"subset": ["CT-0.zip", "CT-23.zip"], "subset+CT-1": list(RELEASE), "full": []}
FULL_SOURCES = (
    "mosmed.ai/datasets/covid19_1110 (registration) or "
    "kaggle.com/datasets/mathurinache/mosmeddata-chest-ct-scans-with-covid19"
)
EXTRAS = ("dataset_registry.xlsx", "LICENSE", "README_EN.md")
MARKER = ".unpacked.json"


@dataclass
class Report:
    """What a folder holds; `print` it for a summary.

    studies: the catalogue with a column `status`: "missing" or "present", and after `verify`
    "match", "mismatch" or, of a .nii, "unpacked" instead of "present".
    """

    root: Path
    studies: pd.DataFrame

    def count(self, status: str) -> int:
        """Number of studies with this status."""
        return int((self.studies["status"] == status).sum())

    def __str__(self):
        there = self.studies[self.studies["status"] != "missing"]
        counts = there["category"].value_counts().sort_index()
        parts = ", ".join(f"{category} {n}" for category, n in counts.items()) or "none"
        lines = [f"{self.root}: {len(there)} of {len(self.studies)} studies ({parts})"]
        match, mismatch = map(self.count, ("match", "mismatch"))
        if match + mismatch:
            lines.append(f"gzip CRC-32: {match + mismatch} good")
            lines.append(f"git blob SHA-1: {match} as in two full mirrors, {mismatch} different")
        if unpacked := self.count("unpacked"):
            lines.append(f"not packed (.nii), so nothing to compare them with: {unpacked}")
        if mismatch:
            lines.append(f"warning: not byte for byte those of the mirrors: {mismatch}")
        return "\n".join([*lines, f"Source: {CREDIT}"])


def catalogue() -> pd.DataFrame:
    """All 1110 studies: study, category, file (below the root), git_blob_sha1, mask (bool).

    The SHA-1 are those on which two independent full mirrors agree; the publisher gives none.
    """
    path = Path(__file__).with_name("mosmed_git_blob_sha1.tsv")
    table = pd.read_csv(path, sep="\t", names=["name", "git_blob_sha1"])
    study = table["name"].str.removesuffix(".nii.gz")
    category = [name for name, n in CATEGORIES.items() for _ in range(n)]
    return pd.DataFrame(
        {
            "study": study,
            "category": category,
            "file": "studies/" + pd.Series(category) + "/" + table["name"],
            "git_blob_sha1": table["git_blob_sha1"],
            "mask": study.str[-4:].astype(int).between(FIRST_MASK, LAST_MASK),
        }
    )


def download(root: str | os.PathLike, which: str = "subset", base_url: str = BASE_URL) -> Report:
    """Bring MosMedData into `root` in its own layout, `studies/CT-*/study_*.nii.gz`.

    which: "subset" (a release of 100 CT-0 and 100 CT-2 or CT-3 studies, 2.1 GB), "subset+CT-1"
    (3.2 GB) or "full": the whole set needs a registration, so its archives (any name, .zip) or
    its folders must lie in `root`; archives are unpacked and stay. A study may be a .nii, as in
    Kaggle's copy. Nothing is fetched when the set is there. Raises ValueError for another `which`,
    DownloadError and ArchiveError with one line that says what to do.
    """
    if which not in SETS:
        raise ValueError(f"which={which!r} is not known; choose one of {', '.join(SETS)}")
    root = Path(root).expanduser()
    try:
        # a complete folder is not written to: in a workshop it may be shared and read-only
        if _list_todo(root, which):
            with lock(root / "mosmed"):
                _bring(root, which, base_url)
    except OSError as error:
        raise DownloadError(f"{root}: cannot be written ({error}); choose another folder") from None
    report = Report(root, _list_studies(root))
    if which == "full" and report.count("missing"):
        raise DownloadError(
            f"{root}: {report.count('missing')} of {len(report.studies)} studies are missing; get "
            f"the full set from {FULL_SOURCES} and put its zip at {root / 'MosMedData.zip'}, or "
            f"its folders so that {root / report.studies['file'][0]} is there"
        )
    return report


def verify(root: str | os.PathLike) -> Report:
    """Read every study in `root` to its end: gzip CRC-32 and git blob SHA-1.

    A study whose bytes differ from the catalogue's is counted ("mismatch"): a mirror may have
    compressed it anew. ArchiveError if one is damaged.
    """
    from helpers.storage.progress import progress

    root = Path(root).expanduser()
    table = _list_studies(root)
    there = table[table["status"] == "present"]
    paths = [root / file for file in there["file"]]
    with ThreadPoolExecutor() as pool:
        checks = pool.map(check_study, paths, there["git_blob_sha1"])
        table.loc[there.index, "status"] = list(progress(checks, total=len(paths), desc="verify"))
    damaged = table.loc[table["status"] == "damaged", "file"].tolist()
    if damaged:
        names = ", ".join(damaged[:3]) + ", ..." * (len(damaged) > 3)
        raise ArchiveError(
            f"{root}: {len(damaged)} damaged ({names}); delete them and run the download again"
        )
    return Report(root, table)


def check_study(path: str | os.PathLike, git_blob_sha1: str) -> str:
    """Say of one .nii.gz file whether it is a "match", a "mismatch" or "damaged" (gzip CRC-32).

    A .nii is "unpacked": it has no checksum.
    """
    if Path(path).suffix != ".gz":
        return "unpacked"
    data = Path(path).read_bytes()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            n_bytes = sum(map(len, iter(lambda: stream.read(1 << 20), b"")))
    except (OSError, EOFError, zlib.error):
        return "damaged"
    if not n_bytes:
        return "damaged"
    return "match" if hash_git_blob(data) == git_blob_sha1 else "mismatch"


def hash_git_blob(data: bytes) -> str:
    """SHA-1 (hex) that `git hash-object` gives for a file with these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _list_studies(root):
    """The catalogue with a column `status`, "present" or "missing"; `file` is the one there is."""
    table = catalogue()
    files = [file if file_size(root / file) else file.removesuffix(".gz") for file in table["file"]]
    is_there = [file_size(root / file) > 0 for file in files]
    table["file"] = table["file"].where(~np.array(is_there), files)
    return table.assign(status=np.where(is_there, "present", "missing"))


def _read_marker(root):
    """{archive: {file: bytes}} of the release archives that were unpacked here."""
    try:
        return json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _studies_of(table, name):
    """The rows of the catalogue that a release archive is about: CT-23.zip is CT-2 and CT-3."""
    return table[table["category"].isin([f"CT-{digit}" for digit in name[3:-4]])]


def _is_complete(root, name):
    if files := _read_marker(root).get(name):
        return all(file_size(root / file) == size for file, size in files.items())
    return _studies_of(_list_studies(root), name)["status"].eq("present").all()


def _list_todo(root, which):
    """The archives that are still to be unpacked."""
    if which != "full":
        return [name for name in SETS[which] if not _is_complete(root, name)]
    is_there = _list_studies(root)["status"].eq("present").all()
    return [] if is_there else sorted(path.name for path in root.glob("[!.]*.zip"))


def _bring(root, which, base_url):
    """Fetch, but for "full", and unpack."""
    names = _list_todo(root, which)
    if which == "full":
        for name in names:
            _unpack(root / name, root)
        return
    _check_space(root, names)
    for name in names:
        url = f"{base_url.rstrip('/')}/{name}"
        archive = downloads.download(url, root / name, size=RELEASE[name])
        _unpack(archive, root)
        archive.unlink()


def _check_space(root, names):
    sizes = [RELEASE[name] for name in names]
    files = [file for name in names for file in _studies_of(catalogue(), name)["file"]]
    unpacked = min(sum(file_size(root / file) for file in files), sum(sizes))
    fetched = sum(file_size(root / f"{name}{end}") for name in names for end in ("", ".part"))
    downloads.check_space(root, sum(sizes) + max(sizes, default=0) - unpacked - fetched)


def _unpack(archive, root):
    """Put the archive's studies where MosMedData has them; other files stay in it."""
    table = catalogue()
    names = [*table["file"], *("masks/" + table.loc[table["mask"], "study"] + "_mask.nii.gz")]
    targets = {name.rsplit("/", 1)[-1]: name for name in [*names, *EXTRAS]}
    # unpacked studies too
    targets |= {key[:-3]: name[:-3] for key, name in targets.items() if name.endswith(".gz")}
    # each only once: an archive may hold a second copy in another folder
    unpacked = unpack_zip(archive, root, lambda name: targets.pop(name.rsplit("/", 1)[-1], None))
    sizes = {path.relative_to(root).as_posix(): file_size(path) for path in unpacked}
    if archive.name in RELEASE and not any(file.startswith("studies/") for file in sizes):
        raise ArchiveError(f"{archive}: holds no study of MosMedData; delete it and get it again")
    text = json.dumps(_read_marker(root) | {archive.name: sizes}, indent=1)
    write_whole(root / MARKER, lambda file: file.write(text.encode()))
