"""COVID-CT: 746 two-dimensional CT images taken from papers, 349 with COVID-19 and 397 without.

Zhao et al. 2020, arXiv 2003.13865. The images belong to the papers' publishers: publish none.
Here COVID is always the positive class, label 1; the authors' own code counts the other way.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from helpers.storage import downloads
from helpers.storage.archives import list_members
from helpers.storage.files import is_system_file, lock
from helpers.storage.progress import progress

CREDIT = "Zhao et al. 2020, arXiv 2003.13865; copyright of the papers' authors and publishers"
# the authors' repository, and a copy of it for when it is off-line; asked in this order
BASE_URLS = (
    "https://raw.githubusercontent.com/UCSD-AI4H/COVID-CT/master",
    "https://raw.githubusercontent.com/desaisrkr/https-github.com-UCSD-AI4H-COVID-CT/master",
)
LABELS = {"COVID": 1, "NonCOVID": 0}
PARTS = {"train": "train", "val": "validation", "test": "test"}
# how many images each file of the data set holds or names
FILES = {
    "Images-processed/CT_COVID.zip": 349,
    "Images-processed/CT_NonCOVID.zip": 397,
    "Data-split/COVID/trainCT_COVID.txt": 191,
    "Data-split/COVID/valCT_COVID.txt": 60,
    "Data-split/COVID/testCT_COVID.txt": 98,
    "Data-split/NonCOVID/trainCT_NonCOVID.txt": 234,
    "Data-split/NonCOVID/valCT_NonCOVID.txt": 58,
    "Data-split/NonCOVID/testCT_NonCOVID.txt": 105,
    "COVID-CT-MetaInfo.xlsx": 349,
    "NonCOVID-CT-MetaInfo.csv": 397,
}
ARCHIVE = "Images-processed/CT_{}.zip"
SPLIT = "Data-split/{0}/{1}CT_{0}.txt"
METADATA = {"COVID": "COVID-CT-MetaInfo.xlsx", "NonCOVID": "NonCOVID-CT-MetaInfo.csv"}
# columns of the metadata: those of "patient" and DETAILS follow that of the file name
COLUMNS = ["File name", "Patient ID", "DOI", "Age", "Gender", "Location", "Severity", "Captions"]
COLUMNS_NEGATIVE = ["image name", "patient id"]
DETAILS = ["paper", "age", "gender", "location", "severity", "caption"]
HEADER = ["format", "mode", "width", "height"]
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAX_BYTES = 100_000_000
AGAIN = "delete it and download it again"


class CovidCTError(ValueError):
    """The data set is not as it should be; one line: the file, what is wrong, what to do."""


@dataclass
class Report:
    """How the images in a folder compare with the known ones; `print` it for one line.

    images: one row an image: kind ("COVID" or "NonCOVID"), image (file name) and status: "match",
    "mismatch" (other bytes), "missing", or "additional" (not among the known ones).
    """

    root: Path
    images: pd.DataFrame

    def names(self, status: str) -> list[str]:
        """The images with this status."""
        return self.images.image[self.images.status == status].tolist()

    def __str__(self):
        n_known = len(self.images) - len(self.names("additional"))
        parts = [f"{len(self.names('match'))} of {n_known} images are the known ones, bit for bit"]
        said = {"mismatch": "with other bytes", "missing": "missing", "additional": "additional"}
        for status, text in said.items():
            if names := self.names(status):
                few = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
                parts.append(f"{len(names)} {text} ({few})")
        return f"{self.root}: {'; '.join(parts)}"


def download(root: str | os.PathLike, base_urls: Sequence[str] = BASE_URLS) -> Path:
    """Bring COVID-CT (90 MB) into `root` in its own layout; returns the folder.

    base_urls: the sources. Each file is asked of them in turn; one that fails comes last from then
    on. There are no published checksums, so the content is checked: CRC and number of images,
    names in the splits, rows of the metadata; and after fetching, a warning names images that
    `verify` does not know. Nothing is fetched when all is there; a file that fails its check gets
    ".old" added to its name. DownloadError where no source gives a sound file.
    """
    root, sources = Path(root), list(base_urls)
    # a complete folder is not written to: in a workshop it may be shared and read-only
    if not any(_fault(root / file, n_images) for file, n_images in FILES.items()):
        return root
    try:
        with lock(root / "covid-ct"):
            for file, n_images in FILES.items():
                if _fault(root / file, n_images):
                    _fetch(sources, root, file, n_images)
    except OSError as error:
        text = f"{root}: cannot be written ({error}); choose another folder"
        raise downloads.DownloadError(text) from None
    report = verify(root)
    if not report.images.status.eq("match").all():
        warnings.warn(str(report), stacklevel=2)
    return root


def _fetch(sources, root, file, n_images):
    """Bring a file from the first source that gives a sound one; those that fail go to the end."""
    path, reasons = root / file, []
    if path.exists():
        os.replace(path, f"{path}.old")
    for source in list(sources):
        url = f"{source.rstrip('/')}/{file}"
        try:
            downloads.download(url, path)
            if not (fault := _fault(path, n_images)):
                return
            path.unlink()
            reason, remedy = fault.partition("; ")[0], f"place the file by hand: {path}"
            reasons.append(f"{url}: thrown away ({reason})")
        except downloads.DownloadError as error:
            if not str(error).startswith(url):  # the disk's fault, not the source's
                raise
            reason, _, remedy = str(error).partition("; ")
            reasons.append(reason)
        sources.append(sources.pop(0))
    raise downloads.DownloadError(f"{'; '.join(reasons)}; {remedy}")


def catalogue() -> pd.DataFrame:
    """The 746 known images: kind ("COVID" or "NonCOVID"), image (file name), sha1 (hex).

    The SHA-1 were computed from one copy of the set; its authors publish none.
    """
    path = Path(__file__).with_name("covid_ct_sha1.tsv")
    return pd.read_csv(path, sep="\t", names=["kind", "image", "sha1"])


def verify(root: str | os.PathLike) -> Report:
    """Compare every image in the two archives with `catalogue`, by class and name.

    The archives' own bytes prove nothing: whoever packs the same images anew gets another zip.
    Other images are counted, and no error: a mirror may have saved a picture anew, and a copy of
    yours may hold more. CovidCTError for a missing or damaged archive.
    """
    root, rows = Path(root), []
    for kind in LABELS:
        path = root / ARCHIVE.format(kind)
        with open_archive(path) as (archive, members):
            for image, info in members.items():
                with reading(path, info.filename):
                    found = hashlib.sha1(archive.read(info), usedforsecurity=False).hexdigest()
                rows.append({"kind": kind, "image": image, "found": found})
    found = pd.DataFrame(rows, columns=["kind", "image", "found"])
    images = catalogue().merge(found, how="outer", on=["kind", "image"])
    is_any = [images.sha1 == images.found, images.found.isna(), images.sha1.isna()]
    images["status"] = np.select(is_any, ["match", "missing", "additional"], "mismatch")
    return Report(root, images[["kind", "image", "status"]])


def _fault(path, n_images):
    """What is wrong with one file of the data set, or None."""
    try:
        if path.suffix == ".zip":
            with open_archive(path) as (archive, members), reading(path):
                found = sum(len(archive.read(info)) > 0 for info in members.values())
        elif path.suffix == ".txt":
            with open_archive(path.parents[2] / ARCHIVE.format(path.parent.name)) as (_, members):
                found = len(set(_read_split(path, members)))
        else:
            found = len(_read_metadata(path))
    except CovidCTError as error:
        return str(error)
    if found != n_images:
        return f"{path}: holds {found} images instead of {n_images}; {AGAIN}"


def read_collection(root: str | os.PathLike) -> pd.DataFrame:
    """One row an image of the six split files; reads the images' headers only, writes nothing.

    Columns: image (file name), label (1 = COVID), part ("train", "validation", "test"), patient
    (unique over both classes), paper (DOI, see `normalise_doi`), age (years, NaN where it is no
    number), gender, location, severity, caption ("" where missing), member (name in the zip),
    archive (the zip, below root), extension, format (what the bytes are), mode (Pillow's), width,
    height (pixels), n_bytes. `attrs["not_in_a_split"]`: images in no split file. CovidCTError.
    """
    root, rows, n_images = Path(root), [], 0
    for name, label in LABELS.items():
        known, file = _read_metadata(root / METADATA[name]), ARCHIVE.format(name)
        with open_archive(root / file) as (archive, members):
            n_images += len(members)
            for short, part in PARTS.items():
                split = root / SPLIT.format(name, short)
                for image in _read_split(split, members):
                    row = {"split": split, "image": image, "label": label, "part": part}
                    row |= _describe(image, name, known)
                    row |= {"member": members[image].filename, "archive": file}
                    row["extension"] = os.path.splitext(image)[1].lower()
                    with _opened_image(archive, members[image]) as header:
                        row |= {key: getattr(header, key) for key in HEADER}
                    rows.append(row | {"n_bytes": members[image].file_size})
    table = pd.DataFrame(rows)
    for twice in table.image[table.image.duplicated()]:
        splits = table.split[table.image == twice]
        _refuse(splits.iloc[1], f"names {twice}, as {splits.iloc[0].name} does", "keep one of them")
    table["age"] = pd.to_numeric(table["age"], errors="coerce").astype(float)
    table.attrs["not_in_a_split"] = n_images - len(table)
    return table.drop(columns="split")


def read_images(root: str | os.PathLike, table: pd.DataFrame, size=None):
    """Grey images in the order of `table` (from `read_collection`), each decoded once.

    size: None for a list of uint8 arrays (H, W) as they are, or (h, w) for one uint8 array
    (N, h, w) in which each image is letterboxed. All colour modes become one (see `to_grey`), so
    that the mode no longer gives the class away. The CRC of each image is checked. CovidCTError.
    """
    images = [None] * len(table)
    for file, places in table.groupby("archive", sort=False).indices.items():
        with open_archive(Path(root) / file) as (archive, members):
            for place in progress(places, desc=Path(file).name, unit="image"):
                name = table["image"].iloc[place]
                if name not in members:
                    _refuse(Path(root) / file, f"holds no {name}", "read the collection again")
                with _opened_image(archive, members[name], whole=True) as image:
                    grey = to_grey(image)
                    images[place] = grey if size is None else letterbox(grey, size)
    return images if size is None else np.array(images, np.uint8).reshape(len(images), *size)


def to_grey(image) -> np.ndarray:
    """Turn a Pillow image of any mode into uint8 (H, W).

    Transparent pixels are laid over white, the page of a figure. In COVID-CT it makes no
    difference: all 174 RGBA files have alpha 255 everywhere. Colours become luma (ITU-R 601).
    16-bit grey may hold 12 bits, or HU with an offset: its own darkest pixel becomes 0, its
    brightest 255. ValueError for pixels whose range is not known: float, 32 bits, 16-bit colours.
    """
    # older versions of Pillow read a 16-bit PNG as mode I
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        pixels = np.asarray(image).astype(float)
        pixels -= pixels.min()
        return np.rint(pixels * (255 / max(pixels.max(), 1))).astype(np.uint8)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no known range, use 8 or 16 bits")
    # Pillow drops the lower bytes, and may leave nearly nothing of 12 bits
    if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise ValueError("colours of 16 bits have no known range, use grey or 8 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L"))


def letterbox(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fit uint8 (H, W) into `size` (h, w): aspect kept, centred, black (0) around it.

    Pillow's bilinear filter, whose width grows with the reduction, so that nothing aliases.
    """
    return np.asarray(ImageOps.pad(Image.fromarray(image), size[::-1], Image.BILINEAR, color=0))


def normalise_doi(text: str) -> str:
    """The bare DOI in lower case, without blanks, address, "doi:" and full stop; "" for none.

    "2020.mm.dd.xxxx" at the start is bioRxiv or medRxiv and means 10.1101/2020.mm.dd.xxxx.
    """
    text = re.sub(r"^(20\d\d\.\d\d\.\d\d\.\d+).*", r"10.1101/\1", "".join(text.lower().split()))
    found = re.search(r"10\.\d{4,9}/[^?#]+", text)
    return re.sub(r"(?<=\d)v\d+(\.full.*)?$", "", found[0].rstrip(".,;/")) if found else ""


def patient_id(written: str, kind: str, image: str) -> str:
    """A patient's name that is unique over both classes: "Patient 12" of COVID is "covid-12".

    kind: "COVID" or "NonCOVID". Without an id an image is a patient of its own.
    """
    number = re.sub(r"(?i)^patient\s*", "", written.strip()).replace(" ", "_")
    return f"{kind.lower()}-{number or f'image-{image}'}"


def _refuse(path, problem, remedy):
    raise CovidCTError(f"{path}: {problem}; {remedy}") from None


@contextlib.contextmanager
def reading(path, member=""):
    """Whatever a missing or damaged file makes a reader raise becomes one line: CovidCTError."""
    try:
        yield
    except CovidCTError:
        raise
    except FileNotFoundError:
        _refuse(path, "is missing", "download the data set again")
    except Exception as error:  # readers of damaged files raise nearly everything
        reason = " ".join(str(error).split()).split(" <")[0] or "cut off"
        _refuse(path, f"{member} cannot be read ({reason})".strip(), AGAIN)


@contextlib.contextmanager
def open_archive(path):
    """An archive of a class, open, and its images by base name. CovidCTError."""
    with reading(path):
        archive = zipfile.ZipFile(path)
    with archive:
        images = {}
        with reading(path):
            for info in list_members(archive):
                name = info.filename.rsplit("/", 1)[-1]
                if name.lower().endswith(ENDINGS) and not is_system_file(name):
                    if name in images:
                        raise ValueError(f"its member {info.filename!r} is there twice")
                    if info.file_size > MAX_BYTES:
                        raise ValueError(f"its member {info.filename!r} is too large")
                    images[name] = info
        yield archive, images


@contextlib.contextmanager
def _opened_image(archive, info, whole=False):
    """An image of an archive; whole: unpack it first, which checks its CRC."""
    with reading(archive.filename, info.filename), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        stream = io.BytesIO(archive.read(info)) if whole else archive.open(info)
        with stream, Image.open(stream, formats=FORMATS) as image:
            yield image


def _read_split(path, members):
    """The image names in a split file; each must be in the archive of its class."""
    with reading(path):
        names = path.read_text(encoding="utf-8-sig").splitlines()
    names = [name.strip() for name in names if name.strip()]
    if absent := [name for name in names if name not in members]:
        _refuse(path, f"names {absent[0][:80]!r}, of which there is no image", AGAIN)
    return names if names else _refuse(path, "names no image", AGAIN)


def _read_metadata(path):
    """Metadata by file name: {"patient": text, "paper": text, ...}; rows without name dropped."""
    columns = COLUMNS if (is_excel := path.suffix == ".xlsx") else COLUMNS_NEGATIVE
    options = {"sheet_name": "positive_captions"} if is_excel else {}
    read = pd.read_excel if is_excel else pd.read_csv
    with reading(path):
        table = read(path, usecols=columns, dtype=str, **options)[columns].fillna("")
        table = table.apply(lambda column: column.str.split().str.join(" "))
        table.columns = ["image", "patient", *DETAILS][: len(columns)]
        table = table[table.image != ""].set_index("image")
        for twice in table.index[table.index.duplicated()]:
            raise ValueError(f"two rows for {twice}")
    return table.to_dict("index")


def _describe(image, name, known):
    """Patient, paper and what else the metadata say; file names there may lack the ending."""
    row = dict.fromkeys(["patient", *DETAILS], "")
    row |= known.get(image) or known.get(os.path.splitext(image)[0]) or {}
    row["patient"] = patient_id(row["patient"], name, image)
    row["paper"] = normalise_doi(row["paper"]) or (normalise_doi(image) if LABELS[name] else "")
    row["gender"] = row["gender"].upper()
    # most captions are written as a list of one: ['the text']
    row["caption"] = re.sub(r"""^\[['"] ?(.*?) ?['"]\]$""", r"\1", row["caption"])
    return row
