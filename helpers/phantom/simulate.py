"""A seeded simulator of thoracic CT in MosMedData's layout: the course's built-in cohort.

The studies are synthetic: not patients, and no substitute for them. What they offer is a known
truth (lesion masks, involved fraction, scanner) that runs anywhere without a download.
"""

from __future__ import annotations

import gzip
import io
import json
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from helpers.phantom import lungs as disease
from helpers.phantom.body import Bedding, draw_anatomy, stretch
from helpers.phantom.shapes import draw_patient
from helpers.storage.files import write_whole
from helpers.storage.processes import KILLED, start_workers
from helpers.storage.progress import progress

CATEGORIES = ("CT-0", "CT-1", "CT-2", "CT-3", "CT-4")
DEFAULT_COUNTS = {"CT-0": 60, "CT-2": 44, "CT-3": 16}
SLICE_SPACING = 8.0
VERSION = 2


@dataclass(frozen=True)
class Scanner:
    """How one scanner shows the same body; lengths in mm, HU otherwise."""

    noise: float
    sharpness: float  # above 0 a sharp kernel, below 0 a soft one
    padding: int | None  # HU outside the circular field of view; None: the square is filled
    offset: float
    table_curve: float


SCANNERS = {
    "A": Scanner(13, -0.95, None, -4, 0.0012),
    "B": Scanner(32, 0.9, -2000, 5, 0.0005),
    "C": Scanner(22, 0.3, -3024, 0, 0.0016),
    "D": Scanner(18, -0.6, None, 3, 0.0),
}


@dataclass(frozen=True)
class PhantomStudy:
    """A synthetic study: arrays (D, H, W), feet first, row 0 anterior, column 0 patient's right."""

    hu: np.ndarray  # int16
    mask: np.ndarray  # uint8, 1 inside a lesion
    lung: np.ndarray  # uint8, 1 inside the lungs, lesions included
    category: str
    involved_fraction: float  # lesion voxels in the lung / lung voxels
    spacing: tuple[float, float, float]  # z, y, x, mm
    scanner: str


def make_study(seed, category, matrix=512, n_slices=None, scanner=None) -> PhantomStudy:
    """Simulate one study.

    seed: int; the same seed gives the same patient on the same scanner in every category.
    category: "CT-0" .. "CT-4". n_slices: drawn from 33..53 when None, 8 mm apart; below 33 the
    slices move apart so that they still span the chest. scanner: "A".."D", drawn when None.
    Raises ValueError for an unknown category or scanner, or a size too small to show a chest.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category {category!r} is unknown; use one of {', '.join(CATEGORIES)}")
    if scanner is not None and scanner not in SCANNERS:
        raise ValueError(f"scanner {scanner!r} is unknown; use one of {', '.join(SCANNERS)}")
    if matrix < 32 or (n_slices is not None and n_slices < 4):
        raise ValueError(f"matrix {matrix}, n_slices {n_slices}: use at least 32 and 4")
    streams = np.random.SeedSequence(seed).spawn(4)
    body, lungs, lesion, machine = (np.random.default_rng(s) for s in streams)
    if n_slices is None:
        drawn = int(np.clip(np.rint(body.normal(41, 3.6)), 33, 53))
    else:
        drawn = int(np.clip(n_slices, 33, 53))
    n_slices = n_slices or drawn
    gap = SLICE_SPACING * max(1.0, drawn / n_slices)
    expiration = float(body.gamma(1.6, 8.0))
    patient = draw_patient(body, np.clip(8 * drawn * body.uniform(0.8, 0.94), 235, 345), expiration)
    top = 114 * patient.scale[0] + body.uniform(2, 30)
    levels = (top - gap * np.arange(n_slices)[::-1]) / patient.scale[0]
    width = 2 * (136 + 9 + 12 * patient.muscle + patient.fat) * patient.scale[2]
    spacing = float(np.clip(width * body.uniform(1.0, 1.2) / 512, 0.58, 1.15)) * 512 / matrix
    fields = disease.smooth_noise(body, (n_slices, 72, 72), (8 / gap, 1.3, 1.3))
    anatomy = draw_anatomy(patient, levels.astype(np.float32), matrix, spacing, fields)
    hu, mask, lung = _fill_lungs(anatomy, category, expiration, lungs, lesion)
    scanner = scanner or str(machine.choice(list(SCANNERS)))
    hu = _scan(machine, hu, SCANNERS[scanner], anatomy)
    inside = int(lung.sum())
    fraction = float(mask.sum() / inside) if inside else 0.0
    return PhantomStudy(hu, mask, lung, category, fraction, (gap, spacing, spacing), scanner)


def _fill_lungs(anatomy, category, expiration, rng, lesion_rng):
    """Put vessels, airways, disturbances and lesions into the lungs; returns HU, mask, lung."""
    frame = disease.LungFrame(anatomy)
    vessels, walls, lumina = disease.vessels_and_airways(rng, anatomy, frame)
    aerated = disease.disturbances(rng, frame, category != "CT-0", expiration)
    vessels = np.maximum(vessels, disease.splat(disease.nodules(rng, frame), anatomy))
    lung = anatomy.lung > 0.5
    mask = np.zeros(lung.shape, np.uint8)
    lesions = None if category == "CT-0" else disease.Lesions(lesion_rng, frame, category, lung)
    matrix = lung.shape[1]
    for k in range(len(lung)):
        hu = anatomy.tissue[k]
        if lung[k].any():
            inside = stretch(aerated[k], matrix)
            if lesions is not None:
                inside, extent = lesions.draw(k, inside)
                mask[k] = extent & lung[k]
            hu += anatomy.lung[k] * (inside - hu)
        for share, value in ((walls[k], 0), (vessels[k], 42), (lumina[k], -975)):
            hu += share * (value - hu)
    return anatomy.tissue, mask, lung.astype(np.uint8)


def _scan(rng, hu, scanner, anatomy):
    """What the scan adds: breathing, table, kernel, noise, HU offset, padding. Returns int16."""
    plane = anatomy.plane
    matrix, pixel = plane.matrix, plane.spacing
    middle = (np.arange(matrix, dtype=np.float32) - (matrix - 1) / 2) * pixel
    y, x = middle[:, None], middle[None, :]
    back = float(middle[np.flatnonzero((hu > -300).any(axis=(0, 2)))[-1]])
    top = back + rng.uniform(4, 34) - scanner.table_curve * x**2
    bedding = Bedding(rng, pixel)
    blur = abs(scanner.sharpness) * matrix / 512
    noise_level = scanner.noise * rng.uniform(0.8, 1.25) * np.sqrt(matrix / 512)
    share = [np.clip(0.5 + (1.6 - np.abs(y - top - d)) / pixel, 0, 1) for d in (0, 22)]
    out = np.empty(hu.shape, np.int16)
    breathing = round(rng.uniform(2, 5) / pixel) if rng.random() < 0.25 else 0
    for k, image in enumerate(hu):
        if breathing and anatomy.levels[k] < -40:
            moved = np.roll(image, breathing, axis=0) - image
            image = image + np.clip((40 - plane.y) / 75, 0, 0.4) * moved
        bedding.cover(image, (y < top) & (y > back - 45))
        image += 30 * ((y > top) & (image < -900))
        for line, value in zip(share, (-150, -420), strict=True):
            image += line * np.maximum(value - image, 0) * (y > top - 4)
        soft = ndimage.gaussian_filter(image, max(blur, 0.35), truncate=3)
        image = soft if scanner.sharpness < 0 else image + 0.5 * scanner.sharpness * (image - soft)
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        smooth = ndimage.gaussian_filter(noise, 0.75 if scanner.sharpness < 0 else 0.5, truncate=3)
        image = image + smooth * np.float32(noise_level / smooth.std()) + scanner.offset
        out[k] = np.rint(np.clip(image, -1024, 3071))
    if scanner.padding is not None:
        out[:, np.hypot(x, y) > matrix * pixel / 2] = scanner.padding
    return out


def _save_nifti(path, volume, spacing, description):
    """Write (D, H, W) as MosMedData does: axis codes L, A, S, qform and sform code 1."""
    z, y, x = spacing
    data = volume[:, ::-1].transpose(2, 1, 0)
    affine = np.diag([-x, y, z, 1.0])
    affine[:3, 3] = x * (data.shape[0] - 1) / 2, -y * (data.shape[1] - 1) / 2, 0
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header["descrip"] = description
    image.header.set_xyzt_units("mm")
    save(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def save(path, content: bytes) -> None:
    """Write a file that appears when it is whole."""
    write_whole(path, lambda file: file.write(content))


def make_all(make, jobs, workers, what, unit) -> list:
    """make(job) of every job, in their order, by several processes (None: one a usable core)."""
    workers = min(workers or joblib.cpu_count(), max(len(jobs), 1))
    with start_workers(workers) as pool:
        try:
            made = pool.map(make, jobs) if workers > 1 else map(make, jobs)
            bar = progress(made, what, len(jobs), unit=unit, disable=not jobs)
            return list(bar)
        except BrokenExecutor:
            raise RuntimeError(KILLED) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _make_one(root, matrix, n_slices, job):
    """Simulate and write one study of a cohort; the study's file comes last."""
    study = make_study(job["seed"], job["category"], matrix, n_slices, job["scanner"])
    row = job | {"involved_fraction": round(study.involved_fraction, 6), "matrix": matrix}
    row |= {"n_slices": len(study.hu), "spacing_z": study.spacing[0]}
    row |= {"spacing_xy": study.spacing[1]}
    save(root / "truth" / f"{job['study_id']}.json", json.dumps(row).encode())
    if job["mask_file"]:
        path = root / job["mask_file"].lstrip("/")
        _save_nifti(path, study.mask, study.spacing, "synthetic lesion mask, course phantom")
    path = root / job["study_file"].lstrip("/")
    _save_nifti(path, study.hu, study.spacing, "synthetic chest CT, course phantom")


def _plan(counts, seed, scanner_shortcut):
    """One row per study: id, class, files, its own seed and scanner."""
    jobs = []
    for category in (c for c in CATEGORIES for _ in range(counts.get(c, 0))):
        study_id = f"study_{len(jobs) + 1:04d}"
        sequence = np.random.SeedSequence([seed, len(jobs)])
        rng = np.random.default_rng(sequence)
        scanner = str(rng.choice(list(SCANNERS)))
        if scanner_shortcut and rng.random() < 0.9:
            scanner = "A" if category == "CT-0" else "B"
        mask_file = "" if category == "CT-0" else f"/masks/{study_id}_mask.nii.gz"
        jobs.append(
            {
                "study_id": study_id,
                "category": category,
                "study_file": f"/studies/{category}/{study_id}.nii.gz",
                "mask_file": mask_file,
                "scanner": scanner,
                "seed": int(sequence.generate_state(1)[0]),
            }
        )
    return jobs


def make_cohort(
    root, counts=None, matrix=192, seed=2020, workers=None, scanner_shortcut=False, n_slices=None
) -> Path:
    """Write a cohort of synthetic studies in MosMedData's layout and return its folder.

    root: folder, made if missing; studies that are there are kept. counts: studies per category,
    numbered through in the order CT-0 .. CT-4. matrix: pixels per side. n_slices: see make_study.
    workers: processes (default: all cores); the cohort is the same for any number.
    scanner_shortcut: True puts most diseased studies on scanner B and most healthy ones on A.
    `phantom_truth.csv` holds the truth of every study. Raises ValueError when the folder holds
    a cohort of other settings or a category is unknown.
    """
    root = Path(root)
    counts = dict(DEFAULT_COUNTS if counts is None else counts)
    if unknown := set(counts) - set(CATEGORIES):
        raise ValueError(f"counts: unknown category {sorted(unknown)}; use {', '.join(CATEGORIES)}")
    settings = {"version": VERSION, "counts": counts, "matrix": matrix, "seed": seed}
    settings |= {"scanner_shortcut": scanner_shortcut, "n_slices": n_slices}
    _claim_folder(root, settings)
    jobs = _plan(counts, seed, scanner_shortcut)
    missing = [job for job in jobs if not _is_complete(root, job)]
    make = partial(_make_one, root, matrix, n_slices)
    make_all(make, missing, workers, "phantom studies", "study")
    if missing or not (root / "phantom_truth.csv").exists():
        _write_tables(root, jobs)
    return root


def _claim_folder(root, settings):
    path = root / "phantom_settings.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != settings:
            changed = [k for k in settings if found.get(k) != settings[k]]
            raise ValueError(
                f"{root} holds a phantom cohort made with another {', '.join(changed)}; "
                "choose another folder or delete this one"
            )
    else:
        save(path, json.dumps(settings, indent=1).encode())


def _is_complete(root, job):
    files = [job["study_file"], job["mask_file"] or job["study_file"]]
    files.append(f"truth/{job['study_id']}.json")
    return all((root / name.lstrip("/")).exists() for name in files)


def _write_tables(root, jobs):
    """The registry in MosMedData's columns, and phantom_truth.csv beside it."""
    registry = pd.DataFrame(jobs)[["study_id", "category", "study_file", "mask_file"]]
    registry = registry.replace({"mask_file": {"": None}})
    registry.to_excel(stream := io.BytesIO(), index=False)
    save(root / "dataset_registry.xlsx", stream.getvalue())
    rows = [json.loads((root / f"truth/{j['study_id']}.json").read_text("utf-8")) for j in jobs]
    truth = pd.DataFrame(rows).drop(columns=["study_file", "mask_file"])
    save(root / "phantom_truth.csv", truth.to_csv(index=False, lineterminator="\n").encode())
