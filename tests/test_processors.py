"""The course's main result as other processors compute it; `make processors` asks for it."""

import os

import numpy as np
import pytest
import torch

from helpers.course import runner, runs
from helpers.learn import features, networks
from helpers.scores import metrics


@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" not in os.environ, reason="make processors asks each kind of processor"
)
def test_the_frozen_classifier_holds_on_the_quick_phantom(tmp_path):
    """Features and trainings anew with this processor's kernels; five folds, one seed."""
    data = runs.prepare("phantom", "quick", runner.ROOT / "data", 0)
    seen = features.encode_scans(networks.Lite0Encoder(), np.asarray(data.volumes))
    labels, patients = data.table.label.to_numpy(), data.table.patient.to_numpy()
    ((probability,), _) = features.cross_validate(
        lambda seed, fold: runs.new_model("frozen", data.profile, seed),
        *(seen, labels, patients, tmp_path, data.profile.n_folds, (0,)),
        **runs.options_of("frozen", data.profile),
    )
    found = metrics.auc_interval(labels, probability, patients)
    print(f"{torch.backends.cpu.get_cpu_capability()}: AUC {found}")
    assert found[0] >= 0.95
