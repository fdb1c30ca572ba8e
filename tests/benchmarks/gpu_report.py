"""The page that the GPU benchmark writes: its results as Markdown, part by part."""

from __future__ import annotations

import numpy as np

from helpers.scores.metrics import Interval, auc_interval

NOT_MEASURED = "Not measured."
INTRODUCTION = """# On a GPU

Every table comes from one command, `make gpu` (`python -m tests.benchmarks.gpu`), which writes this
page; `--help` says what it does. {hardware}
"""
ABOUT = {
    "card": """## The card itself

What a perfect program could use: a copy within the card's memory (every byte counted once as read
and once as written) and a product of two 8192 × 8192 matrices of random numbers.""",
    "steps": """## One training step

64 × 256 × 256, random voxels, the step of the course's own training loop: load, augment, forward,
loss, backward, clip, AdamW. Median of up to eight steps, after three that do not count; memory is
the most that torch's tensors took. "Of the matrix speed" are the operations of the network's
convolutions and matrix products, divided by what the card does in that number format (fp32: TF32).
"Of the bandwidth" counts only what the forward pass keeps, written once and read once; in truth
more is moved.
`still` is without augmentation, `chunk16` encodes 16 slices at a time instead of 256, `checkpoint`
computes activations twice instead of keeping them (for the 3-D networks in four parts).""",
    "small_card": """## Is a card of 16 GB enough?

The same step with the memory of the process limited to 15 GB, in fp16 as on a T4: the largest
batch that trained, of 16, 8, 4, 2 and 1. It says nothing about a T4's speed.""",
    "features": """## Features of a cohort, once

The frozen ImageNet encoder over all 64 slices of every scan of the phantom cohort (200 scans,
64 × 256 × 256), from memory to the float16 array.""",
    "agreement": """## The same numbers as the CPU's

Loss and gradient of one scan, beside the CPU's in fp32. Gradient error: the length of the
difference, divided by the length of the CPU's gradient. The 3-D CNN's BatchNorm sees one scan
only.""",
    "mechanics": """## Loading, overflow, resuming, ranks

The overflow is made on purpose: fp16 with a loss scale of 2⁴⁰. The scaler must leave out every step
whose gradient is infinite, and lower the scale until one is not. NCCL is tried with one rank where
there is one card.""",
    "scans": """## Whole trainings on the phantom cohort

200 synthetic scans, 64 × 256 × 256, five folds by patient, every scan predicted by a network that
did not train on it, weights of the last epoch, nothing chosen by these scores; bf16. AUC of the
pooled predictions with its 95 % interval (bootstrap over patients). The phantom is no patient.""",
    "images": """## Whole trainings on 2-D images

{about} The test part was read once for each network; threshold from validation, 95 % intervals by
bootstrap over patients, COVID positive. The scores are those of the mean of the seeds'
probabilities (an ensemble); "single seeds" are the AUCs of each. "External AUC": the same networks
on images of another collection, none of which was used for training or for any choice (intervals by
image: its patients are not told apart).""",
    "compile": """## torch.compile

The same step; "first" is the step that compiles.""",
}
COLUMNS = ["auc", "accuracy", "f1", "sensitivity", "specificity"]


def as_markdown(results) -> str:
    """The whole page; a part without results says so."""
    parts = results["parts"]
    measured = [p for name, p in parts.items() if name in ABOUT and p["records"]]
    hardware = {p["hardware"]: None for p in measured if p.get("hardware")}
    found = "Measured on " + "; ".join(hardware) + "." if hardware else NOT_MEASURED
    page = [INTRODUCTION.format(hardware=found)]
    for name, about in ABOUT.items():
        part = parts.get(name, {"records": []})
        text = about.format(about=part.get("about", ""))
        scores = parts.get("scores", {}).get("records", [])
        table = TABLES[name](part | {"scores": scores}) if part["records"] else NOT_MEASURED
        status = part.get("status", "done")
        more = [part.get("note", ""), f"*{status}*" if status != "done" else ""]
        page += [text, table, *filter(None, more)]
    return "\n\n".join(page) + "\n"


def table(header, lines) -> str:
    """A Markdown table; numbers right-aligned."""
    rule = [
        "---:" if _is_number([line[k] for line in lines]) else "---" for k in range(len(header))
    ]
    rows = [header, rule, *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _is_number(cells):
    return all(str(cell)[:1].isdigit() or str(cell) in ("", "–") for cell in cells)


def number(value, digits=2):
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value):
    return "–" if value is None else f"{value:.0%}"


def interval(values):
    return str(Interval(*values)) if values else "–"


def card_table(part):
    return table(
        ["what", "measured"],
        [
            [r["what"], f"{r['gb_per_second']:.0f} GB/s" if "gb_per_second" in r else tera(r)]
            for r in part["records"]
        ],
    )


def tera(record):
    return f"{record['tflops']:.1f} TFLOP/s"


def step_table(part):
    from tests.benchmarks.gpu import NAMES

    lines, order = [], list(NAMES)
    for r in sorted(part["records"], key=lambda r: (order.index(r["model"]), r["batch"])):
        line = [NAMES[r["model"]], r["batch"], r["variant"]]
        if r["status"] != "ok":
            lines.append([*line, r["status"], *["–"] * 5])
            continue
        lines.append(
            [
                *line,
                number(1000 * r["seconds"], 1),
                number(r["batch"] / r["seconds"], 1),
                number(r["own_gb"], 1),
                percent(r.get("share_of_matrix_speed")),
                percent(r.get("share_of_bandwidth")),
                number(r["first_step"], 1),
            ]
        )
    header = ["network", "batch", "variant", "ms a step", "scans/s", "GB"]
    return table([*header, "of the matrix speed", "of the bandwidth", "first, s"], lines)


def small_card_table(part):
    from tests.benchmarks.gpu import NAMES

    lines = [
        [
            NAMES[r["model"]],
            r["variant"],
            r["largest_batch"] or f"none ({r['status']})",
            number(r["own_gb"], 1),
            number(1000 * r["seconds"], 0) if r["seconds"] else "–",
        ]
        for r in part["records"]
    ]
    return table(["network", "variant", "largest batch", "GB", "ms a step"], lines)


def feature_table(part):
    lines = [
        [
            r["precision"],
            r["scans"],
            number(r["seconds"], 1),
            number(r["scans"] / r["seconds"], 1),
            number(r["peak_gb"], 1),
            number(r["megabytes"], 0),
        ]
        for r in part["records"]
        if "precision" in r
    ]
    header = ["format", "scans", "seconds", "scans/s", "GB on the card", "MB of features"]
    errors = [f"{r['what']}: {r['error']:.1e}." for r in part["records"] if "error" in r]
    return table(header, lines) + "\n\n" + " ".join(errors)


def agreement_table(part):
    from tests.benchmarks.gpu import NAMES

    lines = [
        [
            NAMES[r["model"]],
            r["precision"],
            number(r["cpu_loss"], 5),
            number(r["loss"], 5),
            f"{r['gradient_error']:.1e}",
        ]
        for r in part["records"]
        if "loss" in r
    ]
    return table(["network", "format", "loss, CPU", "loss", "gradient error"], lines)


def mechanics_table(part):
    lines = []
    for r in part["records"]:
        more = {k: v for k, v in r.items() if k != "what"}
        text = ", ".join(f"{k.replace('_', ' ')} {plain(v)}" for k, v in more.items())
        lines.append([r["what"], text.removeprefix("status ")])
    return table(["what", "found"], lines)


def plain(value):
    return f"{value:.3g}" if isinstance(value, float) else value


def scan_table(part):
    names = {"frozen": "frozen ImageNet features", "finetuned": "Lite0 fine-tuned"}
    names["scratch"] = "from scratch"
    lines, failed = [], [r["error"] for r in part["records"] if "error" in r]
    for way, name in names.items():
        records = [r for r in part["records"] if r["which"]["way"] == way and "error" not in r]
        if not records:
            continue
        by_row, labels = {}, {}
        for r in records:
            for row, label, p in zip(r["rows"], r["labels"], r["probability"], strict=True):
                by_row.setdefault(row, []).append(p)
                labels[row] = label
        rows = sorted(by_row)
        pooled = [np.mean(by_row[row]) for row in rows]
        seeds = {r["which"]["seed"] for r in records}
        lines.append(
            [
                name,
                len({r["which"]["fold"] for r in records}),
                len(seeds),
                len(rows),
                auc_interval([labels[row] for row in rows], pooled),
                records[0]["epochs"],
                number(np.median([r["seconds"] for r in records]), 1),
                number(max(r["peak_gb"] or 0 for r in records), 1),
            ]
        )
    header = ["encoder", "folds", "seeds", "scans", "AUC", "epochs", "s a training", "GB"]
    return table(header, lines) + together(part) + "".join(f"\n\n*failed: {e}*" for e in failed[:3])


def together(part):
    """How long the part took in all, and how many trainings ran beside one another."""
    n = max((r.get("at_a_time", 1) for r in part["records"]), default=1)
    n_done = sum("error" not in r for r in part["records"])
    if "wall_seconds" not in part:
        return ""
    return (
        f"\n\n{n_done} trainings, {n} at a time on the one card (alone each is faster): "
        f"{part['wall_seconds'] / 60:.1f} minutes in all."
    )


def image_table(part):
    networks = {
        "probe": "Lite0 frozen, logistic regression",
        "lite0": "Lite0 fine-tuned",
        "small": "small CNN",
        "densenet169": "DenseNet169",
    }
    lines = []
    for line in part.get("scores", []):
        each = f"{min(line['each_auc']):.2f} to {max(line['each_auc']):.2f}"
        outside = interval(line.get("external_auc"))
        start = {"imagenet": "ImageNet", "moco": "MoCo"}.get(line["start"], line["start"])
        lines.append(
            [
                f"{networks[line['network']]}, {start}",
                line["split"],
                *(interval(line[name]) for name in COLUMNS),
                each if line["seeds"] > 1 else "–",
                outside,
                number(line["seconds"], 0),
            ]
        )
    header = ["network, start", "split", "AUC", "accuracy", "F1", "sensitivity", "specificity"]
    header = [*header, "single seeds", "external AUC", "s a training"]
    moco = [r for r in part["records"] if r["kind"] == "moco" and "error" not in r]
    told = [
        f"\n\nMoCo: {r['n_slices']} slices, {r['epochs']} epochs, {r['seconds']:.0f} s."
        for r in moco
    ]
    failed = [f"\n\n*failed: {r['error']}*" for r in part["records"] if "error" in r]
    return table(header, lines) + "".join(told[:1] + failed[:3]) + together(part)


TABLES = {
    "card": card_table,
    "steps": step_table,
    "small_card": small_card_table,
    "features": feature_table,
    "agreement": agreement_table,
    "mechanics": mechanics_table,
    "scans": scan_table,
    "images": image_table,
    "compile": step_table,
}
