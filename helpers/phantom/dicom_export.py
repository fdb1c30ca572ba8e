"""Phantom studies as a hospital would send them: DICOM slices in a folder.

Needs pydicom. Format: DICOM PS3.3, CT image; PS3.10, files. Written through SimpleITK or
dcm2niix, nothing of it would be in our hands; here every oddity of an export can be made.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

MADE = "1.2.826.0.1.3680043.8.498"  # pydicom's own root for numbers that nobody else has
INTERCEPT, HIGHEST = -1024, 3071  # HU that 12 bits hold
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


def write_export(folder, hu, spacing, patient="", seed=0) -> Path:
    """An examination as it comes out of an archive, untidy in the ways that are usual.

    A localizer and a second, coronal series beside the axial one, all in one folder; file names in
    no order and without endings; and one slice twice. hu, spacing: as in `slices`.
    """
    rng = np.random.default_rng(seed)
    axial = slices(hu, spacing, patient=patient, number=2, seed=seed)
    middle = hu[::-1, hu.shape[1] // 2]  # a coronal picture, the head above
    front = {
        "ImageOrientationPatient": [1, 0, 0, 0, 0, -1],
        "PixelSpacing": [spacing[0], spacing[2]],
    }
    scout = slices(middle[None], spacing, "Topogram", patient, 1, seed)
    step = max(1, hu.shape[1] // 12)
    planes = hu[::-1, ::step].transpose(1, 0, 2)
    coronal = slices(planes, (step * spacing[1], *spacing[1:]), "COR MPR", patient, 3, seed)
    for k, one in enumerate((*scout, *coronal)):
        for name, value in front.items():
            setattr(one, name, [float(v) for v in value])
        one.ImagePositionPatient = [0, float(k * step * spacing[1]), 0]
    every = [*axial, axial[len(axial) // 2], *scout, *coronal]
    names = [f"{number:08}" for number in rng.choice(10**8, len(every), replace=False)]
    return write(every, folder, names)
