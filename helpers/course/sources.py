"""Where studies and images come from: the phantom, a download, or a folder of yours."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

from helpers.covidct import covid_ct
from helpers.ct import layouts
from helpers.ct.layouts import CohortError


@dataclass(frozen=True)
class ImageProfile:
    """The sizes for 2-D images.

    counts: images of the phantom, COVID and others. size: pixels a side. width: of the small CNN.
    epochs: of it, of DenseNet169 and of pre-training. finetuning_epochs: of EfficientNet-Lite0.
    n_seeds: of the small CNN and of DenseNet169. imagenet: try to get DenseNet169's weights.
    """

    counts: tuple[int, int]
    size: int
    width: int
    epochs: tuple[int, int, int]
    finetuning_epochs: int
    n_seeds: tuple[int, int]
    imagenet: bool


@dataclass(frozen=True)
class Profile:
    """The sizes of one way to take the course; `tiny` is for tests of the machinery alone.

    counts, matrix: studies of each category in the phantom cohort, and their pixels a side. size:
    (D, H, W) that the networks see. opponent: the 3-D CNN. n_folds, n_seeds: of a cross-validation.
    images: what holds for 2-D images.
    """

    counts: dict[str, int]
    matrix: int
    size: tuple[int, int, int]
    batch_size: int
    epochs: int
    opponent_width: int
    opponent_epochs: int
    finetuning_epochs: int
    n_folds: int
    n_seeds: int
    images: ImageProfile


PROFILES = {
    "tiny": Profile(
        *({"CT-0": 8, "CT-2": 6, "CT-3": 2}, 64, (16, 48, 48), 4, 2, 4, 1, 1, 2, 1),
        ImageProfile((30, 36), 32, 8, (2, 1, 2), 1, (1, 1), imagenet=False),
    ),
    "quick": Profile(
        *({"CT-0": 60, "CT-2": 44, "CT-3": 16}, 192, (32, 96, 96), 4, 12, 8, 4, 1, 5, 3),
        ImageProfile((120, 140), 64, 16, (16, 1, 30), 4, (2, 1), imagenet=False),
    ),
    "full": Profile(
        *({"CT-0": 100, "CT-2": 74, "CT-3": 26}, 512, (64, 256, 256), 4, 40, 64, 40, 4, 5, 3),
        ImageProfile((349, 397), 224, 32, (60, 20, 100), 12, (3, 3), imagenet=True),
    ),
}

PHANTOMS = {  # site, seed (no patient is in both), what the caption calls it
    "phantom": ("home", 2020, "phantom"),
    "phantom-elsewhere": ("elsewhere", 2021, "phantom of another hospital"),
}
DATASETS = (*PHANTOMS, "phantom-export", "mosmed", "kaggle")
MOSMED_CAPTION = "MosMedData (Morozov et al. 2020), CC BY-NC-ND 3.0."
KAGGLE_INPUT = Path("/kaggle/input")  # on Kaggle, what was added to a notebook lies somewhere below
KAGGLE_SET = "mathurinache/mosmeddata-chest-ct-scans-with-covid19"


def find_profile(name) -> Profile:
    """The profile of this name; ValueError for an unknown one."""
    if name not in PROFILES:
        raise ValueError(f'PROFILE is "{name}"; choose one of {", ".join(PROFILES)}')
    return PROFILES[name]


def get_studies(
    dataset="phantom", profile="quick", data_dir="data", mirror=""
) -> tuple[Path, Path, str]:
    """Make sure that the studies are there; returns where, a work folder and a caption.

    dataset: "phantom" (made here), "phantom-elsewhere" (made here, another hospital's: for what
    transfers, never to train or choose on), "phantom-export" (a hospital's DICOM folders, in which
    not all is well), "mosmed" (downloaded), "kaggle" (`kaggle_folder`), or
    a folder or table of yours, of any layout that `layouts` knows. What is returned first is what
    `cohort.find_studies` takes: a folder, or the table. The work folder is below `data_dir`;
    nothing is ever written into a folder of yours. CohortError if there are no studies.
    mirror: a folder that outlives this machine, on a mounted Drive for example. A missing work
    folder is restored from it, and a new one is kept there. MirrorError if it cannot be reached.
    """
    root, work, caption = bring_studies(dataset, profile, data_dir, mirror)
    if mirror:
        from helpers.storage.mirror import archive_of

        if not archive_of(work, mirror).exists():
            Keeper(work, mirror)()
    return root, work, caption


def bring_studies(dataset, profile, data_dir, mirror):
    """Restore, make or download; what `get_studies` returns."""
    if dataset in PHANTOMS:
        from helpers.phantom import simulate

        root, sizes = Path(data_dir).expanduser() / f"{dataset}-{profile}", find_profile(profile)
        site, seed, words = PHANTOMS[dataset]
        restore(root, mirror)
        simulate.make_cohort(root, sizes.counts, sizes.matrix, seed, site=site)
        return root, root, f"Synthetic {words}, not a patient."
    if dataset == "phantom-export":
        from helpers.ct import dicom
        from helpers.phantom import dicom_export

        work, kind = Path(data_dir).expanduser() / f"{dataset}-{profile}", dicom.is_installed()
        restore(work, mirror)
        n, matrix = 12 if profile == "tiny" else 16, find_profile(profile).matrix
        root = work / ("dicom" if kind else "nifti")
        dicom_export.make_hospital(root, n, matrix, as_dicom=kind)
        return root, work, "Synthetic phantom of a third hospital, not a patient."
    if dataset == "mosmed":
        from helpers.ct import mosmed

        root = Path(data_dir).expanduser() / "mosmed"
        restore(root, mirror)
        mosmed.download(root)
        return root, root, MOSMED_CAPTION
    if dataset == "kaggle":
        work = Path(data_dir).expanduser() / dataset
        restore(work, mirror)
        return kaggle_folder(), work, MOSMED_CAPTION
    root = Path(dataset).expanduser()
    if not layouts.layout_of(root):
        text = f"{dataset}: no studies there; DATASET is {', '.join(DATASETS)}, {layouts.ACCEPTED}"
        raise CohortError(text)
    digest = hashlib.sha1(str(root.resolve()).encode(), usedforsecurity=False).hexdigest()[:8]
    name = root.resolve().stem if root.is_file() else root.resolve().name
    work = Path(data_dir).expanduser() / f"{name}-{digest}"
    restore(work, mirror)
    return root, work, f"Studies of {root.name}."


def kaggle_folder() -> Path:
    """Kaggle's copy of MosMedData (11.9 GB): as Kaggle has mounted it, or as kagglehub fetches it.

    CohortError, in one line, where neither works.
    """
    by_hand = f"get kaggle.com/datasets/{KAGGLE_SET} (11.9 GB) by hand and give its folder"
    mounted = layouts.mosmed_places(KAGGLE_INPUT, depth=5)
    if mounted:
        own = [place for place in mounted if KAGGLE_SET.split("/")[1] in place.parts]
        return layouts.mosmed_root([*own, *mounted][0])
    try:
        import kagglehub
    except ImportError:
        text = "kaggle: the package kagglehub is not installed; pip install kagglehub"
        raise CohortError(f"{text}, or {by_hand} as DATASET") from None
    try:
        root = Path(kagglehub.dataset_download(KAGGLE_SET))
    except Exception as error:  # of whatever library below: no token, no network, no room
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        text = f"kaggle: {KAGGLE_SET} cannot be fetched ({reason}); check connection and token"
        raise CohortError(f"{text}, or {by_hand} as DATASET") from None
    if not layouts.mosmed_places(root):
        raise CohortError(f"{root}: no studies/CT-*/study_* in it; delete it and fetch it again")
    return root


def restore(folder, mirror):
    """Bring a missing folder back from the mirror, if there is one."""
    if mirror:
        from helpers.storage import mirror as kept

        kept.restore(folder, mirror)


class Keeper:
    """Call it to mirror the folder; where that fails, the first failure is a warning."""

    def __init__(self, folder, mirror):
        self.folder, self.mirror, self.has_warned = folder, mirror, False

    def __call__(self):
        from helpers.storage.mirror import MirrorError, keep

        try:
            keep(self.folder, self.mirror)
        except MirrorError as error:
            if not self.has_warned:
                warnings.warn(f"not mirrored: {error}", stacklevel=2)
            self.has_warned = True


def get_images(dataset="phantom", data_dir="data", profile="quick") -> tuple[Path, str]:
    """Make sure that the images are there; returns their folder and a caption for every figure.

    dataset: "phantom" (a synthetic twin, made here), "covid-ct" (downloaded) or a folder in
    COVID-CT's layout. profile: size of the phantom, a key of PROFILES.
    """
    if dataset == "phantom":
        from helpers.phantom import covidct_twin

        counts = find_profile(profile).images.counts
        root = Path(data_dir).expanduser() / f"covid-ct-phantom-{profile}"
        return covidct_twin.make_twin(root, *counts), covidct_twin.CAPTION
    if dataset == "covid-ct":
        return covid_ct.download(
            Path(data_dir).expanduser() / "covid-ct"
        ), f"COVID-CT: {covid_ct.CREDIT}."
    root = Path(dataset).expanduser()
    if not (root / "Data-split").is_dir():
        text = f'{dataset}: no folder with Data-split/; give "phantom", "covid-ct" or a data set'
        raise covid_ct.CovidCTError(text)
    return root, f"Images of {root.name}."
