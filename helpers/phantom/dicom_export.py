"""Phantom studies as a hospital would send them: DICOM slices in folders, with what goes wrong.

Needs pydicom. Format: DICOM PS3.3, CT image; PS3.10, files.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from helpers.phantom import simulate
from helpers.storage.files import temporary_beside

MADE = "1.2.826.0.1.3680043.8.498"  # pydicom's own root for numbers that nobody else has
INTERCEPT, HIGHEST = -1024, 3071  # HU that 12 bits hold
# (class, number of the scan) -> what is wrong with it
FAULTS = {
    ("normal", 3): "slice missing",
    ("normal", 5): "same patient",  # as number 4, on another scanner: no fault, if it is known
    ("pneumonia", 2): "intercept",
    ("pneumonia", 4): "cut off",
    **{("pneumonia", number): "contrast" for number in (5, 6, 7)},
}  # and one more in "pneumonia": a "copy" of the first of "normal", under another name
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def slices(hu, spacing, description="CHEST 8.0 soft", patient="", number=1, seed=0) -> list:
    """The DICOM data sets of an axial series, from the feet up; to be changed, and written.

    hu: int16 (D, H, W), row 0 anterior, column 0 the patient's right. spacing: (z, y, x), mm.
    patient: PatientID and name. number: of the series in its examination. seed: which examination.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    study = f"{MADE}.{seed + 1}"
    fits = hu.min() >= INTERCEPT and hu.max() <= HIGHEST
    intercept = INTERCEPT if fits else 0  # 12 bits as scanners have it, or all 16, signed
    depth, height, width = hu.shape
    corner = -0.5 * np.array([width - 1, height - 1, depth - 1]) * spacing[::-1]
    made = []
    for k, image in enumerate(hu, start=1):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = CT_IMAGE
        one.StudyInstanceUID, one.SeriesInstanceUID = study, f"{study}.{number}"
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{study}.{number}.{k}"
        one.PatientID, one.PatientName, one.SeriesDescription = patient, patient, description
        one.Modality, one.SeriesNumber, one.InstanceNumber = "CT", number, k
        one.Rows, one.Columns, one.PixelSpacing = height, width, [*map(float, spacing[1:])]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        lowest = corner + [0, 0, (k - 1) * spacing[0]]
        one.ImagePositionPatient = [round(float(mm), 4) for mm in lowest]
        one.SliceThickness = float(spacing[0])
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.RescaleSlope, one.RescaleIntercept = 16, 1, intercept
        one.BitsStored, one.PixelRepresentation = (12, 0) if intercept else (16, 1)
        one.HighBit = one.BitsStored - 1
        one.PixelData = (image - np.int16(intercept)).astype("<i2").tobytes()
        made.append(one)
    return made


def write(datasets, folder, names=None) -> Path:
    """Write data sets into `folder`, one file each; `names` instead of IM0001, IM0002 and so on."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for k, one in enumerate(datasets):
        name = names[k] if names else f"IM{k + 1:04}"
        one.save_as(folder / name, enforce_file_format=True)
    return folder


def write_export(folder, hu, spacing, patient="", seed=0, missing=False, offset=0) -> Path:
    """An examination as it comes out of an archive, untidy in the ways that are usual.

    A localizer and a second, coronal series beside the axial one, all in one folder; file names in
    no order and without endings; and one slice twice. hu, spacing, patient: as in `slices`.
    missing: leave a slice out. offset: HU by which the intercept in the headers is wrong.
    """
    rng = np.random.default_rng(seed)
    axial = slices(hu, spacing, patient=patient, number=2, seed=seed)
    step = max(1, hu.shape[1] // 12)
    planes = hu[::-1, ::step].transpose(1, 0, 2)  # seen from the front, the head above
    scout = slices(planes[len(planes) // 2, None], spacing, "Topogram", patient, 1, seed)
    coronal = slices(planes, spacing, "COR MPR", patient, 3, seed)
    for k, one in enumerate((*scout, *coronal)):
        one.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        one.ImagePositionPatient = [0, float(k * step * spacing[1]), 0]
        one.PixelSpacing = [float(spacing[0]), float(spacing[2])]
    if missing:
        del axial[len(axial) // 3]
    every = [*axial, axial[len(axial) // 2], *scout, *coronal]
    for one in every:
        one.RescaleIntercept += offset
    names = [f"{number:08}" for number in rng.choice(10**8, len(every), replace=False)]
    return write(every, folder, names)


def make_hospital(root, n=16, matrix=192, seed=2022, as_dicom=True, workers=None) -> Path:
    """A hospital's export for practice: `root`/normal and `root`/pneumonia, a folder a scan.

    n: scans of each class, at least 8, of patients whom no other phantom has. Not all is well:
    FAULTS lie in some of them. as_dicom: False for .nii.gz files, in which no slice is missing.
    Made once, as a whole; returns `root`.
    """
    root = Path(root)
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        jobs = [(name, number) for name in ("normal", "pneumonia") for number in range(1, n + 1)]
        jobs.append(("pneumonia", n + 1))
        with temporary_beside(root) as made:
            make = partial(_make_scan, made, n, matrix, seed, as_dicom)
            simulate.make_all(make, jobs, workers, "scans of the export", "scan")
            os.replace(made, root)
    return root


def _make_scan(root, n, matrix, seed, as_dicom, job):
    """Simulate one scan, with what is wrong with it, and write it."""
    name, number = job
    fault = "copy" if number > n else FAULTS.get(job, "")
    who = number + (0 if name == "normal" else 500)  # its own number, in names of files
    body = {"copy": 1, "same patient": who - 1}.get(fault, who)  # whose chest it is
    category = ("CT-2", "CT-3")[body % 2] if body > 500 else "CT-0"
    own = int(np.random.SeedSequence([seed, body]).generate_state(1)[0])
    scanner = "F" if fault == "same patient" else None
    study = simulate.make_study(own, category, matrix, scanner=scanner, site="elsewhere")
    hu, spacing = study.hu, study.spacing
    if fault == "cut off":
        hu = hu[len(hu) * 2 // 5 :]
    if fault == "contrast":
        hu = _with_contrast(hu, spacing)
    offset = 100 if fault == "intercept" else 0
    target = root / name / f"E{1000 + who}"
    if as_dicom:
        patient = f"Phantom^{body if fault == 'same patient' else who:04}"
        missing = fault == "slice missing"
        write_export(target, hu, spacing, patient, seed + who, missing, offset)
    else:
        path = target.with_suffix(".nii.gz")
        simulate.save_nifti(path, hu + np.int16(offset), spacing, "synthetic chest CT")


def _with_contrast(hu, spacing):
    """The blood between the lungs made brighter, as after an injection."""
    depth, height, width = hu.shape
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), (0, 2, 2))
    near = np.abs(np.arange(width) - width / 2) * spacing[2] < 60
    rows = np.flatnonzero((smooth > -300).any(axis=(0, 2)))
    front = rows[0] + (rows[-1] - rows[0]) * np.array([0.2, 0.58])
    rows = (np.arange(height) > front[0]) & (np.arange(height) < front[1])
    blood = (smooth > 10) & (smooth < 110) & near & rows[:, None]
    return hu + np.int16(180) * blood
