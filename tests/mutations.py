"""Does a test notice? Small faults are put into the code, one at a time, and its tests are run.

    python -m tests.mutations            # all of them
    python -m tests.mutations training   # those of one module

A fault is a slip of the hand in one line on which a result hangs: in reading, preprocessing, the
split, training, scores. It is made in a copy of the course, and caught if a test fails that is
named with its module. What is not caught is printed; the exit status is how many.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# module: its tests, and pairs of what stands there and what a slip makes of it
FAULTS = {
    "ct/preprocessing.py": (
        "fast volumes",
        [
            ("level - width / 2, level + width / 2", "level - width, level + width"),
            ("min(k + 1, stop) - max(k, start)", "min(k + 1, stop) - k"),
            ("(row + 0.5) * ratio - 0.5", "row * ratio"),
            (
                "weights[row, above] += centre - below",
                "weights[row, above] += 1 - (centre - below)",
            ),
            ("(width - height) / spacing[1]", "(width - height) / spacing[2]"),
            ("rows // 2, rows - rows // 2", "rows, 0"),
            ("np.rint(resample(scaled, size) * 255)", "np.floor(resample(scaled, size) * 255)"),
            ("study.spacing, fill=0)", "study.spacing, fill=1)"),
            ("spacing, fill=air)", "spacing, fill=0)"),
            ("0 < full <= 32767", "0 < full <= 65535"),
            ("for k in used[1:]", "for k in used[2:]"),
        ],
    ),
    "ct/studies.py": (
        "volumes odd_studies",
        [
            ('AXES = ("S", "P", "L")', 'AXES = ("S", "P", "R")'),
            ('AXES = ("S", "P", "L")', 'AXES = ("I", "P", "L")'),
            ("nib.affines.voxel_sizes(self.affine)", "nib.affines.voxel_sizes(stored.affine)"),
            ("        voxels = np.rint(voxels)", "        pass"),
            ("-32768, 32767).astype", "-1024, 3071).astype"),
            ("np.where(odd, AIR, voxels)", "np.where(odd, 0, voxels)"),
            ("min(study.spacing) / 2", "500"),
            ("mask.shape != study.shape", "False"),
            ("_read_voxels() > 0", "_read_voxels() > 1"),
            ('"soft tissue": (-150, 300)', '"soft tissue": (-1500, 300)'),
        ],
    ),
    "ct/nifti.py": (
        "volumes odd_studies",
        [("*header.get_slope_inter())", "header.get_slope_inter()[0], 0)")],
    ),
    "ct/dicom.py": (
        "dicom",
        [
            ("np.diag([-1.0, -1.0, 1.0])", "np.diag([1.0, -1.0, 1.0])"),
            ("np.cross(*self.orientation)", "np.cross(*self.orientation[::-1])"),
            (
                "rows * series.pixel[0], columns * series.pixel[1]",
                "rows * series.pixel[1], columns * series.pixel[0]",
            ),
            ("np.argsort(positions @ np.cross(*orientation)", "np.argsort(positions[:, 0]"),
            ("-one.n_slices, one.description", "one.n_slices, one.description"),
            ("series.is_axial and series.n_slices >= MIN_SLICES", "series.n_slices >= MIN_SLICES"),
            ("if first != second or", "if False and first != second or"),
            ("along = along[~is_again]", "pass"),
            ("<= MOST_UNEVEN * usual", "<= 2 * usual"),
            (") > MOST_TILTED:", ") > 90:"),
            (
                "[images[file][frame] for file, frame in slices]",
                "[images[file][0] for file, frame in slices]",
            ),
            ('header.get("Modality") == "CT"', "True"),
            ("key += tuple(np.round(orientation or [], 2))", "pass"),
            ("IN_RAS @ direction[:, ::-1]", "direction[:, ::-1]"),
        ],
    ),
    "ct/quality.py": (
        "quality",
        [
            ("total) / (down * right)", "total) / down"),
            ("np.percentile(middle, 75)", "np.percentile(middle, 5)"),
            ("value < low or value > high", "value > high"),
            ("if first != study:", "if False:"),
        ],
    ),
    "ct/cohort.py": (
        "cohort",
        [
            ('drop_duplicates("patient", keep="last")', 'drop_duplicates("study", keep="last")'),
            ("np.array(fractions) * n_dealt - dealt", "dealt - np.array(fractions) * n_dealt"),
            ('"CT-3": 1, "CT-23": 1}', '"CT-3": 0, "CT-23": 1}'),
            ("n_parts.index[n_parts > 1]", "n_parts.index[n_parts > 2]"),
            ("if (counts < 1).any(axis=None):", "if False:"),
            ("np.random.default_rng(seed)", "np.random.default_rng()"),
        ],
    ),
    "ct/layouts.py": (
        "cohort layouts",
        [
            ('rows[rows.patient != ""]', "rows"),
            ('f"{_stem(study)}_mask"', 'f"{_stem(study)}"'),
            ("first_of.setdefault(ids[original] or", "first_of.setdefault(ids[k] or"),
            ("len({*ids}) == 1 and ids[0]", "False"),
            ("counts[name(path, 4)] > 1", "counts[name(path, 4)] > 2"),
        ],
    ),
    "ct/cache.py": (
        "cohort layouts",
        [
            ('_content(files) == line["sha1"]', '_content(files) != ""'),
            (
                'np.load(array, mmap_mode="r")[row]',
                'np.load(array, mmap_mode="r")[0 if row is not ... else row]',
            ),
            ("limits[0]:g}to{limits[1]:g}", "limits[0]:g}"),
        ],
    ),
    "covidct/audit.py": (
        "audit",
        [
            ("pairs.correlation >= min_correlation", "pairs.correlation >= 0"),
            ("label[ends[0]] != label[ends[1]]", "label[ends[0]] == label[ends[1]]"),
            ("(official[rows] != part).sum()", "0"),
            ("1 if auc(labels[train], brightness[train]) >= 0.5 else -1", "1"),
        ],
    ),
    "covidct/covid_ct.py": (
        "covid_ct",
        [
            ('LABELS = {"COVID": 1, "NonCOVID": 0}', 'LABELS = {"COVID": 0, "NonCOVID": 1}'),
            ('"val": "validation", "test": "test"', '"val": "test", "test": "validation"'),
            ("size[::-1], Image.BILINEAR", "size[::-1], Image.NEAREST"),
            ('"white")', '"black")'),
        ],
    ),
    "scores/metrics.py": (
        "evaluation plots explanations",
        [
            ("inside.flat[heat.argmax()]", "inside.flat[heat.argmin()]"),
            ("lesion > 0.5", "lesion > 0"),
            ("n * (n + 1) / 2", "n * (n - 1) / 2"),
            ("counts.sum() ** 2 / np.sum(counts**2)", "len(counts)"),
            ("rankdata(scores)[labels == 1]", "rankdata(-scores)[labels == 1]"),
            ("((n + m) / 2 - 1)", "((n + m) / 2)"),
            ("found * (1 - 1e-12)", "1.0"),
            ("1 - lowest(1 - value)", "1.0"),
            ("2 * share / (1 + share)", "share / (1 + share)"),
            ("[0.025, 0.975]", "[0.05, 0.95]"),
            ("times[patient]", "1"),
            ("scores >= threshold).astype", "scores > threshold).astype"),
            ("z**2 / (2 * n)) / (1", "z**2 / n) / (1"),
            ("np.lexsort((np.diff(", "np.lexsort((-np.diff("),
            (
                "thresholds[sensitivity >= minimum].max()",
                "thresholds[sensitivity >= minimum].min()",
            ),
            ("beaten / np.bincount(labels)[1 - labels]", "beaten / np.bincount(labels)[labels]"),
            ("tp / tp[-1], grid - 1e-12", "tp / tp[-1], grid + 0.1"),
            (
                "quantile(probabilities, np.linspace(0, 1, n_bins + 1)",
                "quantile(probabilities, np.linspace(0, 1, n_bins + 2)",
            ),
            ("is_right[~is_ill], patients[~is_ill]", "is_right, patients"),
        ],
    ),
    "scores/baselines.py": (
        "evaluation",
        [("* bins // 256", "* bins // 255"), ("/ volume.size", "/ len(volume)")],
    ),
    "learn/training.py": (
        "training moco",
        [
            ("return (step + 1) / n_warmup", "return step / n_warmup"),
            ("math.cos(math.pi * progress)", "math.cos(progress)"),
            (
                "np.sum(labels == 0) / np.sum(labels == 1)",
                "np.sum(labels == 1) / np.sum(labels == 0)",
            ),
            ("nn.utils.clip_grad_norm_(model.parameters(), clip)", "pass"),
            ("pos_weight=pos_weight", "weight=pos_weight"),
            ("optimizer.zero_grad()", "pass"),
            ('p.ndim <= 1], "weight_decay": 0.0', 'p.ndim <= 1], "weight_decay": weight_decay'),
            ("    network.train()", "    pass"),
            ('settings["seed"], epoch)', 'settings["seed"])'),
            ("total += batch_loss * len(chosen)", "total += batch_loss"),
            ('folder / f"{keep}.pt"', 'folder / "best.pt"'),
            ('"data": describe(volumes, labels, train_rows, validation_rows)', '"data": ""'),
            ("roc_auc_score(labels, logits)", "roc_auc_score(labels, -logits)"),
            ("targets[own].to(", "targets[own].flip(0).to("),
        ],
    ),
    "learn/checkpoints.py": (
        "training moco",
        [
            ("epochs_since_best(history) == 0", "True"),
            ("    _load_optimizer(components, state, path)", "    pass"),
            ("losses.index(min(losses))", "losses.index(max(losses))"),
            ("if before != now:", "if False:"),
            (".tobytes(), checksum)", ".tobytes())"),
        ],
    ),
    "learn/augmentation.py": (
        "augmentation image_augmentation",
        [
            ("width * sine / ratio", "width * sine * ratio"),
            ("source.clamp(0, n_slices - 1)", "source.clamp(0, n_slices - 2)"),
            ("own = slice(first, first + len(volumes))", "own = slice(0, len(volumes))"),
            ("places / stretch.view(-1, 1)", "places * stretch.view(-1, 1)"),
            ("1 + draw(gain), draw(offset)", "1 + draw(gain), draw(gain)"),
        ],
    ),
    "learn/prediction.py": (
        "explanations training models",
        [
            ("w * m).sum(dim=1).relu()", "w * m).sum(dim=1).abs()"),
            ("slice(max(z - 1, 0), z + block[0] + 1)", "slice(z, z + block[0])"),
            ("fill / 255", "0"),
            (
                "fall in zip(places, (whole - model(hidden)[0])",
                "fall in zip(places, (model(hidden)[0] - whole)",
            ),
            ("hidden[each, each] =", "hidden[:, each] ="),
            ("to_voxels[0].abs()", "to_voxels[0]"),
            ("    network.eval()", "    pass"),
            ("seeded(scans.device, 0)", "torch.random.fork_rng([])"),
        ],
    ),
    "learn/moco.py": (
        "moco",
        [
            ("slow.lerp_(fast, 1 - self.momentum)", "slow.lerp_(fast, self.momentum)"),
            ("torch.cat([right, wrong], dim=1)", "torch.cat([wrong, right], dim=1)"),
            ("self.oldest + len(keys)) %", "self.oldest + 1) %"),
            ("/ self.temperature", "* self.temperature"),
            ("np.argsort(-features", "np.argsort(features"),
            (
                "one, other = augment(batch, generator), augment(batch, generator)",
                "one = other = augment(batch, generator)",
            ),
        ],
    ),
    "learn/networks.py": (
        "models lite0 image_models",
        [
            ("volumes[:, :1], volumes[:, :-1]", "volumes[:, :1], volumes[:, 1:]"),
            ("float().softmax(dim=1)", "float().softmax(dim=0)"),
            ("scatter(1, order, attention)", "scatter(1, order.flip(1), attention)"),
            ("(images - 0.498) / 0.502", "images / 0.502"),
            ("nn.init.zeros_(self.layers[-1].weight)", "pass"),
            ("self.standardise(seen.flatten(0, 1))", "seen.flatten(0, 1)"),
            ('self.change == "shuffled" or (', "("),
            ("pooled, slices = sequence.max(dim=1)", "pooled, slices = sequence.min(dim=1)"),
            (
                "self.lstm = nn.LSTM(features, features, batch",
                "self.lstm = nn.LSTM(features, features // 2, bidirectional=True, batch",
            ),
            ("side := min(images.shape[2:])", "side := max(images.shape[2:])"),
            ("whole = self.kernel - (2 if", "whole = self.kernel - (1 if"),
            (
                "maps + self.layers(maps) if self.has_shortcut",
                "self.layers(maps) if self.has_shortcut",
            ),
        ],
    ),
    "learn/features.py": (
        "features explanations",
        [
            ("rising[:, ::-1]", "rising"),
            ("place = areas[giver].argmax()", "place = 0"),
            ("healthy[hosts[k - 1], place]", "healthy[host, place]"),
            ("1 + len(views)) != fold)", "1 + len(views)) >= 0)"),
            ("RandomState(seed)", "RandomState(0)"),
            ("found[row] is None]", "True]"),
            ("{_content(volume)}.npy", "{_content(volume[0])}.npy"),
            ("found[k, fold_of[k] == fold]", "found[k, fold_of[0] == fold]"),
            ("and np.isfinite(features).all()", "and True"),
            ("volumes[groups[k + n_ahead]]", "volumes[groups[k]]"),
            ("zlib.crc32(np.ascontiguousarray(v)) + view", "view"),
        ],
    ),
    "learn/devices.py": (
        "training moco",
        [("div_(255)", "div_(256)"), ("torch.manual_seed(seed + ranks.rank())", "pass")],
    ),
}


def is_caught(folder: Path, module: str, tests: str, before: str, after: str) -> bool:
    """Whether a test fails while the module reads `after` where it reads `before`."""
    path = folder / "helpers" / module
    text = path.read_text(encoding="utf-8")
    if before not in text:
        raise SystemExit(f"{module}: does not say {before!r}; correct the list of faults")
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    files = [f"tests/test_{name}.py" for name in tests.split()]
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", *files]
    quiet = {**os.environ, "TQDM_DISABLE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=quiet, capture_output=True)
    path.write_text(text, encoding="utf-8")
    return done.returncode == 1


def main(names: list[str]) -> int:
    """Try the faults of all modules, or of those whose path holds one of the names."""
    n, n_caught = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for name in ("helpers", "tests", "notebooks", "docs"):
            shutil.copytree(ROOT / name, Path(folder, name))
        for path in ROOT.glob("[!.]*.*"):
            shutil.copy(path, folder)
        for module, (tests, faults) in FAULTS.items():
            for fault in faults if not names or any(name in module for name in names) else ():
                caught = is_caught(Path(folder), module, tests, *fault)
                n, n_caught = n + 1, n_caught + caught
                print("caught" if caught else "MISSED", module, *fault, sep=" | ", flush=True)
    print(f"{n_caught} of {n} faults caught")
    return n - n_caught


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
