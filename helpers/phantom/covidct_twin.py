"""A synthetic twin of COVID-CT: its layout, its habits and its flaws, with slices of the phantom.

The images are synthetic: not patients, and no substitute for them. What they offer is a known
truth (lesions, near-duplicates, papers in two parts) that runs anywhere without a download.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from helpers.phantom.simulate import make_all, make_study, save
from helpers.storage.files import file_size, lock

CAPTION = "Synthetic phantom, not a patient."
# where train and validation end in the published split
ENDS = {"COVID": (191 / 349, 251 / 349), "NonCOVID": (234 / 397, 292 / 397)}
SHORT = {"train": "train", "validation": "val", "test": "test"}
LEAST_LESION, LEAST_LUNG = 0.12, 0.5
SHORTCUT = "RGBA and .png with JPEG bytes only in COVID, .jpg only in NonCOVID"
VERSION = 1
# ending, then mode, format and share of the files of each source
SOURCES = {
    "covid": (".png", {"RGBA PNG": 0.5, "RGB PNG": 0.34, "RGB JPEG": 0.1, "L PNG": 0.06}),
    "crawled": (".jpg", {"RGB JPEG": 0.85, "L JPEG": 0.15}),
    "medpix": (".png", {"RGB PNG": 1.0}),
}


def make_twin(root, n_covid=120, n_noncovid=140, seed=2020, matrix=192, workers=None) -> Path:
    """Write a twin of COVID-CT into `root` and return the folder; a finished one is kept.

    n_covid, n_noncovid: images of each class, 20 at least. matrix: pixels a side of the phantom
    that the images are made from. workers: processes (default: all cores), without influence on
    the bytes. `twin_truth.json`, written last, holds the truth of every image and each flaw.
    Raises ValueError for too few images and for a folder that holds something else.
    """
    root = Path(root)
    if min(n_covid, n_noncovid) < 20:
        raise ValueError(f"{n_covid} and {n_noncovid} images are too few; use at least 20 of each")
    settings = {"version": VERSION, "n_covid": n_covid, "n_noncovid": n_noncovid}
    settings |= {"seed": seed, "matrix": matrix}
    if not _is_finished(root, settings):
        with lock(root / "twin"):
            if not _is_finished(root, settings):
                save(root / "twin_settings.json", json.dumps(settings, indent=1).encode())
                jobs = [job | {"matrix": matrix} for job in _plan(n_covid, n_noncovid, seed)]
                made = make_all(_make_patient, jobs, workers, "synthetic patients", "patient")
                _write(root, settings, {k: image for images in made for k, image in images.items()})
    return root


def _is_finished(root, settings):
    """Whether the twin is complete; ValueError if the folder is not one of these settings."""
    try:
        found = json.loads((root / "twin_settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {} if (root / "Images-processed").exists() else settings
    if changed := [key for key in settings if found.get(key) != settings[key]]:
        what = f"{root}: holds no twin, or one made with another {', '.join(changed)}"
        raise ValueError(f"{what}; choose another folder or delete this one")
    try:
        files = json.loads((root / "twin_truth.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError):
        return False
    return all(file_size(root / file) == size for file, size in files.items())


def _plan(n_covid, n_noncovid, seed):
    """One job a patient; the two last COVID test images get copies in the other class's train."""
    rng, jobs, paper = np.random.default_rng([seed, VERSION]), [], 1
    for name, n_images in (("COVID", n_covid), ("NonCOVID", n_noncovid)):
        sizes, label = [2], int(name == "COVID")
        while sum(sizes) < n_images:
            sizes.append(min(int(rng.choice([1, 2, 2, 3, 4])), n_images - sum(sizes)))
        middles = (np.cumsum(sizes) - np.array(sizes) / 2) / n_images
        parts = [list(SHORT)[place] for place in np.searchsorted(ENDS[name], middles)]
        for k, (size, part) in enumerate(zip(sizes, parts, strict=True)):
            job = {"label": label, "part": part, "seed": [seed, len(jobs)], "category": "CT-0"}
            source, stem = ("medpix", f"{1000 + k}") if k % 2 else ("crawled", f"{k}")
            job |= {"patient": f"noncovid-{source}_patient_{k}", "paper": ""}
            if label:
                # a paper goes on over the border of two parts, and ends soon after it
                is_second = k > 1 and parts[k - 1] != parts[k - 2]
                paper += k > 0 and part == parts[k - 1] and (is_second or rng.random() < 0.5)
                job |= {"patient": f"covid-{k + 1}", "paper": f"10.5555/twin.2020.{paper:03d}"}
                job["category"] = str(rng.choice(["CT-2", "CT-3"]))
                source, stem = "covid", f"twin-e{paper:03d}-p{2 + k % 9}-{k + 1}"
            ending, kinds = SOURCES[source]
            drawn = rng.choice(list(kinds), size, p=list(kinds.values())).tolist()
            names = [f"{stem}%{j}{ending}" if size > 1 else stem + ending for j in range(size)]
            job["images"] = [{"name": n, "kind": c} for n, c in zip(names, drawn, strict=True)]
            jobs.append(job)
    tests = [job["images"] for job in jobs if job["label"] and job["part"] == "test"]
    copies = jobs.pop([job["label"] for job in jobs].index(0))
    for image, copy in zip(sum(tests, [])[-2:], copies["images"], strict=True):
        image["copy"] = copies | copy
    return jobs


def _make_patient(job):
    """{file name: (truth, bytes)} of one patient's images, and of the copies made of them."""
    sequence, made = np.random.SeedSequence(job["seed"]), {}
    rng = np.random.default_rng(sequence)
    study = make_study(int(sequence.generate_state(1)[0]), job["category"], job["matrix"], 4)
    lung, lesion = (volume.sum(axis=(1, 2)) for volume in (study.lung, study.mask))
    share = np.where(lung > LEAST_LUNG * lung.max(), lesion / np.maximum(lung, 1), -1)
    usable = np.flatnonzero(share >= job["label"] * LEAST_LESION)
    slices = rng.permutation(usable if len(usable) else [share.argmax()])
    keys = ("label", "part", "patient", "paper")
    for number, image in enumerate(job["images"]):
        k = int(slices[number % len(slices)])
        grey, marks = _draw_figure(rng, study.hu[k], study.lung[k])
        row = {key: job[key] for key in keys} | {"category": job["category"], "slice": k}
        row |= {"lesion_share": round(float(share[k]), 4), "marks": marks, "copy_of": ""}
        made[image["name"]] = row, _encode(grey, image["kind"])
        if copy := image.get("copy"):
            row = row | {key: copy[key] for key in keys} | {"copy_of": image["name"]}
            made[copy["name"]] = row, _encode(ImageOps.scale(grey, 0.9), copy["kind"])
    return made


def _draw_figure(rng, hu, lung):
    """A slice as a paper would print it: Pillow image of mode L, and the marks burnt into it."""
    spans = []
    for axis in (1, 0):
        inside = np.flatnonzero(lung.any(axis=axis))
        edges = rng.uniform(0.08, 0.25, 2) * (-1, 1) * np.ptp(inside) + inside[[0, -1]]
        spans.append(slice(max(0, int(edges[0])), int(edges[1]) + 1))
    grey = (hu[tuple(spans)] - rng.uniform(-650, -450)) / rng.uniform(1100, 1700) + 0.5
    width = float(np.clip(350 * np.exp(0.4 * rng.standard_normal()), 115, 670))
    height = np.clip(width * rng.uniform(0.75, 1.2) * grey.shape[0] / grey.shape[1], 61, 670)
    size, bicubic = (round(width), round(height)), Image.Resampling.BICUBIC
    grey = np.asarray(Image.fromarray(grey.astype(np.float32)).resize(size, bicubic))
    grey = np.clip(grey, 0, 1) ** rng.uniform(0.8, 1.25) * rng.uniform(195, 240)
    image = Image.fromarray((grey + rng.uniform(0, 15)).astype(np.uint8))
    pen, chances = ImageDraw.Draw(image), {"arrow": 0.2, "letter": 0.2, "border": 0.06, "jpeg": 0.4}
    marks = [mark for mark, chance in chances.items() if rng.random() < chance]
    (x, y), length = rng.uniform(0.2, 0.8, 2) * size, 0.08 * min(size)
    if "arrow" in marks:
        pen.line([(x, y), (x + 2 * length, y - length)], 255, max(1, size[0] // 150))
        pen.polygon([(x, y), (x + length, y), (x + 0.5 * length, y - 0.9 * length)], 255)
    if "letter" in marks:
        font = ImageFont.load_default(max(10, size[1] // 10))
        pen.text((0.03 * size[0], 0.02 * size[1]), str(rng.choice([*"abcdABCD"])), 255, font)
    if "border" in marks:
        image = ImageOps.expand(image, int(rng.integers(5, 15)), 255)
    if "jpeg" in marks:
        image = Image.open(io.BytesIO(_encode(image, "L JPEG", int(rng.integers(25, 60)))))
    return image, marks


def _encode(grey, kind, quality=85):
    """The bytes of a file of this mode and format, for example "RGB JPEG"."""
    stream, (mode, form) = io.BytesIO(), kind.split()
    grey.convert(mode).save(stream, form, quality=quality, compress_level=1)
    return stream.getvalue()


def _write(root, settings, made):
    """The ten files of the data set, then the truth."""
    table, contents = pd.DataFrame([{"image": name} | made[name][0] for name in made]), {}
    covid, other = table[table.label == 1], table[table.label == 0]
    for name, own in (("COVID", covid), ("NonCOVID", other)):
        members = {f"CT_{name}/{image}": made[image][1] for image in own.image}
        contents[f"Images-processed/CT_{name}.zip"] = _zip({f"CT_{name}/": b""} | members)
        for part, short in SHORT.items():
            lines = "".join(own.image[own.part == part] + "\n")
            contents[f"Data-split/{name}/{short}CT_{name}.txt"] = lines.encode()
    listed = {"image name": other.image, "patient id": other.patient.str[len("noncovid-") :]}
    listed = pd.DataFrame(listed).reset_index(drop=True)
    contents["NonCOVID-CT-MetaInfo.csv"] = listed.to_csv(lineterminator="\n").encode()
    contents["COVID-CT-MetaInfo.xlsx"] = _excel(covid)
    for file, content in contents.items():
        save(root / file, content)
    parts, copies = covid.groupby("paper").part.nunique(), table[table.copy_of != ""]
    truth = {"synthetic": True, "settings": settings, "file_format_shortcut": SHORTCUT}
    truth["near_duplicates"] = copies[["copy_of", "image"]].values.tolist()
    truth["papers_in_two_parts"] = parts.index[parts > 1].tolist()
    truth["files"] = {file: len(content) for file, content in contents.items()}
    truth["images"] = table.to_dict("records")
    save(root / "twin_truth.json", json.dumps(truth, indent=1).encode())


def _zip(members):
    """A zip archive with the same bytes at any time."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, (2020, 4, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = (0o40755 if name.endswith("/") else 0o100644) << 16
            archive.writestr(info, content)
    return stream.getvalue()


def _excel(covid):
    """The metadata of the COVID images, as untidy as the real ones."""
    lines, forms = [], ["{}", "{} ", "https://doi.org/{}", "doi:{}", "{}."]
    for k, row in enumerate(covid.itertuples()):
        n = int(row.patient.split("-")[1])
        caption = f"['Synthetic figure {n}. Lesions in a phantom, not a patient. ']"
        line = [row.image.removesuffix(".png") if n % 4 == 3 else row.image, f"Patient {n}"]
        line += [(None, 20 + 7 * n % 60, None, "40+")[n % 4], (None, "M", "F ")[n % 3]]
        line += [(None, "Phantom City ")[n % 2], None, None, (None, "severe ")[n % 2], None]
        lines.append([*line, forms[k % 5].format(row.paper), caption if n % 9 else None])
    # the real table, too, has a row without a file name
    lines.append([None] * 10 + ["Synthetic. A line that lost its row."])
    columns = ["File name", "Patient ID", "Age", "Gender", "Location", "Medical history", "Time"]
    table = pd.DataFrame(lines, columns=[*columns, "Severity", "Other diseases", "DOI", "Captions"])
    table.to_excel(stream := io.BytesIO(), sheet_name="positive_captions", index=False)
    with zipfile.ZipFile(stream) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    core, date = "docProps/core.xml", rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    members[core] = re.sub(date, b"2020-04-01T00:00:00Z", members[core])
    return _zip(members)
