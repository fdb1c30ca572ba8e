"""DICOM series, and the volumes of research tools (.mha, .mhd, .nrrd), as stored volumes.

pydicom reads the headers, SimpleITK the voxels; who has only NIfTI files needs neither. Of a
header only TAGS are read: nobody's name, number or date. Format: DICOM PS3.3, C.7.6.2 (where a
slice lies), C.8.15.3 (several slices in one file); PS3.5, 7.1 (an element); PS3.10, 7.1 (a file).
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import tempfile
import warnings
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from helpers.ct import nifti
from helpers.ct.nifti import MIN_SLICES, Stored, UnreadableStudy, one_line
from helpers.storage.archives import ArchiveError, unpack_zip
from helpers.storage.downloads import DownloadError
from helpers.storage.files import is_system_file

INSTALL = "pip install pydicom SimpleITK"
VOLUMES = (".mha", ".mhd", ".nrrd", ".nhdr")
TAGS = ["StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns"]
PLACE = {"PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}
TAGS += [*PLACE, "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "SOPClassUID"]
TAGS += ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
INDEX = "1.2.840.10008.1.3.10"  # the kind of file that DICOMDIR is
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"  # the kind that a slice is, or of which it is one
DIGITS = ".0123456789"
LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")  # types of element whose length has four bytes
IN_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM and ITK count to the left and to the back
MOST_TILTED = 1.0  # degrees between the stack of slices and their normal
MOST_UNEVEN = 0.2  # of a step, from where a slice lies to where it should
GREY = (1, "MONOCHROME2")  # a number for each pixel, and more is lighter
DAMAGED = ("has a damaged header", "export or copy it again")
WHOLE = "export the whole series again"


@dataclass(repr=False)
class Series:
    """One series of parallel slices of one size, in the order of their positions.

    files: one a slice, or one for all of them. frames: each slice's place in its file. study:
    DICOM's number for the examination, not to be shown. orientation: (2, 3), in which direction
    columns and rows are counted, (L, P, S). positions: (D, 3), mm, of each slice's first pixel.
    pixel: mm between rows and between columns. fault: why it cannot be read, or "".
    """

    files: list[Path]
    frames: list[int]
    description: str
    study: str
    matrix: tuple[int, int]
    orientation: np.ndarray
    positions: np.ndarray
    pixel: tuple[float, float]
    fault: str = ""

    @property
    def n_slices(self) -> int:
        """How many slices, also if some are there twice."""
        return len(self.frames)

    @property
    def normal(self) -> np.ndarray:
        """The direction across the slices, (L, P, S)."""
        return np.cross(*self.orientation)

    @property
    def is_axial(self) -> bool:
        """Whether the slices lie across the body, also with a tilted gantry."""
        return bool(np.argmax(np.abs(self.normal)) == 2)

    def __repr__(self):
        return f"'{self.description}' ({self.n_slices})"


def is_installed() -> bool:
    """Whether pydicom and SimpleITK are there."""
    try:
        return bool(_libraries(""))
    except UnreadableStudy:
        return False


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file begins like DICOM, whatever its name, with the preamble or without."""
    return _begins_like_dicom(_start(path))


def _start(path) -> bytes | None:
    """The first bytes of a file; None where it is none or cannot be opened."""
    with suppress(OSError):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read(1024)
    return None


def _begins_like_dicom(start) -> bool:
    """Whether DICOM's mark is there, or two elements of group 2 or 8 where no preamble is."""
    tags, at, start = [], 0, start or b""
    if start[128:132] == b"DICM":
        return True
    while len(tags) < 2 and at + 12 <= len(start):
        group, element, kind, short, long = struct.unpack_from("<HH2sHI", start, at)
        tags.append((group, element))
        if kind.isalpha() and kind.isupper():
            at += 12 + long if kind in LONG else 8 + short
        else:  # implicit: no type is written, and the length has its bytes, too
            at += 8 + int.from_bytes(start[at + 4 : at + 8], "little")
    return len(tags) == 2 and tags[0] < tags[1] and {group for group, _ in tags} <= {2, 8}


def dicom_files(place: str | os.PathLike) -> list[Path]:
    """The DICOM files below a folder; for one of them, those beside it.

    UnreadableStudy for a folder that cannot be opened, and for a file that cannot, or is empty, and
    ends as they do, numbers apart: it may be the last slice, which nobody would miss.
    """
    place, starts = Path(place), {}
    for path in sorted([place, *place.rglob("*")] if place.is_dir() else place.parent.glob("*")):
        try:
            if path.is_dir() and place.is_dir():
                os.scandir(path).close()
            elif not path.is_dir() and not is_system_file(path.name):
                starts[path] = _start(path)
        except OSError as error:
            reason = f"cannot be opened ({error.strerror})"
            raise UnreadableStudy(path, reason, "check its permissions") from None
    found = [file for file, start in starts.items() if _begins_like_dicom(start)]
    endings = {file.suffix.strip(DIGITS) for file in found}
    for file, start in starts.items():
        is_alike = file.suffix.strip(DIGITS) in endings
        if (is_alike and not (start and start.strip(b"\0"))) or (start is None and not found):
            reason = "cannot be opened" if start is None else "is empty"
            raise UnreadableStudy(file, reason, "copy it again, or delete it")
    return found


def list_series(place: str | os.PathLike) -> list[Series]:
    """The series of CT images below a folder or beside a file, by headers alone; largest first.

    What is no image (an index, a report, a dose sheet) is passed over. UnreadableStudy where a
    header is damaged, or pydicom is missing.
    """
    stats = [(file, file.stat()) for file in dicom_files(place)]
    return _list_series(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@lru_cache(maxsize=2)  # many studies in one folder are asked for one after the other
def _list_series(stamps) -> list[Series]:
    """The series of these files, each with its size and time."""
    groups = {}
    for file, *_ in stamps:
        header = _header(file, TAGS)
        with _reading(file):
            kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", "")
            is_ct = header.get("Modality") == "CT" and "Rows" in header
            is_slice = f"{kind}.".startswith(f"{CT_IMAGE}.")
            if not is_ct and (is_slice or ("Modality" not in header and kind != INDEX)):
                raise UnreadableStudy(file, *DAMAGED)
            for frame, image in enumerate(_images(header) if is_ct else []):
                orientation = image["ImageOrientationPatient"]
                key = str(header.get("SeriesInstanceUID")), int(header.Rows), int(header.Columns)
                key += tuple(np.round(orientation or [], 2))
                groups.setdefault(key, []).append((file, frame, header, image))
    series = [_series(slices) for slices in groups.values()]
    return sorted(series, key=lambda one: (-one.n_slices, one.description))


def patient_of(place: str | os.PathLike) -> str:
    """Whom a study belongs to: the PatientID of its first file, "" if there is none.

    Only to see which studies are of one patient: it is not to be printed or kept.
    """
    place = Path(place)
    if place.suffix.lower() == ".zip" and not place.is_dir():
        folder = _unpacked(place)
        try:
            return patient_of(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    files = [place] if place.is_file() else dicom_files(place)
    return str(_header(files[0], ["PatientID"]).get("PatientID") or "").strip() if files else ""


def open_volume(path: Path) -> Stored:
    """A folder or zip of DICOM slices, one slice of a series, or a .mha, .mhd or .nrrd.

    Of several series the axial one with most slices is taken, and a note names the others.
    UnreadableStudy if it cannot be read right: the message says why, with the series' description.
    """
    ending = "" if path.is_dir() else path.suffix.lower()
    if ending in VOLUMES:
        return _open_research_format(path)
    if ending != ".zip":
        return _open_series(path, path)
    folder = _unpacked(path)
    try:
        stored = _open_series(folder, path)
    except UnreadableStudy:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    read = partial(stored.read)  # the folder goes when nobody can read from it any more
    weakref.finalize(read, shutil.rmtree, folder, ignore_errors=True)
    return replace(stored, read=read)


def _unpacked(path) -> Path:
    """A new temporary folder with what is in a zip."""
    nifti.check_file(path)
    folder = Path(tempfile.mkdtemp(prefix="study-"))
    try:
        unpack_zip(path, folder)
    except (ArchiveError, DownloadError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UnreadableStudy(path, *str(error).removeprefix(f"{path}: ").split("; ", 1)) from None
    return folder


def _libraries(path):
    """pydicom and SimpleITK, quiet; UnreadableStudy where one is missing."""
    try:
        import pydicom
        import SimpleITK
    except ImportError as error:
        reason = f"needs {error.name}, which is not installed"
        raise UnreadableStudy(path, reason, INSTALL) from None
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # it would print what it reads
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return pydicom, SimpleITK


@contextmanager
def _reading(file):
    """A damaged header makes pydicom raise nearly everything, and quote it; here it is DAMAGED."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnreadableStudy:
        raise
    except Exception:
        raise UnreadableStudy(file, *DAMAGED) from None


def _header(file, tags):
    """The header of a file with these tags alone; UnreadableStudy."""
    pydicom, _ = _libraries(file)
    with _reading(file):  # force: also without the preamble
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
        header.decode()
        return header


def _images(header) -> list[dict]:
    """Of each image of a file PLACE, as tuples of numbers, () for what is not said, and its scale.

    It stands in the header itself, or in its groups by frame.
    """
    images = [header] * int(header.get("NumberOfFrames") or 1)
    if "PerFrameFunctionalGroupsSequence" in header:
        shared, images = header.get("SharedFunctionalGroupsSequence") or [{}], []
        for group in header.PerFrameFunctionalGroupsSequence:
            image = {}
            for item in (shared[0], group):
                for element in item:
                    if element.VR == "SQ" and element.value:
                        image |= {inner.keyword: inner.value for inner in element.value[0]}
            images.append(image)
    found = []
    for image in images:
        place = {tag: tuple(map(float, image.get(tag) or ())) for tag in PLACE}
        if any(len(place[tag]) not in (0, n) for tag, n in PLACE.items()):
            raise ValueError("too few numbers")
        scale = str((image.get("RescaleSlope"), image.get("RescaleIntercept")))
        found.append(place | {"scale": scale})
    return found


def _series(slices) -> Series:
    """Slices of one series and size, sorted; `fault` says what forbids it from the start."""
    _, _, header, image = slices[0]
    orientation = np.reshape(image["ImageOrientationPatient"] or np.eye(2, 3), (2, 3))
    positions, fault = np.zeros((len(slices), 3)), ""
    if not all(image[tag] for *_, image in slices for tag in PLACE):
        fault = "does not say where its slices lie"
    elif not np.allclose(orientation @ orientation.T, np.eye(2), atol=0.01):
        fault = "has rows and columns that are not at right angles"
    elif (header.get("SamplesPerPixel", 1), header.get("PhotometricInterpretation")) != GREY:
        fault = "holds colours, or grey turned round"
    elif len({image["PixelSpacing"] for *_, image in slices}) > 1:
        fault = "has slices of different pixel spacings"
    elif len({image["scale"] for *_, image in slices}) > 1 and any(k for _, k, *_ in slices):
        fault = "scales its frames differently"
    else:
        positions = np.array([image["ImagePositionPatient"] for *_, image in slices])
        order = np.argsort(positions @ np.cross(*orientation), kind="stable")
        slices, positions = [slices[k] for k in order], positions[order]
    words = "".join(c for c in str(header.get("SeriesDescription") or "") if c.isprintable())
    return Series(
        [file for file, *_ in slices],
        [frame for _, frame, *_ in slices],
        " ".join(words.split())[:40] or "without a description",
        str(header.get("StudyInstanceUID")),
        (int(header.Rows), int(header.Columns)),
        orientation,
        positions,
        image["PixelSpacing"] or (1, 1),
        fault,
    )


def _choose(found, place, path) -> tuple[Series, list[str]]:
    """The axial series with most slices, and a note on the others; a file stands for its own."""
    if place.is_file():
        found = [series for series in found if place in series.files]
    axial = [series for series in found if series.is_axial and series.n_slices >= MIN_SLICES]
    if not axial:
        what = ", ".join(map(str, found[:4])) or "no CT image in DICOM files"
        reason = f"has no axial series of {MIN_SLICES} slices or more, but {what}"
        raise UnreadableStudy(path, reason if found else f"holds {what}", WHOLE)
    chosen, others = axial[0], [series for series in found if series is not axial[0]]
    if not others:
        return chosen, []
    several = len({series.study for series in axial}) > 1
    words = ", of another examination than some" * several
    note = f"of {len(found)} series, {chosen} is read{words}; left out: "
    return chosen, [note + ", ".join(map(str, others))]


def _open_series(place, path) -> Stored:
    """The chosen series below `place`, checked; `path` is what messages name."""
    series, notes = _choose(list_series(place), place, path)
    shown = f"{path}: series {series}"
    if series.fault:
        raise UnreadableStudy(shown, series.fault, "export the original CT series")
    along = series.positions @ series.normal
    is_again = np.r_[False, np.diff(along) < 0.01]
    if is_again.any():
        _check_copies(series, is_again, shown)
        notes.append(f"of {series}, slices there twice and taken once: {is_again.sum()}")
        along = along[~is_again]
    keep = np.flatnonzero(~is_again)
    positions = series.positions[keep]
    step = (positions[-1] - positions[0]) / max(1, len(keep) - 1)
    length = float(np.linalg.norm(step))
    _check_even(along, shown)
    if (tilt := np.degrees(np.arccos(min(1, step @ series.normal / length)))) > MOST_TILTED:
        reason = f"has slices shifted against one another, by {tilt:.0f}° (a tilted gantry)"
        raise UnreadableStudy(shown, reason, "export a series without tilt")
    columns, rows = series.orientation
    nifti.check_spacing(shown, (length, *series.pixel))
    turned = IN_RAS @ np.column_stack([step, rows * series.pixel[0], columns * series.pixel[1]])
    affine = np.eye(4)
    affine[:3] = np.column_stack([turned, IN_RAS @ positions[0]])
    slices = [(series.files[k], series.frames[k]) for k in keep]
    read = partial(_read_slices, slices, series.matrix, shown)
    return Stored((len(keep), *series.matrix), affine, read, series.description, "", shown, notes)


def _check_copies(series, is_again, shown):
    """UnreadableStudy unless slices in the same place hold the same bytes."""
    pydicom, _ = _libraries(shown)
    for k in np.flatnonzero(is_again):
        files = series.files[k - 1], series.files[k]
        with _reading(files[1]):
            first, second = (pydicom.dcmread(file, force=True).get("PixelData") for file in files)
        if first != second or files[0] == files[1]:
            reason = f"has different images in the same place (slices: {is_again.sum()})"
            raise UnreadableStudy(shown, reason, "export each acquisition as a series of its own")


def _check_even(along, shown):
    """UnreadableStudy unless the slices lie one step after the other."""
    if len(along) < MIN_SLICES:
        raise UnreadableStudy(shown, f"has slices in too few places ({len(along)})", WHOLE)
    even = np.linspace(along[0], along[-1], len(along))
    steps = np.diff(along)
    usual = float(np.median(steps))
    if np.abs(along - even).max() <= MOST_UNEVEN * usual:
        return
    gaps = np.rint(steps[steps > 1.5 * usual] / usual) - 1
    reason = f"has slices {steps.min():.2f} to {steps.max():.2f} mm apart"
    if len(gaps):
        where = int(np.argmax(steps)) + 1
        reason = f"is incomplete, missing slices: {gaps.sum():.0f} (slice {where} lies "
        reason += f"{steps.max():.1f} mm before the next, others {usual:.1f} mm)"
    raise UnreadableStudy(shown, reason, WHOLE)


def _reader(file):
    """SimpleITK's reader of a file; UnreadableStudy for a name that would end the process."""
    _, sitk = _libraries(file)
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise UnreadableStudy(file, "has a name that is no UTF-8", "rename it") from None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    return reader


def _read_slices(slices, matrix, shown):
    """The voxels (D, H, W), each slice with its own rescale slope and intercept."""
    sitk, n_of_file = _libraries(shown)[1], Counter(file for file, _ in slices)

    def read(file):
        reader = _reader(file)
        reader.SetImageIO("GDCMImageIO")
        try:
            return sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError:  # its text is of many lines
            reason = f"has a slice that cannot be read ({file.name})"
            raise UnreadableStudy(shown, reason, "export or copy it again") from None

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        images = dict(zip(n_of_file, pool.map(read, n_of_file), strict=True))
    for file, image in images.items():
        if image.shape[1:] != matrix or len(image) < n_of_file[file]:
            reason = f"has a slice of {image.shape}, not {matrix} ({file.name})"
            raise UnreadableStudy(shown, reason, WHOLE)
    return np.stack([images[file][frame] for file, frame in slices])


def _open_research_format(path) -> Stored:
    """A .mha, .mhd, .nrrd or .nhdr by its header."""
    nifti.check_file(path)
    _, sitk = _libraries(path)
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = f"has a damaged header ({one_line(str(error).rsplit(':', 1)[-1])})"
        raise UnreadableStudy(path, reason, nifti.REDO) from None
    shape = reader.GetSize()[::-1]
    if len(shape) != 3 or reader.GetNumberOfComponents() != 1:
        raise UnreadableStudy(path, f"has the shape {shape}", "give one 3-D volume per file")
    steps = np.array(reader.GetSpacing())
    nifti.check_spacing(path, steps)
    direction = np.reshape(reader.GetDirection(), (3, 3))
    if not np.allclose(direction @ direction.T, np.eye(3), atol=0.01):
        raise UnreadableStudy(path, "has axes that are not at right angles", nifti.REDO)
    direction, affine = direction * steps, np.eye(4)
    affine[:3] = np.column_stack([IN_RAS @ direction[:, ::-1], IN_RAS @ reader.GetOrigin()])

    def read():
        try:
            return sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            reason = f"is damaged ({one_line(str(error).rsplit(':', 1)[-1])})"
            raise UnreadableStudy(path, reason, "copy or convert it again") from None

    return Stored(shape, affine, read, path.stem)
