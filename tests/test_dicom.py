"""DICOM series and the formats of research tools: read right, or refused in one line."""

import copy
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.ct import dicom
from helpers.ct.nifti import UnreadableStudy
from helpers.ct.studies import read_mask, read_study
from helpers.phantom import dicom_export

pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")
BAD = pytest.mark.faults("Bad studies", "DICOM series, zips, .mha and .nrrd, odd or damaged")
REAL = os.environ.get("REAL_DATA_DIR")
real_data = pytest.mark.skipif(not REAL, reason="REAL_DATA_DIR names no folder of real CT data")
SPACING = (8.0, 0.75, 0.75)
SHAPE = (12, 20, 24)


def made_hu(shape=SHAPE, seed=0):
    """Air and soft tissue, every voxel another, so that no slice or axis can be mixed up."""
    rng = np.random.default_rng(seed)
    air, tissue = rng.integers(-1000, -700, shape), rng.integers(-100, 300, shape)
    return np.where(rng.random(shape) < 0.5, air, tissue).astype(np.int16)


@pytest.fixture
def hu():
    return made_hu()


@pytest.fixture
def slices(hu):
    return dicom_export.slices(hu, SPACING)


def read_quietly(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_study(path)


def by_simpleitk(folder):
    """(array, affine) as SimpleITK's reader of series gives them."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3] = np.diag([-1, -1, 1]) @ np.column_stack([direction, image.GetOrigin()])
    return sitk.GetArrayFromImage(image).transpose(), affine


def by_dcm2niix(folder, target):
    """(array, affine) as dcm2niix writes them, an implementation with nothing in common."""
    program = Path(sys.executable).with_name("dcm2niix")
    target.mkdir()
    subprocess.run([program, "-f", "made", "-o", target, folder], check=True, capture_output=True)
    image = nib.load(target / "made.nii")
    return np.asarray(image.dataobj), image.affine


def assert_same(study, other, affine):
    """The study is the array with its affine, turned: value for value, place for place."""
    image = nib.as_closest_canonical(nib.Nifti1Image(other, affine))
    mine = nib.as_closest_canonical(nib.Nifti1Image(study.hu, study.affine))
    assert np.array_equal(np.asarray(mine.dataobj), np.asarray(image.dataobj))
    assert np.allclose(mine.affine, image.affine, atol=1e-3)


def test_a_series_is_its_hu_in_the_right_places(slices, hu, tmp_path):
    study = read_quietly(dicom_export.write(slices, tmp_path))
    assert study.shape == SHAPE and study.hu.dtype == np.int16
    assert np.array_equal(study.hu, hu)
    assert study.spacing == pytest.approx(SPACING)
    first = np.array(slices[0].ImagePositionPatient) * [-1, -1, 1]
    assert np.allclose(study.affine @ [0, 0, 0, 1], [*first, 1])
    assert study.name == "CHEST 8.0 soft"


@pytest.mark.parametrize("peer", ["SimpleITK", "dcm2niix"])
def test_a_series_is_what_other_readers_make_of_it(peer, slices, tmp_path):
    folder = dicom_export.write(slices, tmp_path / "in")
    other = by_simpleitk(folder) if peer == "SimpleITK" else by_dcm2niix(folder, tmp_path / "out")
    assert_same(read_quietly(folder), *other)


@pytest.mark.parametrize(
    "orientation",
    [
        [1, 0, 0, 0, 1, 0],
        [-1, 0, 0, 0, -1, 0],  # prone
        [-1, 0, 0, 0, 1, 0],  # feet first
        [1, 0, 0, 0, 0.9998, 0.0175],  # lying a little askew
    ],
)
def test_however_the_patient_lies_it_is_the_same_as_by_dcm2niix(orientation, slices, tmp_path):
    normal = np.cross(orientation[:3], orientation[3:])
    for k, one in enumerate(slices):
        one.ImageOrientationPatient = orientation
        one.ImagePositionPatient = [float(mm) for mm in 8 * k * normal + [-3, 5, 11]]
    folder = dicom_export.write(slices, tmp_path / "in")
    assert_same(read_quietly(folder), *by_dcm2niix(folder, tmp_path / "out"))


def test_names_and_numbers_of_files_say_nothing_of_the_order(slices, hu, tmp_path):
    rng = np.random.default_rng(0)
    for one, number in zip(slices, rng.permutation(len(slices)), strict=True):
        one.InstanceNumber = int(number)
    names = [f"{number}.x" for number in rng.permutation(len(slices))]
    assert np.array_equal(read_quietly(dicom_export.write(slices, tmp_path, names)).hu, hu)


def test_each_slice_has_its_own_rescale(slices, hu, tmp_path):
    for k, one in enumerate(slices[::2]):
        stored = np.frombuffer(one.PixelData, "<u2") * 2 + k
        one.PixelData, one.RescaleSlope = stored.astype("<u2").tobytes(), 0.5
        one.RescaleIntercept, one.BitsStored, one.HighBit = -1024 - k / 2, 14, 13
    assert np.array_equal(read_quietly(dicom_export.write(slices, tmp_path)).hu, hu)


def test_what_stands_in_the_unused_bits_is_left_out(slices, hu, tmp_path):
    for one in slices:
        stored = np.frombuffer(one.PixelData, "<u2") | 0x5000
        one.PixelData = stored.astype("<u2").tobytes()
    assert np.array_equal(read_quietly(dicom_export.write(slices, tmp_path)).hu, hu)


@pytest.mark.parametrize("how", ["RLE", "deflated", "big endian"])
def test_other_ways_to_write_the_pixels(how, slices, hu, tmp_path):
    uids = {"RLE": "1.2.840.10008.1.2.5", "deflated": "1.2.840.10008.1.2.1.99"}
    for one in slices:
        if how == "RLE":
            one.compress(uids[how])
        elif how == "deflated":
            one.file_meta.TransferSyntaxUID = uids[how]
        else:
            one.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
            one.PixelData = np.frombuffer(one.PixelData, "<u2").astype(">u2").tobytes()
    assert np.array_equal(read_quietly(dicom_export.write(slices, tmp_path)).hu, hu)


def bare(slices, folder, encoding, has_meta):
    """The slices as old archives hold them: without the preamble, or its group 2 as well."""
    folder.mkdir()
    for k, one in enumerate(slices):
        one.file_meta.TransferSyntaxUID = UIDS[encoding]
        if not has_meta:
            del one.file_meta
        is_implicit = encoding == "implicit"
        options = {} if has_meta else {"implicit_vr": is_implicit, "little_endian": True}
        one.save_as(folder / f"IM{k:04}", enforce_file_format=False, **options)
        assert (folder / f"IM{k:04}").read_bytes()[128:132] != b"DICM"
    return folder


UIDS = {"implicit": "1.2.840.10008.1.2", "explicit": "1.2.840.10008.1.2.1"}
without_preamble = pytest.mark.parametrize("has_meta", [True, False], ids=["group 2", "bare"])


@pytest.mark.parametrize("encoding", UIDS)
@without_preamble
def test_files_without_the_preamble_read_like_those_with_it(encoding, has_meta, slices, tmp_path):
    usual = read_quietly(dicom_export.write(slices, tmp_path / "usual"))
    folder = bare(slices, tmp_path / "bare", encoding, has_meta)
    study = read_quietly(folder)
    assert np.array_equal(study.hu, usual.hu) and np.array_equal(study.affine, usual.affine)
    assert_same(study, *by_simpleitk(folder))
    assert np.array_equal(read_quietly(folder / "IM0003").hu, usual.hu)
    for number in (4, 4):  # once there twice, and then cut off
        shutil.copy(folder / f"IM{number:04}", folder / "again")
    with pytest.warns(UserWarning, match="slices there twice and taken once: 1"):
        assert np.array_equal(read_study(folder).hu, usual.hu)
    (folder / "again").write_bytes((folder / "again").read_bytes()[:-300])
    assert_refused(folder, "in the same place")


@real_data
@pytest.mark.parametrize("name", ["cptac_explicit_le_9mm", "covidctmd_jpeg_lossless_8mm"])
def test_real_files_without_the_preamble_read_like_those_with_it(name, tmp_path):
    for file in Path(REAL, "dicom", name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[132:])
    usual = read_quietly(Path(REAL, "dicom", name))
    assert np.array_equal(read_quietly(tmp_path).hu, usual.hu)


JUNK = {
    "text": b"see the other folder\n" * 20,
    "zeros": bytes(2000),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "one element": b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + b"no other" * 30,
    "the same element again": b"\x08\x00\x05\x00CS\x02\x00ab" * 20,
    "a length beyond its end": b"\x08\x00\x05\x00CS\xff\xff" + bytes(200),
    "another group": b"\x10\x00\x10\x00PN\x02\x00ab\x10\x00\x20\x00LO\x02\x00ab" + bytes(99),
    "too short": b"\x08\x00\x05\x00CS",
}


@BAD
@pytest.mark.parametrize("kind", JUNK)
def test_what_only_begins_like_dicom_is_none(kind, slices, hu, tmp_path):
    folder = dicom_export.write(slices, tmp_path)
    (folder / "notes.bin").write_bytes(JUNK[kind])
    assert np.array_equal(read_quietly(folder).hu, hu)
    assert_refused(folder / "notes.bin", "neither DICOM nor named as a NIfTI file")


def multi_frame(slices, order):
    """One data set with all slices as frames, in this order, each with its groups (C.8.15.3)."""
    made = copy.deepcopy(slices[0])
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    measures, turned, scale = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = made.PixelSpacing, 8.0
    turned.ImageOrientationPatient = made.ImageOrientationPatient
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1024, "HU"
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turned]
    shared.PixelValueTransformationSequence = [scale]
    made.SharedFunctionalGroupsSequence, groups = [shared], []
    for k in order:
        place, group = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = slices[k].ImagePositionPatient
        group.PlanePositionSequence = [place]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence, made.NumberOfFrames = groups, len(groups)
    made.PixelData = b"".join(slices[k].PixelData for k in order)
    names = ["PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"]
    for name in [*names, "RescaleSlope", "RescaleIntercept", "SliceThickness"]:
        delattr(made, name)
    return made


@pytest.mark.parametrize("order", ["up", "down", "mixed"])
def test_all_slices_in_one_file(order, slices, hu, tmp_path):
    n = range(len(slices))
    order = {"up": n, "down": n[::-1], "mixed": np.random.default_rng(0).permutation(n)}[order]
    study = read_quietly(dicom_export.write([multi_frame(slices, order)], tmp_path))
    assert np.array_equal(study.hu, hu) and study.spacing == pytest.approx(SPACING)


def test_frames_of_different_scales_are_refused(slices, tmp_path):
    made = multi_frame(slices, range(len(slices)))
    shared = made.SharedFunctionalGroupsSequence[0]
    scale = copy.deepcopy(shared.PixelValueTransformationSequence[0])
    scale.RescaleSlope = 2
    made.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence = [scale]
    assert_refused(dicom_export.write([made], tmp_path), "scales its frames differently")


def assert_refused(path, words):
    """One line: the path, the reason; nothing else, and no stack of another library."""
    with pytest.raises(UnreadableStudy) as refused:
        read_study(path).hu  # noqa: B018
    text = str(refused.value)
    assert text.startswith(str(path)) and words in text and "\n" not in text, text
    return text


def without(slices, *numbers):
    return [one for k, one in enumerate(slices) if k not in numbers]


def put(slices, **values):
    for one in slices:
        for name, value in values.items():
            setattr(one, name, value)
    return slices


def shifted(slices, mm):
    """The slices moved along the body, the k-th by mm(k)."""
    for k, one in enumerate(slices):
        x, y, z = one.ImagePositionPatient
        one.ImagePositionPatient = [x, y, float(z + mm(k))]
    return slices


def leaning(slices):
    for k, one in enumerate(slices):
        x, y, z = one.ImagePositionPatient
        one.ImagePositionPatient = [x, float(y + 2 * k), z]
    return slices


def twice(slices, change):
    again = copy.deepcopy(slices[4])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    if change:
        again.PixelData = slices[5].PixelData
    return [*slices, again]


FAULTS = {
    "one slice missing": (
        lambda s: without(s, 5),
        "missing slices: 1 (slice 5 lies 16.0 mm before",
    ),
    "the last but one missing": (lambda s: without(s, 10), "missing slices: 1 (slice 10 lies"),
    "three slices missing": (lambda s: without(s, 4, 5, 8), "missing slices: 3"),
    "uneven": (lambda s: shifted(s, lambda k: 3 * (k % 2)), "mm apart"),
    "tilted": (leaning, "tilted gantry"),
    "two acquisitions": (lambda s: twice(s, True), "images in the same place (slices: 1)"),
    "too few": (lambda s: s[:5], "no axial series of 8 slices or more"),
    "coronal": (lambda s: put(s, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "no axial series"),
    "no positions": (lambda s: put(s, ImagePositionPatient=None), "where its slices lie"),
    "bent": (lambda s: put(s, ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), "right angles"),
    "no spacing": (lambda s: put(s, PixelSpacing=None), "where its slices lie"),
    "wrong spacing": (lambda s: put(s, PixelSpacing=[500.0, 500.0]), "500"),
    "two spacings": (lambda s: put(s[:3], PixelSpacing=[1, 1]) + s[3:], "pixel spacings"),
    "MR": (lambda s: put(s, Modality="MR", SOPClassUID=f"{dicom.CT_IMAGE}0"), "no CT image"),
    "turned grey": (lambda s: put(s, PhotometricInterpretation="MONOCHROME1"), "grey turned"),
    "no rescale": (lambda s: put(s, RescaleIntercept=0), "Hounsfield"),
}


@BAD
@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_series_is_refused_in_one_line(name, slices, tmp_path):
    change, words = FAULTS[name]
    text = assert_refused(dicom_export.write(change(slices), tmp_path), words)
    assert "CHEST 8.0 soft" in text or name == "MR", "the series is not named"


def test_small_unevenness_is_no_fault(slices, hu, tmp_path):
    folder = dicom_export.write(shifted(slices, lambda k: 0.3 * (k % 2)), tmp_path)
    assert np.array_equal(read_quietly(folder).hu, hu)


def test_a_slice_that_is_there_twice_is_taken_once_with_a_warning(slices, hu, tmp_path):
    folder = dicom_export.write(twice(slices, False), tmp_path)
    with pytest.warns(UserWarning, match="slices there twice and taken once: 1"):
        study = read_study(folder)
    assert np.array_equal(study.hu, hu)


def test_of_several_series_the_axial_one_with_most_slices_is_taken(hu, tmp_path):
    folder = dicom_export.write_export(tmp_path, hu, SPACING, "anybody", 7)
    with pytest.warns(UserWarning) as said:
        study = read_study(folder)
    assert np.array_equal(study.hu, hu)
    several, twice = [str(one.message) for one in said]
    assert "of 3 series, 'CHEST 8.0 soft' (13) is read" in several and "there twice" in twice
    assert "COR MPR" in several and "Topogram" in several and "anybody" not in several
    few = dicom_export.slices(hu[2:11], SPACING, "few", number=9)
    dicom_export.write(few, tmp_path / "further")
    with pytest.warns(UserWarning, match=r"'few' \(9\)"):
        assert np.array_equal(read_study(tmp_path).hu, hu)
    one = tmp_path / "further" / "IM0003"
    assert np.array_equal(read_quietly(one).hu, hu[2:11])  # one slice stands for its series
    found = dicom.list_series(tmp_path)
    assert [series.n_slices for series in found if series.is_axial] == [13, 9]


def test_what_is_no_image_is_passed_over(slices, hu, tmp_path):
    folder = dicom_export.write(slices, tmp_path / "IMAGES")
    index = pydicom.Dataset()
    index.file_meta = pydicom.dataset.FileMetaDataset()
    index.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    index.file_meta.MediaStorageSOPClassUID = index.SOPClassUID = "1.2.840.10008.1.3.10"
    index.file_meta.MediaStorageSOPInstanceUID = index.SOPInstanceUID = "1.2.3.4"
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    report = copy.deepcopy(index)
    report.Modality = "SR"
    report.save_as(folder / "REPORT", enforce_file_format=True)
    (folder / "readme.txt").write_text("burnt by a program")
    (folder / "._IM0001").write_bytes((folder / "IM0001").read_bytes())
    assert np.array_equal(read_quietly(tmp_path).hu, hu)


def test_a_zip_is_read_like_its_folder_and_leaves_nothing_behind(slices, hu, tmp_path, monkeypatch):
    folder = dicom_export.write(slices, tmp_path / "export")
    shutil.make_archive(tmp_path / "export", "zip", folder)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    study = read_quietly(tmp_path / "export.zip")
    assert [*temporary.iterdir()]
    assert np.array_equal(study.hu, hu)
    del study
    assert not [*temporary.iterdir()]


@BAD
@pytest.mark.parametrize("fault", ["no zip", "leads outside", "no DICOM in it"])
def test_a_bad_zip_is_refused(fault, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../b" if fault == "leads outside" else "b", b"text")
    if fault == "no zip":
        path.write_bytes(b"text")
    words = {"no zip": "zip", "no DICOM in it": "no CT image"}.get(fault, fault)
    assert_refused(path, words)
    assert not (tmp_path.parent / "b").exists()


DAMAGES = ["cut off", "turned bytes", "nothing but its mark", "another size", "empty folder"]


@BAD
@pytest.mark.parametrize("fault", DAMAGES)
def test_damaged_files_are_refused(fault, slices, tmp_path):
    if fault == "another size":
        slices[3].Rows, slices[3].Columns = 10, 48
    folder = dicom_export.write(slices, tmp_path / "a")
    file, words = folder / "IM0004", "cannot be read"
    content = file.read_bytes()
    if fault == "cut off":
        file.write_bytes(content[:-300])
    elif fault == "turned bytes":
        file.write_bytes(content[:200] + b"\xff" * 300 + content[500:])
        words = "IM0004: has a damaged header"
    elif fault == "nothing but its mark":
        file.write_bytes(bytes(128) + b"DICM" + b"\xff" * 300)
        words = "IM0004: has a damaged header"
    elif fault == "another size":  # a series of its own, and here one slice is missing
        words = "missing slices: 1"
    else:
        shutil.rmtree(folder)
        folder.mkdir()
        words = "no CT image"
    with pytest.raises(UnreadableStudy, match=words) as refused, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_study(folder).hu  # noqa: B018
    assert "\n" not in str(refused.value)


@BAD
@pytest.mark.parametrize("fault", ["empty", "zeros", "a link to nothing", "cut", "another kind"])
def test_a_last_slice_that_cannot_be_told_is_not_passed_over(fault, slices, tmp_path):
    names = [f"1.2.840.{k}" for k in range(12)]
    folder = dicom_export.write(slices, tmp_path, names)
    file, words = folder / names[-1], "is empty; copy it again"
    content = file.read_bytes()
    file.unlink()
    if fault == "a link to nothing":
        file.symlink_to("nowhere")
        words = "cannot be opened"
    else:
        cut = content[: content.index(b"CHEST")]  # behind the modality, before the size
        another = content.replace(b"CS\x02\x00CT", b"CS\x02\x00MR")
        made = {"empty": b"", "zeros": bytes(5000), "cut": cut, "another kind": another}
        file.write_bytes(made[fault])
        words = "damaged header" if fault in ("cut", "another kind") else words
    with pytest.raises(UnreadableStudy, match=f"1.2.840.11: .*{words}"):
        read_study(folder)


@pytest.mark.faults("Random changes", "a DICOM slice cut, or its header changed", cases=150)
def test_a_slice_changed_at_random_is_read_or_refused_in_one_line(slices, tmp_path):
    file, rng = dicom_export.write(slices, tmp_path) / "IM0012", np.random.default_rng(0)
    content = file.read_bytes()
    n_header = len(content) - len(slices[0].PixelData)
    for n in range(150):
        place, changed = int(rng.integers(132, n_header)), bytearray(content)
        if n % 3 == 0:
            changed = changed[:place]
        elif n % 3 == 1:
            changed[place] ^= int(rng.integers(1, 256))
        else:
            changed[place : place + 8] = rng.bytes(8)
        file.write_bytes(changed)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                is_whole = len(read_study(tmp_path).hu) == 12
                assert is_whole or "left out: 'CHEST 8.0 soft' (1)" in str(said[0].message)
            except UnreadableStudy as error:
                assert len(str(error).splitlines()) == 1


@BAD
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("kind", ["a slice", "a volume"])
def test_a_name_in_latin_1_ends_no_process(kind, slices, hu, tmp_path):
    if kind == "a slice":
        path = dicom_export.write(slices, tmp_path)
        os.rename(path / "IM0003", os.fsencode(path) + b"/M\xfcller")
    else:
        sitk.WriteImage(sitk.GetImageFromArray(hu), str(tmp_path / "a.mha"))
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.mha"))
        os.rename(tmp_path / "a.mha", path)
    with pytest.raises(UnreadableStudy, match="ller.*no UTF-8; rename it") as refused:
        read_study(path).hu  # noqa: B018
    assert "M\\udcfcller" in str(refused.value).encode().decode(), "it can be printed"


@pytest.mark.parametrize("name", ["export.zip", "export.mha", "export.nii"])
def test_a_folder_is_a_folder_whatever_its_name(name, slices, hu, tmp_path):
    slices[0].PatientID = "P1"
    folder = dicom_export.write(slices, tmp_path / name)
    assert np.array_equal(read_quietly(folder).hu, hu) and dicom.patient_of(folder) == "P1"


def test_without_the_libraries_it_says_what_to_install(slices, tmp_path, monkeypatch):
    folder = dicom_export.write(slices, tmp_path)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UnreadableStudy, match="pip install pydicom SimpleITK"):
        read_study(folder)


SECRETS = {
    "PatientName": "Geheim^Gerda",
    "PatientID": "ID4711",
    "PatientBirthDate": "19600229",
    "StudyDate": "20200401",
    "AccessionNumber": "ACC0815",
    "InstitutionName": "Klinik Musterstadt",
    "ReferringPhysicianName": "Arzt^Anton",
    "PatientAddress": "Hauptstrasse 1",
    "OtherPatientIDs": "SV123",
    "PatientComments": "lives with Hugo",
}


def test_nothing_of_a_person_is_shown(slices, tmp_path, capfd, caplog):
    for one in slices:
        for name, value in SECRETS.items():
            setattr(one, name, value)
        one.PatientID = SECRETS["PatientID"]
    said = []
    for change in [lambda s: s, *(change for change, _ in FAULTS.values())]:
        folder = tmp_path / f"{len(said)}"
        dicom_export.write(change([copy.deepcopy(one) for one in slices]), folder)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                study = read_study(folder)
                said.append(f"{study!r} {study.name} {study.description} {study.hu.shape}")
            except UnreadableStudy as error:
                said.append(str(error))
        said += [str(one.message) for one in warned]
        said.append(repr(dicom.list_series(folder)))
    text = " ".join([*said, *capfd.readouterr(), caplog.text])
    uids = [slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID]
    for secret in [*SECRETS.values(), "Geheim", "Gerda", "Arzt", *uids]:
        assert secret not in text, secret
    assert dicom.patient_of(tmp_path / "0") == "ID4711"  # it can be asked for, to group studies
    assert dicom.patient_of(tmp_path) == "ID4711" and "PatientName" not in dicom.TAGS


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("direction", ["as usual", "turned"])
def test_formats_of_research_tools(ending, direction, hu, tmp_path):
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((3, -5, 7))
    if direction == "turned":
        image.SetDirection((-1, 0, 0, 0, 0, -1, 0, -1, 0))
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(image, str(path), useCompression=True)
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    study, other = read_quietly(path), nib.load(tmp_path / "scan.nii.gz")
    assert_same(study, np.asarray(other.dataobj), other.affine)
    assert study.name == "scan"
    if direction == "as usual":
        assert np.array_equal(study.hu, hu) and study.spacing == pytest.approx(SPACING)
        mask = sitk.GetImageFromArray((hu > 0).astype(np.uint8))
        mask.CopyInformation(image)
        sitk.WriteImage(mask, str(tmp_path / "mask.nrrd"))
        assert np.array_equal(read_mask(tmp_path / "mask.nrrd", study), hu > 0)


@BAD
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("fault", ["damaged", "cut off", "colours", "flat", "bent"])
def test_bad_files_of_research_tools_are_refused(ending, fault, hu, tmp_path):
    path = tmp_path / f"scan{ending}"
    image = sitk.GetImageFromArray(hu)
    if fault == "colours":
        image = sitk.GetImageFromArray(np.stack([hu, hu], -1), isVector=True)
    elif fault == "flat":
        image = sitk.GetImageFromArray(hu[0])
    sitk.WriteImage(image, str(path))
    if fault == "damaged":
        path.write_bytes(b"x" * 60 + path.read_bytes()[60:])
    elif fault == "cut off":
        path.write_bytes(path.read_bytes()[:-500])
    elif fault == "bent":
        turned = path.read_bytes().replace(b"= 1 0 0 0 1 0 0 0 1", b"= 1 0 0 0 1 0 0 1 0")
        path.write_bytes(turned.replace(b"(0,0,1)", b"(0,1,0)"))
    words = {"damaged": "header", "cut off": "damaged", "bent": "right angles"}
    assert_refused(path, words.get(fault, "shape"))


@real_data
@pytest.mark.parametrize("name", ["cptac_explicit_le_9mm", "covidctmd_jpeg_lossless_8mm"])
def test_real_series_are_what_other_readers_make_of_them(name, tmp_path):
    folder = Path(REAL, "dicom", name)
    study = read_quietly(folder)
    assert_same(study, *by_simpleitk(folder))
    assert_same(study, *by_dcm2niix(folder, tmp_path / "out"))


@real_data
def test_a_real_series_is_the_nifti_that_was_made_of_it():
    (path,) = Path(REAL, "volumes").glob("mosmedlike_cptac_*")
    made, source = read_study(path), read_study(Path(REAL, "dicom", "cptac_explicit_le_9mm"))
    assert np.array_equal(made.hu, source.hu) and np.allclose(made.affine, source.affine)


@real_data
def test_real_volumes_written_as_dicom_come_back(tmp_path):
    for path in sorted(Path(REAL, "volumes").glob("*.nii.gz")):
        study = read_study(path)
        made = dicom_export.slices(study.hu, study.spacing)
        again = read_quietly(dicom_export.write(made, tmp_path / path.name))
        assert np.array_equal(again.hu, study.hu), path.name
        assert again.spacing == pytest.approx(study.spacing, rel=1e-3)
