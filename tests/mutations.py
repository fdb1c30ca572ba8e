"""Does a test notice? Small faults are put into the code, one at a time, and the tests are run.

    python -m tests.mutations            # all, about half an hour on two cores
    python -m tests.mutations training   # those of one module

Each fault is one change of one line on which a result hangs: reading, preprocessing, split,
training, scores. It is made in a copy; the fault is caught if a test of the files named with it
fails. What is not caught is printed, and the exit status is their number.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINING = "training moco"
MODELS = "models lite0 image_models"
# module: (tests, [(what stands there, what a slip of the hand makes of it)])
FAULTS = {
    "learn/training.py": (
        TRAINING,
        [
            ("return (step + 1) / n_warmup", "return step / n_warmup"),
            ("0.5 * (1 + math.cos(math.pi * progress))", "0.5 * (1 + math.cos(progress))"),
            ("labels == 0) / np.sum(labels == 1)", "labels == 1) / np.sum(labels == 0)"),
            ("nn.utils.clip_grad_norm_(model.parameters(), clip)", "pass"),
            ("pos_weight=pos_weight", "weight=pos_weight"),
            ("optimizer.zero_grad()", "pass"),
            ('{"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}',
             '{"params": [p for p in parameters if p.ndim <= 1], "weight_decay": weight_decay}'),
            ("network.train()", "pass"),
            ('seeded(scans.device, settings["seed"], epoch)', 'seeded(scans.device, settings["seed"])'),
            ('for first in range(0, len(rows)', 'for first in range(1, len(rows)'),
            ("total += batch_loss * len(chosen)", "total += batch_loss"),
            ('folder / f"{keep}.pt"', 'folder / "best.pt"'),
            ("targets[validation_rows], weight)", "targets[train_rows][: len(own_rows)], weight)"),
            ('"data": describe(volumes, labels, train_rows, validation_rows)', '"data": ""'),
            ("roc_auc_score(labels, logits)", "roc_auc_score(labels, -logits)"),
        ],
    ),
    "learn/checkpoints.py": (
        TRAINING,
        [
            ("epochs_since_best(history) == 0", "True"),
            ('_load_optimizer(components, state, path)', "pass"),
            ("losses.index(min(losses))", "losses.index(max(losses))"),
            ("if before != now:", "if False:"),
            ("checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)",
             "checksum = zlib.crc32(np.ascontiguousarray(array).tobytes())"),
        ],
    ),
    "learn/augmentation.py": (
        "augmentation image_augmentation",
        [
            ("width * sine / ratio", "width * sine * ratio"),
            ("source.clamp(0, n_slices - 1)", "source.clamp(0, n_slices - 2)"),
            ("own = slice(first, first + len(volumes))", "own = slice(0, len(volumes))"),
            ("gammas, ", "gammas, "),
        ][:3],
    ),
    "learn/prediction.py": (
        "training models",
        [
            ("network.eval()", "pass"),
            ("seeded(scans.device, 0)", "seeded(scans.device, len(answers))"),
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
        ],
    ),
    "learn/networks.py": (
        MODELS,
        [
            ("volumes[:, :1], volumes[:, :-1]", "volumes[:, :1], volumes[:, 1:]"),
            ("float().softmax(dim=1)", "float().softmax(dim=0)"),
            ("scatter(1, order, attention)", "scatter(1, order.flip(1), attention)"),
            ("bidirectional=True", "bidirectional=True, dropout=0.0").__class__(("2 * images - 1", "images")),
            ("(images - 0.498) / 0.502", "images / 0.502"),
            ("nn.init.zeros_(self.layers[-1].weight)", "pass"),
            ("self.standardise(features)", "features"),
        ],
    ),
    "learn/features.py": (
        "features",
        [
            ("fold_of != fold)", "fold_of >= 0)"),
            ("sequences.flip(1)", "sequences.flip(2)"),
        ][:1],
    ),
    "learn/devices.py": (
        "training memory",
        [
            ("batch.float().div_(255)", "batch.float().div_(256)"),
            ("torch.manual_seed(seed + ranks.rank())", "torch.manual_seed(0)"),
        ],
    ),
}


def caught(folder: Path, module: str, before: str, after: str, tests: str) -> bool:
    """Whether a test fails when `before` reads `after`; the module is as it was afterwards."""
    path = folder / "helpers" / module
    text = path.read_text(encoding="utf-8")
    if text.count(before) < 1:
        raise SystemExit(f"{module}: no longer says {before!r}; correct the list")
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    files = [f"tests/test_{name}.py" for name in tests.split()]
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", *files]
    quiet = {**os.environ, "TQDM_DISABLE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=quiet, capture_output=True, timeout=900)
    finally:
        path.write_text(text, encoding="utf-8")
    return done.returncode == 1


def main(names: list[str]) -> int:
    """Try the faults of the modules whose path holds one of the names; how many went unnoticed."""
    missed, n = [], 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in ("helpers", "tests", "notebooks", "pyproject.toml"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
        for module, (tests, faults) in FAULTS.items():
            for before, after in faults if not names or any(k in module for k in names) else ():
                n += 1
                is_caught = caught(folder, module, before, after, tests)
                print("caught " if is_caught else "MISSED ", f"{module}: {before} -> {after}", flush=True)
                missed += [] if is_caught else [before]
    print(f"{n - len(missed)} of {n} faults caught")
    return len(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
