"""What the notebooks on 2-D images begin with: images that are ready, and a trained model.

Nothing here teaches; it puts together what the notebooks explain, so that any of them can be the
first one opened. `runs` does the same for 3-D studies.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import torch
from PIL import Image

from helpers.course import sources
from helpers.covidct import audit, covid_ct
from helpers.learn import features, networks, prediction, training
from helpers.learn.augmentation import PUBLISHED
from helpers.learn.checkpoints import fingerprint
from helpers.scores import baselines, metrics
from helpers.storage.files import is_system_file, write_whole

NETWORKS = {"small": "small CNN", "densenet169": "DenseNet169", "lite0": "EfficientNet-Lite0"}
CLASS_FOLDERS = {"COVID": 1, "non-COVID": 0, "NonCOVID": 0}
SPLITS = {"official": "part", "clean": "clean_part"}
COURSE = {"learning_rate": 1e-3, "weight_decay": 0.05, "batch_size": 32}
COURSE |= {"augment": PUBLISHED, "keep": "last"}
# Options of `training.fit`. "published": He et al. 2020, medRxiv 2020.04.13.20063941; AdamW without
# weight decay is Adam. "course": the same crops and flips with larger batches, a warm-up and a
# cosine. "fine-tuning": few epochs at a small learning rate, since the weights are good already.
RECIPES = {
    "published": {
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "batch_size": 10,
        "augment": PUBLISHED,
        "warmup": 0.0,
        "schedule": "constant",
        "clip": math.inf,
        "class_weighting": False,
        "keep": "best",
    },
    "course": COURSE,
    "fine-tuning": COURSE | {"learning_rate": 2e-4},
}


@dataclass(frozen=True)
class ImageData:
    """A collection of images, ready to train on.

    table: one row an image, with label (1 = COVID), part (the official split), clean_part
    ("" = left out) and patient. images: uint8, (N, 1, H, W), in the table's order. caption: what
    every figure of these images must say.
    """

    table: pd.DataFrame
    images: np.ndarray
    caption: str
    profile: sources.ImageProfile
    run_name: str

    @property
    def labels(self) -> np.ndarray:
        """The label of each image, (N,)."""
        return self.table.label.to_numpy()

    @property
    def patients(self) -> np.ndarray:
        """The patient of each image, (N,)."""
        return self.table.patient.to_numpy()

    def rows(self, part: str, split: str = "official") -> np.ndarray:
        """The rows of one part ("train", "validation", "test") of the official or clean split."""
        return np.flatnonzero(self.table[SPLITS[split]] == part)

    def rows_for_pretraining(self) -> np.ndarray:
        """The rows that both splits train on: no image of any validation or test part."""
        return np.intersect1d(self.rows("train"), self.rows("train", "clean"))


def prepare(images="phantom", profile="quick", data_dir="data", seed=0, size=0) -> ImageData:
    """Decode a collection once, letterboxed and grey, with its official and its cleaned split.

    images: "phantom", "covid-ct" or a folder, see `sources.get_images`. profile: a key of
    `sources.PROFILES`. size: pixels a side, 0 for the profile's. What was decoded is kept below
    `data_dir`, under a name that changes with the collection's files; nothing is written into a
    folder of yours. ValueError for an unknown profile or a size below 32, CovidCTError for a
    collection that is not as it should be.
    """
    sizes = sources.find_profile(profile).images
    size = size or sizes.size
    if size < 32:
        raise ValueError(f"SIZE is {size}; the networks need 32 pixels a side at least")
    root, caption = sources.get_images(images, data_dir, profile)
    table = covid_ct.read_collection(root)
    # all that it is made from: pixels, splits, and the patients and papers of the metadata
    content = "".join(pooch.file_hash(str(root / file), alg="sha1") for file in covid_ct.FILES)
    key = hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()[:8]
    work = Path(data_dir).expanduser() / f"images-{root.resolve().name}-{key}"
    pixels, split = work / f"{size}x{size}.npy", work / f"clean-split-seed{seed}.csv"
    if not (pixels.exists() and split.exists()):
        decoded = covid_ct.read_images(root, table)
        pairs = audit.near_duplicates(decoded, table)
        clean, _ = audit.cleaned_split(table, pairs, seed)
        audit.save_split(clean, split)
        squares = np.stack([covid_ct.letterbox(image, (size, size)) for image in decoded])
        write_whole(pixels, lambda file: np.save(file, squares[:, None]))
    part = audit.load_split(split, table).set_index("image").part
    table["clean_part"] = part[table.image].to_numpy()
    run_name = f"{root.resolve().name}-{size}px-{key}"
    return ImageData(table, np.load(pixels), caption, sizes, run_name)


def read_slices(folder, size: int) -> np.ndarray:
    """The images of a folder, for learning without labels: uint8 (N, size, size).

    PNG or JPEG, made grey and letterboxed, in the order of their names. CovidCTError for a folder
    without any, and for a file that cannot be read.
    """
    endings = (".png", ".jpg", ".jpeg")
    listed = sorted(Path(folder).expanduser().glob("*"))
    paths = [path for path in listed if path.suffix.lower() in endings]
    paths, slices = [path for path in paths if not is_system_file(path.name)], []
    if not paths:
        text = f"{folder}: no folder with PNG or JPEG images; give another, or none"
        raise covid_ct.CovidCTError(text)
    for path in paths:
        try:
            with Image.open(path, formats=["PNG", "JPEG"]) as image:
                grey = covid_ct.to_grey(image)
        except Exception as error:  # a damaged file can fail in any way
            reason = " ".join(str(error).split()).split(" '")[0] or type(error).__name__
            text = f"{path}: cannot be read ({reason}); delete it, or copy it again"
            raise covid_ct.CovidCTError(text) from None
        slices.append(covid_ct.letterbox(grey, (size, size)))
    return np.stack(slices)


def read_elsewhere(folder, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Another collection: uint8 (N, 1, size, size) and its labels (N,), 1 = COVID.

    folder: holds COVID/ and non-COVID/ (or NonCOVID/) with images as `read_slices` takes them.
    CovidCTError for a folder that is missing or without images, and for a file that is none.
    """
    root, found = Path(folder).expanduser(), []
    for name, label in CLASS_FOLDERS.items():
        if (root / name).is_dir() and label not in [known for known, _ in found]:
            found.append((label, read_slices(root / name, size)))
    if len(found) < 2:
        text = f"{folder}: must hold the folders COVID and non-COVID; give their parent folder"
        raise covid_ct.CovidCTError(text)
    labels = np.repeat([label for label, _ in found], [len(part) for _, part in found])
    return np.concatenate([part for _, part in found])[:, None], labels


def new_model(which: str, profile: sources.ImageProfile, seed=0, imagenet=False):
    """A classifier of grey images, seeded and untrained: a key of NETWORKS.

    imagenet: begin DenseNet169 with ImageNet weights, where a hub answers; Lite0 always has them,
    and trains its last block only; the small CNN never. ValueError for another name, WeightsError
    without Lite0's weights.
    """
    _check_name("network", which, NETWORKS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if which == "small":
            return networks.ImageClassifier(networks.SmallCNN(profile.width))
        if which == "lite0":
            return networks.ImageClassifier(networks.Lite0Encoder().freeze_early())
        encoder = networks.TorchvisionEncoder(pretrained=imagenet)
        return networks.ImageClassifier(encoder)


def train(
    data: ImageData,
    which="small",
    recipe="course",
    split="official",
    seed=0,
    runs_dir="runs",
    encoder_weights=None,
    start="random",
    **options,
):
    """Train a classifier, or load it where it is trained; returns the model and its history.

    which: a key of NETWORKS. recipe: a key of RECIPES. split: "official" or "clean".
    The published recipe keeps the epoch with the lowest validation loss. The others keep the
    last one, whose learning rate has come down to almost 0: with some hundred images the loss
    rises while the AUC still does.

    encoder_weights: state of an encoder to begin with; `start` names where they come from, and
    stands in the run's name with a fingerprint of them. start="imagenet" gets ImageNet's; where
    DenseNet169's cannot be had the run begins at random, and is named so. options: passed on to
    `training.fit`. An unfinished run is resumed.
    """
    _check_name("recipe", recipe, RECIPES)
    _check_name("split", split, SPLITS)
    if which == "lite0" and encoder_weights is None:
        start = "imagenet"
    model = new_model(which, data.profile, seed, imagenet=start == "imagenet")
    if start == "imagenet" and not getattr(model.encoder, "pretrained", False):
        start = "random"
    if encoder_weights is not None:
        model.encoder.load_state_dict(encoder_weights)
        values = [value.detach().cpu().numpy() for value in encoder_weights.values()]
        start = f"{start}-{fingerprint(*values)}"
    run_dir = (
        Path(runs_dir).expanduser() / f"{which}-{start}-{recipe}-{split}-{data.run_name}-seed{seed}"
    )
    small, dense, _ = data.profile.epochs
    epochs = {"small": small, "densenet169": dense, "lite0": data.profile.finetuning_epochs}[which]
    options = {"epochs": epochs, "patience": epochs} | RECIPES[recipe] | options
    parts = data.rows("train", split), data.rows("validation", split)
    history = training.fit(model, data.images, data.labels, *parts, run_dir, seed=seed, **options)
    return model, history


def probabilities(data: ImageData, model, pictures=None) -> np.ndarray:
    """Probability of COVID of every image, (N,): the mean over the image and its mirror image.

    pictures: uint8 (N, 1, H, W), to be answered for instead of the collection's.
    """
    pictures = data.images if pictures is None else pictures
    rows = np.arange(len(pictures))
    mirrored = np.ascontiguousarray(pictures[..., ::-1])
    both = [prediction.predict(model, images, rows, 64)[0] for images in (pictures, mirrored)]
    return np.mean(both, axis=0)


def frozen_features(pictures: np.ndarray, folder="") -> np.ndarray:
    """What EfficientNet-Lite0 sees in each picture, with ImageNet's weights: float32 (N, 2560).

    pictures: uint8 (N, 1, H, W). folder: keeps them, see `features.encode_scans`. WeightsError.
    """
    encoder = networks.Lite0Encoder()
    if not len(pictures):
        return np.empty((0, encoder.features), np.float32)
    return features.encode_scans(encoder, pictures, folder)[:, 0].astype(np.float32)


def probe(data: ImageData, split="official", seed=0, folder=""):
    """Frozen features and a logistic regression: probability of every image (N,), and the model.

    Fitted to the training part; model.predict_proba(frozen_features(pictures))[:, 1] answers for
    other pictures. folder: as for `frozen_features`.
    """
    seen, train = frozen_features(data.images, folder), data.rows("train", split)
    labels, patients = data.labels[train], data.patients[train]
    model = baselines.logistic_regression(seen[train], labels, seed, patients)
    return model.predict_proba(seen)[:, 1], model


def scores(data: ImageData, probability, split="official", seed=0) -> dict:
    """Read the test part: name -> Interval, by `metrics.evaluate`, and the threshold.

    probability: (N,), of every image. The threshold is chosen on the validation part of the split.
    """
    validation, test = data.rows("validation", split), data.rows("test", split)
    threshold = metrics.choose_threshold(data.labels[validation], probability[validation])
    labels, patients = data.labels[test], data.patients[test]
    found = metrics.evaluate(labels, probability[test], threshold, patients, seed)
    return found | {"threshold": threshold}


def _check_name(what, name, known):
    if name not in known:
        raise ValueError(f"{name!r} is no {what}; choose one of {', '.join(known)}")
