"""A seeded simulator of thoracic CT in MosMedData's layout: the course's built-in cohort.

The studies are synthetic: not patients, and no substitute for them. What they offer is a known
truth (lesion masks, involved fraction, scanner) that runs anywhere without a download.
"""

from __future__ import annotations

import gzip
import io
import json
import math
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
VERSION = 2


@dataclass(frozen=True)
class Scanner:
    """How one scanner shows the same body; lengths in mm, HU otherwise."""

    noise: float
    sharpness: float  # above 0 a sharp kernel, below 0 a soft one
    padding: int | None  # HU outside the circular field of view; None: the square is filled
    offset: float
    table_curve: float  # 1 / mm
    grain: float  # smoothness of the noise, pixels
    gap: float = 8.0  # between slices
    view: tuple[float, float] = (1.0, 1.2)  # side of the image, in widths of the chest
    shift: tuple[float, float] = (0.0, 0.0)  # of the patients from the middle, back and left
    table: tuple[float, float, float] = (4, 34, 22)  # least and greatest distance, thickness
    table_hu: tuple[float, float] = (-150, -420)  # of its upper and lower face
    arms_down: float = 0.0  # share of the patients with their arms beside the chest


@dataclass(frozen=True)
class Site:
    """A hospital: its scanners, and what the lungs of its patients show; lengths in mm."""

    scanners: dict[str, Scanner]
    expiration: float = 0.0  # how much higher than usual the diaphragms stand
    atelectasis: tuple[float, float] = (2, 12)  # thickness of the collapsed lung at the back
    emphysema: float = 0.3  # share of the patients
    n_foci: float = 1.0  # times the usual number of patches of COVID-19
    radius: tuple[float, float] = (15, 38)  # of a patch
    rim: tuple[float, float] = (14, 50)  # depth over which patches, and their extent, fade
    front: float = 0.12  # preference of patches for the front; 1 more at the back
    heights: tuple[float, float, float] = (1, 0.6, 0.15)  # the same at base, middle and apex
    edge: tuple[float, float] = (0.04, 0.1)  # half its width, in radii of a patch
    opacity: tuple[float, float] = (220, 370)  # HU that ground glass adds to the lung
    dense_share: tuple[float, ...] = (0.06, 0.12, 0.22)  # consolidation, of the lesions at most


SITES = {
    "home": Site({
        "A": Scanner(13, -0.95, None, -4, 0.0012, 0.75),
        "B": Scanner(32, 0.9, -2000, 5, 0.0005, 0.5),
        "C": Scanner(22, 0.3, -3024, 0, 0.0016, 0.5),
        "D": Scanner(18, -0.6, None, 3, 0.0, 0.75),
    }),
    # Nothing is trained or chosen on it: it measures what transfers. Shallower breaths; few, large,
    # well-defined lesions, faint or dense, also near the hilum, in front and at the apex.
    "elsewhere": Site({
        # low dose, sharp kernel, close slices, a tight view, the patient deep in a cradle
        "E": Scanner(54, 1.6, -1024, 8, 0.0026, 0.3, gap=5.0, view=(0.94, 1.02), table=(0, 3, 34)),
        # soft kernel, distant slices, a wide view with the arms in it, a thick bright table
        "F": Scanner(7, -1.6, None, -9, 0.0, 1.0, gap=10.0, view=(1.3, 1.5), shift=(22.0, -18.0),
                     table=(34, 44, 40), table_hu=(40, -60), arms_down=0.6),
        # iterative reconstruction: sharp, and yet a low, blotchy noise
        "G": Scanner(8, 1.4, -2048, -7, 0.0004, 1.3, gap=10.0, view=(1.22, 1.35),
                     shift=(-16.0, 12.0), table=(0, 3, 12), table_hu=(-40, -40)),
        }, expiration=7.0, atelectasis=(8, 24), emphysema=0.45, n_foci=0.5, radius=(26, 60),
        rim=(45, 200), front=0.6, heights=(0.6, 0.9, 1), edge=(0.015, 0.04), opacity=(170, 430),
        dense_share=(0.05, 0.15, 0.35)),
}  # fmt: skip


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


def _check(what, name, names):
    if name not in names:
        raise ValueError(f"{what} {name!r} is unknown; use one of {', '.join(names)}")


def make_study(seed, category, matrix=512, n_slices=None, scanner=None, site="home"):
    """Simulate one study; returns a PhantomStudy.

    seed: int; the same seed gives the same patient on the same scanner in every category.
    category: "CT-0" .. "CT-4". n_slices: drawn when None (at home 33..53, 8 mm apart); with too
    few, they move apart so that they still span the chest. scanner: one of the site's ("A".."D"
    at home), drawn when None. site: a key of SITES. Raises ValueError for an unknown category,
    scanner or site, or a size too small to show a chest.
    """
    _check("category", category, CATEGORIES)
    _check("site", site, SITES)
    hospital = SITES[site]
    if scanner is not None:
        _check("scanner", scanner, hospital.scanners)
    if matrix < 32 or (n_slices is not None and n_slices < 4):
        raise ValueError(f"matrix {matrix}, n_slices {n_slices}: use at least 32 and 4")
    streams = np.random.SeedSequence(seed).spawn(4)
    body, lungs, lesion, machine = (np.random.default_rng(s) for s in streams)
    scanner = scanner or str(machine.choice(list(hospital.scanners)))
    device = hospital.scanners[scanner]
    usual = n_slices * device.gap / 8 if n_slices else np.rint(body.normal(41, 3.6))
    length = 8 * float(np.clip(usual, 33, 53))
    n_slices = n_slices or math.ceil(length / device.gap)
    gap = max(device.gap, length / n_slices)
    expiration = hospital.expiration + float(body.gamma(1.6, 8.0))
    patient = draw_patient(body, np.clip(length * body.uniform(0.8, 0.94), 235, 345), expiration)
    patient.shift = tuple(a + b for a, b in zip(patient.shift, device.shift, strict=True))
    patient.arms_down = bool(device.arms_down and machine.random() < device.arms_down)
    top = 114 * patient.scale[0] + body.uniform(2, 30)
    levels = (top - gap * np.arange(n_slices)[::-1]) / patient.scale[0]
    width = 2 * (136 + 9 + 12 * patient.muscle + patient.fat) * patient.scale[2]
    low = 0.58 * device.view[0]
    spacing = float(np.clip(width * body.uniform(*device.view) / 512, low, 1.15)) * 512 / matrix
    fields = disease.smooth_noise(body, (n_slices, 72, 72), (8 / gap, 1.3, 1.3))
    anatomy = draw_anatomy(patient, levels.astype(np.float32), matrix, spacing, fields)
    hu, mask, lung = _fill_lungs(anatomy, category, expiration, lungs, lesion, hospital)
    hu = _scan(machine, hu, device, anatomy)
    inside = int(lung.sum())
    fraction = float(mask.sum() / inside) if inside else 0.0
    return PhantomStudy(hu, mask, lung, category, fraction, (gap, spacing, spacing), scanner)


def _fill_lungs(anatomy, category, expiration, rng, lesion_rng, site):
    """Put vessels, airways, disturbances and lesions into the lungs; returns HU, mask, lung."""
    frame = disease.LungFrame(anatomy)
    vessels, walls, lumina = disease.vessels_and_airways(rng, anatomy, frame)
    sick = category != "CT-0"
    aerated = disease.disturbances(rng, frame, sick, expiration, site)
    vessels = np.maximum(vessels, disease.splat(disease.nodules(rng, frame), anatomy))
    lung = anatomy.lung > 0.5
    mask = np.zeros(lung.shape, np.uint8)
    lesions = disease.Lesions(lesion_rng, frame, category, lung, site) if sick else None
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
    nearest, farthest, thickness = scanner.table
    top = back + rng.uniform(nearest, farthest) - scanner.table_curve * x**2
    bedding = Bedding(rng, pixel)
    blur = abs(scanner.sharpness) * matrix / 512
    noise_level = scanner.noise * rng.uniform(0.8, 1.25) * np.sqrt(matrix / 512)
    share = [np.clip(0.5 + (1.6 - np.abs(y - top - d)) / pixel, 0, 1) for d in (0, thickness)]
    out = np.empty(hu.shape, np.int16)
    breathing = round(rng.uniform(2, 5) / pixel) if rng.random() < 0.25 else 0
    for k, image in enumerate(hu):
        if breathing and anatomy.levels[k] < -40:
            moved = np.roll(image, breathing, axis=0) - image
            image = image + np.clip((40 - plane.y) / 75, 0, 0.4) * moved
        bedding.cover(image, (y < top) & (y > back - 45))
        image += 30 * ((y > top) & (image < -900))
        for line, value in zip(share, scanner.table_hu, strict=True):
            image += line * np.maximum(value - image, 0) * (y > top - 4)
        soft = ndimage.gaussian_filter(image, max(blur, 0.35), truncate=3)
        image = soft if scanner.sharpness < 0 else image + 0.5 * scanner.sharpness * (image - soft)
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        smooth = ndimage.gaussian_filter(noise, scanner.grain, truncate=3)
        image = image + smooth * np.float32(noise_level / smooth.std()) + scanner.offset
        out[k] = np.rint(np.clip(image, -1024, 3071))
    if scanner.padding is not None:
        out[:, np.hypot(x, y) > matrix * pixel / 2] = scanner.padding
    return out


def save_nifti(path, volume, spacing, description):
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


def _make_one(root, matrix, n_slices, site, job):
    """Simulate and write one study of a cohort; the study's file comes last."""
    study = make_study(job["seed"], job["category"], matrix, n_slices, job["scanner"], site)
    row = job | {"involved_fraction": round(study.involved_fraction, 6), "matrix": matrix}
    row |= {"n_slices": len(study.hu), "spacing_z": study.spacing[0]}
    row |= {"spacing_xy": study.spacing[1]}
    save(root / "truth" / f"{job['study_id']}.json", json.dumps(row).encode())
    if job["mask_file"]:
        path = root / job["mask_file"].lstrip("/")
        save_nifti(path, study.mask, study.spacing, "synthetic lesion mask, course phantom")
    path = root / job["study_file"].lstrip("/")
    save_nifti(path, study.hu, study.spacing, "synthetic chest CT, course phantom")


def _plan(counts, seed, site="home"):
    """One row per study: id, class, files, its own seed and scanner."""
    jobs, scanners = [], list(SITES[site].scanners)
    for category in (c for c in CATEGORIES for _ in range(counts.get(c, 0))):
        study_id = f"study_{len(jobs) + 1:04d}"
        sequence = np.random.SeedSequence([seed, len(jobs)])
        rng = np.random.default_rng(sequence)
        scanner = str(rng.choice(scanners))
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
    root, counts=None, matrix=192, seed=2020, workers=None, n_slices=None, site="home"
) -> Path:
    """Write a cohort of synthetic studies in MosMedData's layout and return its folder.

    root: folder, made if missing; studies that are there are kept. counts: studies per category,
    numbered through in the order CT-0 .. CT-4. matrix: pixels per side. n_slices: see make_study.
    workers: processes (default: all cores); the cohort is the same for any number.
    site: a key of SITES; the patients differ if the seed does. `phantom_truth.csv` holds the truth
    of every study. Raises ValueError when the folder holds a cohort of other settings or a category
    or the site is unknown.
    """
    root = Path(root)
    counts = dict(DEFAULT_COUNTS if counts is None else counts)
    for category in counts:
        _check("category", category, CATEGORIES)
    _check("site", site, SITES)
    settings = {"version": VERSION, "counts": counts, "matrix": matrix, "seed": seed}
    settings |= {"n_slices": n_slices}
    settings |= {} if site == "home" else {"site": site}
    _claim_folder(root, settings)
    jobs = _plan(counts, seed, site)
    missing = [job for job in jobs if not _is_complete(root, job)]
    make = partial(_make_one, root, matrix, n_slices, site)
    make_all(make, missing, workers, "phantom studies", "study")
    if missing or not (root / "phantom_truth.csv").exists():
        _write_tables(root, jobs)
    return root


def _claim_folder(root, settings):
    path = root / "phantom_settings.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        found.pop("scanner_shortcut", None)  # in folders that older versions made: always False
        if found != settings:
            changed = [k for k in settings | found if found.get(k) != settings.get(k)]
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
