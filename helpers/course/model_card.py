"""A model card: what is known of a network, and what not, on one page.

After Mitchell et al. 2019 (arXiv 1810.03993); the checklist names the topics of CLAIM (Mongan, Moy
and Kahn, Radiology: Artificial Intelligence 2:e200029, 2020) in our own words.
"""

from __future__ import annotations

import json
from pathlib import Path

from helpers.course.sources import PHANTOMS
from helpers.scores.metrics import Interval
from helpers.storage.files import write_whole

CARD = """# Model card: Bi-LSTM behind a frozen ImageNet encoder

For teaching, not for clinical use.

| | |
|---|---|
| What it does | one chest CT in, the probability of COVID-19 out; task {task} |
| Network | EfficientNet-Lite0, as ImageNet left it; Bi-LSTM over the slices, attention, one logit |
| Trained on | {data} |
| Trained how | {training} |
| Split | by patient; {folds} folds, {seeds} seeds, nothing chosen on what is predicted |
| AUC inside, 95 % interval | {inside} |
| AUC in another hospital | {outside} |
| AUC without any lungs | {without_lungs}: spacing, slices, noise and padding alone |
| Not for | patients; other scanners, diseases, ages or body parts than it was tested on |

## Checklist

| question | answer |
|---|---|
{answers}

## Known limits

{limits}
"""


def write_card(results_file) -> Path:
    """Write `model_card.md` beside the results.json of notebook 07; returns its path.

    Every number comes from that file; what it does not hold is said to be open. ValueError for a
    file that is not of notebook 07.
    """
    results_file = Path(results_file)
    found = json.loads(results_file.read_text(encoding="utf-8"))
    missing = [
        name for name in ("data", "inside", "without_lungs", "shortcut") if name not in found
    ]
    if missing:
        raise ValueError(f"{results_file}: no {missing[0]} in it; run notebook 07 to its end")
    words = {name: _words(found[name]) for name in ("inside", "without_lungs")}
    words["outside"] = "not tested"
    if found.get("outside"):
        words["outside"] = f"{_words(found['outside'])} ({found['elsewhere']})"
    is_phantom = found["dataset"] in PHANTOMS
    answers = {
        "Where do the scans come from, and how were they chosen?": "a simulator; see the caption"
        if is_phantom
        else "see the data set's own documentation; **open: how patients were chosen**",
        "What is the truth, and who says so?": "the simulator's own, without error"
        if is_phantom
        else "the data set's labels; **open: how often two readers agree**",
        "Is every patient in one part only?": f"yes, {found['folds']} folds by patient",
        "What was chosen, and on what?": "learning rate and epochs on earlier phantoms, "
        "nothing on these folds",
        "Are there intervals?": "yes, by patient (Newcombe)",
        "Was it tested on data of another source?": f"yes: {words['outside']}"
        if found.get("outside")
        else "**open: no**",
        "Is there a baseline that sees no disease?": f"yes: {words['without_lungs']}",
        "Was the explanation checked?": f"yes, on {found['explained_on']}: against lesion masks, "
        "another patient's lesions and an untrained network"
        if found.get("ranks")
        else "**open: no**",
        "Were the failures looked at?": "in notebook 6; **open: by a radiologist**",
        "Was it tried in the clinic, beside readers?": "**open: no**",
        "Can it be repeated?": f"yes: code, seeds and settings are in the course, profile "
        f"{found['profile']}",
    }
    limits = [
        "A good score on one cohort says little about the next hospital.",
        "The threshold has to be chosen anew wherever it is used (notebook 6).",
        "What it was shown decides what it sees: planted on scanners, it fell from "
        f"{_words(found['shortcut']['as they are']['validation'])} at home to "
        f"{_words(found['shortcut']['as they are']['another hospital'])} elsewhere.",
    ]
    if is_phantom:
        limits.insert(0, "A phantom is no patient: nothing here holds for real scans.")
    if found["without_lungs"][1] > 0.5:
        limits.append("**The class can be told without the lungs: look for a shortcut.**")
    text = CARD.format(
        **{name: found[name] for name in ("task", "data", "training", "folds", "seeds")} | words,
        answers="\n".join(f"| {question} | {answer} |" for question, answer in answers.items()),
        limits="\n".join(f"- {limit}" for limit in limits),
    )
    path = results_file.with_name("model_card.md")
    return write_whole(path, lambda file: file.write(text.encode()))


def _words(interval) -> str:
    return str(Interval(*interval))
