"""DICOM series, and the volumes of research tools (.mha, .mhd, .nrrd), as stored volumes.

pydicom reads the headers, SimpleITK the voxels; who has only NIfTI files needs neither. Of a
header only TAGS are read: nobody's name, number or date. Format: DICOM PS3.3, C.7.6.2 (where a
slice lies), C.8.15.3 (several slices in one file).
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from helpers.ct.nifti import MIN_SLICES, Stored, UnreadableStudy, check_spacing, one_line
from helpers.storage.archives import ArchiveError, unpack_zip
from helpers.storage.downloads import DownloadError
from helpers.storage.files import is_system_file

INSTALL = "pip install pydicom SimpleITK"
VOLUMES = (".mha", ".mhd", ".nrrd", ".nhdr")
TAGS = ["StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns"]
TAGS += ["PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames"]
TAGS += ["SamplesPerPixel", "PhotometricInterpretation"]
TAGS += ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
INDEX = "1.2.840.10008.1.3.10"  # the kind of file that DICOMDIR is
IN_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM and ITK count to the left and to the back
MOST_TILTED = 1.0  # degrees between the stack of slices and their normal
MOST_UNEVEN = 0.2  # of a step, from where a slice lies to where it should
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
    """Whether a file begins like DICOM, whatever its name."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(place: str | os.PathLike) -> list[Path]:
    """The DICOM files below a folder; for one of them, those beside it."""
    place = Path(place)
    found = place.rglob("*") if place.is_dir() else place.parent.glob("*")
    return sorted(file for file in found if not is_system_file(file.name) and is_dicom(file))


def list_series(place: str | os.PathLike) -> list[Series]:
    """The series of CT images below a folder or beside a file, by headers alone; largest first.

    What is no image (an index, a report, a dose sheet) is passed over. UnreadableStudy where a
    header is damaged, or pydicom is missing.
    """
    files = dicom_files(place)
    return _list_series(
        tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    )


@lru_cache(maxsize=2)  # many studies in one folder are asked for one after the other
def _list_series(stamps) -> list[Series]:
    """The series of these files, each with its size and time."""
    groups = {}
    for file, header in _headers([file for file, *_ in stamps], TAGS):
        kind = getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID")
        if "Modality" not in header and kind != INDEX:
            raise UnreadableStudy(file, *DAMAGED)
        if header.get("Modality") == "CT" and "Rows" in header:
            for frame, image in enumerate(_images(header)):
                orientation = image.get("ImageOrientationPatient")
                key = str(header.get("SeriesInstanceUID")), header.Rows, header.Columns
                key += tuple(np.round(orientation or [], 2))
                groups.setdefault(key, []).append((file, frame, header, image))
    series = [_series(slices) for slices in groups.values()]
    return sorted(series, key=lambda one: (-one.n_slices, one.description))


def patient_of(place: str | os.PathLike) -> str:
    """Whom a study belongs to: the PatientID of its first file, "" if there is none.

    Only to see which studies are of one patient: it is not to be printed or kept.
    """
    place = Path(place)
    if place.suffix.lower() == ".zip":
        folder = _unpacked(place)
        try:
            return patient_of(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    files = [place] if place.is_file() else dicom_files(place)
    for _, header in _headers(files[:1], ["PatientID"]):
        return str(header.get("PatientID") or "").strip()
    return ""


def open_volume(path: Path) -> Stored:
    """A folder or zip of DICOM slices, one slice of a series, or a .mha, .mhd or .nrrd.

    Of several series the axial one with most slices is taken, and a note names the others.
    UnreadableStudy if it cannot be read right: the message says why, with the series' description.
    """
    if path.suffix.lower() in VOLUMES:
        return _open_research_format(path)
    if path.suffix.lower() != ".zip":
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


def _headers(files, tags):
    """Yield (file, header with these tags alone); a damaged file is refused by name."""
    pydicom, _ = _libraries(files[0]) if files else (None, None)
    for file in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
                header.decode()
            except Exception:  # a damaged header makes it raise nearly everything, and quote it
                raise UnreadableStudy(file, *DAMAGED) from None
            yield file, header


def _images(header):
    """What says where each image of a file lies: the header itself, or its groups by frame."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        return [header] * int(header.get("NumberOfFrames") or 1)
    shared, images = header.get("SharedFunctionalGroupsSequence") or [{}], []
    for group in header.PerFrameFunctionalGroupsSequence:
        image = {}
        for item in (shared[0], group):
            for element in item:
                if element.VR == "SQ" and element.value:
                    image |= {inner.keyword: inner.value for inner in element.value[0]}
        images.append(image)
    return images


def _series(slices) -> Series:
    """Slices of one series and size, sorted; `fault` says what forbids it from the start."""
    file, _, header, image = slices[0]
    fault = ""
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    if any(not image.get(tag) for *_, image in slices for tag in needed):
        fault = "does not say where its slices lie"
    elif header.get("SamplesPerPixel", 1) != 1 or header.PhotometricInterpretation != "MONOCHROME2":
        fault = "holds colours, or grey turned round"
    elif len({tuple(image.get("PixelSpacing")) for *_, image in slices}) > 1:
        fault = "has slices of different pixel spacings"
    elif len({(i.get("RescaleSlope"), i.get("RescaleIntercept")) for *_, i in slices}) > 1 and any(
        frame for _, frame, *_ in slices
    ):
        fault = "scales its frames differently"
    orientation, positions = np.eye(2, 3), np.zeros((len(slices), 3))
    if not fault:
        orientation = np.array(image.get("ImageOrientationPatient"), float).reshape(2, 3)
        positions = np.array([image.get("ImagePositionPatient") for *_, image in slices], float)
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
        tuple(float(step) for step in image.get("PixelSpacing") or (1, 1)),
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
        notes.append(f"of {series}, {is_again.sum()} slices are there twice, and taken once")
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
    check_spacing(shown, (length, *series.pixel))
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
        first, second = (pydicom.dcmread(series.files[n]).get("PixelData") for n in (k - 1, k))
        if first != second or series.files[k] == series.files[k - 1]:
            reason = f"has different images in the same place, in {is_again.sum()} places"
            raise UnreadableStudy(shown, reason, "export each acquisition as a series of its own")


def _check_even(along, shown):
    """UnreadableStudy unless the slices lie one step after the other."""
    if len(along) < MIN_SLICES:
        raise UnreadableStudy(shown, f"has slices in {len(along)} places", WHOLE)
    even = np.linspace(along[0], along[-1], len(along))
    steps = np.diff(along)
    usual = float(np.median(steps))
    if np.abs(along - even).max() <= MOST_UNEVEN * usual:
        return
    gaps = np.rint(steps[steps > 1.5 * usual] / usual) - 1
    reason = f"has slices {steps.min():.2f} to {steps.max():.2f} mm apart"
    if len(gaps):
        where = int(np.argmax(steps)) + 1
        reason = f"misses {gaps.sum():.0f} slices (after the {where}th {steps.max():.1f} mm are "
        reason += f"empty, and {usual:.1f} mm elsewhere)"
    raise UnreadableStudy(shown, reason, WHOLE)


def _read_slices(slices, matrix, shown):
    """The voxels (D, H, W), each slice with its own rescale slope and intercept."""
    _, sitk = _libraries(shown)
    n_of_file = Counter(file for file, _ in slices)

    def read(file):
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(file))
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
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise UnreadableStudy(path, reason, "give a file")
    _, sitk = _libraries(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = f"has a damaged header ({one_line(str(error).rsplit(':', 1)[-1])})"
        raise UnreadableStudy(path, reason, "convert the original CT again") from None
    shape = reader.GetSize()[::-1]
    if len(shape) != 3 or reader.GetNumberOfComponents() != 1:
        raise UnreadableStudy(path, f"has the shape {shape}", "give one 3-D volume per file")
    steps = np.array(reader.GetSpacing())
    check_spacing(path, steps)
    direction = np.reshape(reader.GetDirection(), (3, 3)) * steps
    affine = np.eye(4)
    affine[:3] = np.column_stack([IN_RAS @ direction[:, ::-1], IN_RAS @ reader.GetOrigin()])

    def read():
        try:
            return sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            reason = f"is damaged ({one_line(str(error).rsplit(':', 1)[-1])})"
            raise UnreadableStudy(path, reason, "copy or convert it again") from None

    return Stored(shape, affine, read, path.stem)
