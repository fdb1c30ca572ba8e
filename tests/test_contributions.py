"""Contributed images: each rule both ways, and merging that loses nothing, whatever interrupts."""

import csv
import os
import shutil
import stat
import zipfile

import numpy as np
import openpyxl
import pandas as pd
import pytest
from fault_marks import MERGE
from PIL import Image

from helpers.covidct.contributions import ContributionError, check_contribution, merge

XLSX, CSV = "COVID-CT-MetaInfo.xlsx", "NonCOVID-CT-MetaInfo.csv"
ZIP, TRAIN = "Images-processed/CT_COVID.zip", "Data-split/COVID/trainCT_COVID.txt"
HEADER = ["File name", "Patient ID", "Age", "DOI", "Captions"]


def picture(seed, height=120, width=160):
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12), np.uint8))
    return np.asarray(noise.resize((width, height), Image.BICUBIC))


def png(path, seed, **size):
    Image.fromarray(picture(seed, **size)).save(path)
    return path


def everything(root):
    """Every member of every zip, every cell of all sheets, and the text files."""
    held = {}
    for path in sorted(root.rglob("*.*")):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                held |= {(name, member): archive.read(member) for member in archive.namelist()}
        elif path.suffix == ".xlsx":
            for sheet in openpyxl.load_workbook(path):
                for row in sheet.iter_rows():
                    for cell in row:
                        if cell.value is not None:
                            held[name, sheet.title, cell.coordinate] = cell.value
        elif path.suffix == ".csv":
            with open(path, encoding="utf-8", newline="") as file:
                for i, line in enumerate(csv.reader(file)):
                    held |= {(name, i, j): cell for j, cell in enumerate(line)}
        elif path.suffix == ".txt":
            for i, line in enumerate(path.read_bytes().decode().splitlines()):
                held[name, i] = line
    return held


@pytest.fixture
def root(tmp_path):
    """A collection of two images a class, in COVID-CT's layout."""
    root = tmp_path / "copy"
    (root / "Images-processed").mkdir(parents=True)
    for kind, seeds in (("COVID", (0, 1)), ("NonCOVID", (2, 3))):
        with zipfile.ZipFile(root / f"Images-processed/CT_{kind}.zip", "w") as archive:
            archive.writestr(f"CT_{kind}/", b"")
            for seed in seeds:
                archive.write(png(tmp_path / f"{seed}.png", seed), f"CT_{kind}/old{seed}.png")
        (root / f"Data-split/{kind}").mkdir(parents=True)
        for part, seed in zip(("train", "test"), seeds, strict=True):
            file = root / f"Data-split/{kind}/{part}CT_{kind}.txt"
            file.write_bytes(f"old{seed}.png".encode() + b"\n" * (kind == "COVID"))
    book = openpyxl.Workbook()
    book.active.title = "other"
    book.active["B2"] = "=1+1"
    sheet = book.create_sheet("positive_captions")
    sheet.append(HEADER)
    sheet.append(["old0.png", "Patient 1", 41, "10.1016/ j.old.1 ", "first"])
    sheet.append(["old1", "Patient 2", None, None, "second"])
    sheet.append([None, None, None, None, "a footnote"])
    book.save(root / XLSX)
    lines = [",image name,patient id", "0,old2.png,crawled_0", '1,old3.png,"crawled, 1"']
    (root / CSV).write_bytes("\r\n".join(lines).encode() + b"\r\n")
    return root


def no_rests(root):
    """Whether a merge left nothing beside the data set but its lock."""
    return {path.name for path in root.parent.glob(".*")} <= {f".{root.name}.lock"}


@pytest.fixture
def collection():
    table = pd.DataFrame({"image": [f"old{k}.png" for k in range(4)], "width": 160, "height": 120})
    table["patient"] = ["covid-1", "covid-2", "noncovid-crawled_0", "noncovid-crawled_1"]
    table["paper"] = ["10.1016/j.old.1", "10.1101/2020.02.25.20021568", "", ""]
    return table, [picture(seed) for seed in range(4)]


@pytest.fixture
def offer(tmp_path):
    """A good contribution of three images: the folder and its metadata, to be spoiled."""
    folder = tmp_path / "new"
    folder.mkdir()
    names = ["2020.05.01.20087654-p3-1.png", "case.png", "control.png"]
    for seed, name in enumerate(names, start=10):
        png(folder / name, seed)
    metadata = pd.DataFrame({"File name": names, "Class": ["COVID", "covid", "Non-COVID"]})
    metadata["Patient ID"] = ["Patient 301", "Patient 302", "case 9"]
    metadata["DOI"] = ["10.1101/2020.05.01.20087654", "https://doi.org/10.1000/NEW.1", "10.1000/2"]
    metadata["Captions"] = ["Axial CT, day 3", "=SUM(A1)", "Normal, healthy"]
    metadata["Age"] = [50, 61, None]
    return folder, metadata


def rules(report, severity="refuse"):
    found = report.findings[report.findings.severity == severity]
    return set(zip(found.file, found.rule, strict=True))


def test_a_good_contribution_passes_from_every_kind_of_metadata(tmp_path, offer, collection):
    folder, metadata = offer
    metadata.loc[1, "Captions"] = "Normal"
    metadata.to_csv(folder / "lines.csv", index=False)
    metadata.to_excel(tmp_path / "lines.xlsx", index=False)
    for source in (folder / "lines.csv", metadata, str(tmp_path / "lines.xlsx")):
        report = check_contribution(folder, source, *collection)
        (folder / "lines.csv").unlink(missing_ok=True)
        assert report.is_accepted and report.findings.empty
        assert report.table["class"].tolist() == ["COVID", "COVID", "NonCOVID"]
        assert report.table.paper[1] == "10.1000/new.1"
        assert str(report).startswith("3 of 3 images can be taken: 2020.05.01.20087654-p3-1.png")


SPOILED = {
    "no patient id": {"Patient ID": ""},
    "patient id is taken": {"Patient ID": "Patient 2"},
    "no DOI": {"DOI": "see the paper"},
    "DOI is taken": {"DOI": "doi:10.1016/J.old.1"},
    "no caption": {"Captions": None},
    "no class": {"Class": "1"},
    "no such file": {"File name": "missing.png"},
    "unsafe name": {"File name": "../case.png"},
    "name listed twice": {"File name": "control.png"},
}


@pytest.mark.parametrize("rule", SPOILED)
def test_each_fault_in_a_line_is_refused_and_the_others_pass(rule, offer, collection):
    folder, metadata = offer
    for column, value in SPOILED[rule].items():
        metadata[column] = metadata[column].astype(object)
        metadata.loc[1, column] = value
    report = check_contribution(folder, metadata, *collection)
    name = metadata["File name"][1]
    expected = {(name, rule)}
    if "File name" in SPOILED[rule]:
        expected.add(("case.png", "no line in the metadata"))
    assert rules(report) == expected and not report.is_accepted
    good = set(report.table.image[report.table.accepted])
    assert good == {"2020.05.01.20087654-p3-1.png", "control.png"} - {name}
    assert f"{len(good)} of {len(report.table)} images can be taken" in str(report)
    assert f"refuse {name}: {rule}; " in str(report)


@pytest.mark.parametrize("name", ["/etc/a.png", "..\\a.png", "a/b.png", "", ".a.png", "a.gif"])
def test_names_that_are_no_plain_image_names_are_refused(name, offer, collection):
    folder, metadata = offer
    metadata.loc[1, "File name"] = name
    assert (name, "unsafe name") in rules(check_contribution(folder, metadata, *collection))


def test_a_name_that_is_there_with_another_ending_is_taken(offer, collection):
    folder, metadata = offer
    (folder / "case.png").rename(folder / "OLD1.jpg")
    metadata.loc[1, "File name"] = "OLD1.jpg"
    assert ("OLD1.jpg", "name is taken") in rules(check_contribution(folder, metadata, *collection))


def test_preprint_names_give_and_check_the_doi(offer, collection):
    folder, metadata = offer
    name = metadata["File name"][0]
    metadata.loc[0, "DOI"] = ""
    report = check_contribution(folder, metadata, *collection)
    assert report.is_accepted and rules(report, "warn") == {(name, "no DOI")}
    assert report.table.paper[0] == "10.1101/2020.05.01.20087654"
    metadata.loc[0, "DOI"] = "10.1000/2"
    report = check_contribution(folder, metadata, *collection)
    assert rules(report) == {(name, "DOI and name differ")}
    # the paper of old1, and one that only an image's name tells
    told = collection[0].replace({"old2.png": "2020.03.04.20026005-p1.png"})
    (folder / name).rename(folder / "2020.03.04.20026005-p2.png")
    metadata.loc[0, ["File name", "DOI"]] = ["2020.03.04.20026005-p2.png", ""]
    report = check_contribution(folder, metadata, told, collection[1])
    assert rules(report) == {("2020.03.04.20026005-p2.png", "DOI is taken")}
    (folder / "2020.03.04.20026005-p2.png").rename(folder / name)
    taken = "2020.02.25.20021568-p9.png"
    (folder / name).rename(folder / taken)
    metadata.loc[0, ["File name", "DOI"]] = [taken, ""]
    report = check_contribution(folder, metadata, *collection)
    assert rules(report) == {(taken, "DOI is taken")}


def test_images_that_cannot_be_used_are_refused(offer, collection):
    folder, metadata = offer
    broken = (folder / "case.png").read_bytes()
    faults = {
        "truncated": lambda path: path.write_bytes(broken[:900]),
        "cannot identify": lambda path: path.write_text("<html>"),
        "48 to 4096": lambda path: png(path, 11, height=20, width=500),
        "shows nothing": lambda path: Image.new("L", (160, 120), 90).save(path),
        "shows nothing ": lambda path: Image.fromarray(np.full((99, 99), 7, np.uint16)).save(path),
    }
    for reason, spoil in faults.items():
        spoil(folder / "case.png")
        report = check_contribution(folder, metadata, *collection)
        assert rules(report) == {("case.png", "image cannot be used")} and reason.strip() in str(
            report
        )
    (folder / "case.png").unlink()
    (folder / "case.png").symlink_to(folder / "control.png")
    report = check_contribution(folder, metadata, *collection)
    assert rules(report) == {("case.png", "no such file")}


def test_what_only_deserves_a_look_is_a_warning(offer, collection):
    folder, metadata = offer
    Image.fromarray(picture(11)).convert("RGBA").save(folder / "case.png")
    Image.fromarray(picture(12)).save(folder / "control.png", format="JPEG")
    png(folder / metadata["File name"][0], 10, height=240, width=160)
    report = check_contribution(folder, metadata, *collection)
    assert report.is_accepted
    assert rules(report, "warn") == {
        ("case.png", "RGBA PNG"),
        ("control.png", "L JPEG"),
        (metadata["File name"][0], "size"),
    }


def test_copies_are_refused_and_slices_of_a_patient_are_not(offer, collection):
    folder, metadata = offer
    resized = Image.fromarray(np.pad(picture(3), 9)).resize((300, 250))
    resized.save(folder / "case.png")
    report = check_contribution(folder, metadata, *collection)
    assert rules(report) == {("case.png", "copy")} and "it is old3.png" in str(report)
    report = check_contribution(folder, metadata, collection[0])
    assert report.is_accepted and ("all", "not compared with the collection") in rules(
        report, "warn"
    )
    shutil.copy(folder / "control.png", folder / "case.png")
    report = check_contribution(folder, metadata, *collection)
    assert rules(report) == {("control.png", "copy")}
    alike = 0.75 * picture(12) + 0.25 * picture(40)
    Image.fromarray(alike.astype(np.uint8)).save(folder / "case.png")
    assert rules(check_contribution(folder, metadata, *collection)) == {("control.png", "copy")}
    metadata.loc[1:, "Patient ID"] = "Patient 400"
    report = check_contribution(folder, metadata, *collection)
    assert report.is_accepted and rules(report, "warn") == {("control.png", "like a copy")}
    png(folder / "case.png", 12, height=240, width=320)
    assert rules(check_contribution(folder, metadata, *collection)) == {("control.png", "copy")}


def test_bad_input_is_refused_in_one_line(tmp_path, offer, collection):
    folder, metadata = offer
    (tmp_path / "bad.xlsx").write_bytes(b"PK\3\4 no workbook")
    (tmp_path / "bad.csv").write_bytes(b'a,"b\n\xff\xfe')
    cases = [
        (folder, tmp_path / "bad.xlsx", "no .csv or .xlsx table"),
        (folder, tmp_path / "bad.csv", "no .csv or .xlsx table"),
        (folder, tmp_path / "none.csv", "no .csv or .xlsx table"),
        (folder, metadata.drop(columns="File name"), "no column File name"),
        (tmp_path / "nowhere", metadata, "is no folder"),
    ]
    for where, what, reason in cases:
        with pytest.raises(ContributionError, match=reason) as caught:
            check_contribution(where, what, *collection)
        assert "\n" not in str(caught.value)
    with pytest.raises(ContributionError, match="give one each"):
        check_contribution(folder, metadata, collection[0], collection[1][:2])
    with pytest.raises(ContributionError, match="image, patient and paper"):
        check_contribution(folder, metadata, collection[0][["image"]])
    empty = check_contribution(folder, metadata[:0], *collection)
    assert not empty.is_accepted and str(empty).startswith("0 of 3 images can be taken")
    without = check_contribution(folder, metadata[["File name"]], *collection)
    assert ("case.png", "no class") in rules(without) and not without.table.accepted.any()


def test_merge_adds_to_train_and_loses_nothing(root, offer, collection):
    folder, metadata = offer
    before = everything(root)
    report = check_contribution(folder, metadata, *collection)
    assert merge(root, folder, metadata, report) == {"COVID": 2, "NonCOVID": 1, "there before": 0}
    after = everything(root)
    assert {key: after[key] for key in before} == before
    added = {key: value for key, value in after.items() if key not in before}
    first, sheet = metadata["File name"][0], "positive_captions"
    assert added[ZIP, f"CT_COVID/{first}"] == (folder / first).read_bytes()
    with zipfile.ZipFile(root / ZIP) as archive:
        assert archive.getinfo(f"CT_COVID/{first}").external_attr == 0o644 << 16
    assert added[TRAIN, 1] == first and added[TRAIN, 2] == "case.png"
    assert added["Data-split/NonCOVID/trainCT_NonCOVID.txt", 1] == "control.png"
    line = [added.get((XLSX, sheet, f"{column}5")) for column in "ABCDE"]
    assert line == [first, "Patient 301", "50", "10.1101/2020.05.01.20087654", "Axial CT, day 3"]
    assert openpyxl.load_workbook(root / XLSX)[sheet]["E6"].data_type == "s"
    lines = list(csv.reader((root / CSV).read_text().splitlines()))
    assert lines[0] == ["", "image name", "patient id", "DOI", "Captions"]
    assert lines[3] == ["2", "control.png", "case 9", "10.1000/2", "Normal, healthy"]
    assert b"\r\n" in (root / CSV).read_bytes() and no_rests(root)
    stored = {path: path.read_bytes() for path in root.rglob("*.*")}
    again = merge(root, folder, metadata, report)
    assert again == {"COVID": 0, "NonCOVID": 0, "there before": 3}
    assert stored == {path: path.read_bytes() for path in root.rglob("*.*")}


def test_merge_takes_a_refused_contribution_only_in_part_and_on_demand(root, offer, collection):
    folder, metadata = offer
    metadata.loc[1, "Captions"] = ""
    before = everything(root)
    report = check_contribution(folder, metadata, *collection)
    with pytest.raises(ContributionError, match="2 of 3 images.*only_accepted"):
        merge(root, folder, metadata, report)
    assert everything(root) == before
    counts = merge(root, folder, metadata, report, only_accepted=True)
    assert counts == {"COVID": 1, "NonCOVID": 1, "there before": 0}
    assert (ZIP, "CT_COVID/case.png") not in everything(root)


def test_merge_refuses_another_image_of_the_same_name(root, offer, collection):
    folder, metadata = offer
    report = check_contribution(folder, metadata, *collection)
    with zipfile.ZipFile(root / ZIP, "a") as archive:
        archive.writestr("CT_COVID/case.png", b"another")
    before = everything(root)
    with pytest.raises(ContributionError, match="holds another case.png"):
        merge(root, folder, metadata, report)
    assert everything(root) == before


def test_merge_refuses_what_is_not_what_was_checked(tmp_path, root, offer, collection):
    folder, metadata = offer
    before, report = everything(root), check_contribution(folder, metadata, *collection)
    png(folder / "case.png", 77)
    with pytest.raises(ContributionError, match="check them again"):
        merge(root, folder, metadata, report)
    png(folder / "case.png", 11)
    with pytest.raises(ContributionError, match="check them again"):
        merge(root, folder, metadata.assign(Captions="other"), report)
    with pytest.raises(ContributionError, match="is no copy of the data set"):
        merge(tmp_path, folder, metadata, report)
    (folder / "case.png").rename(folder / "away.png")
    with pytest.raises(ContributionError, match="case.png"):
        merge(root, folder, metadata, report)
    assert everything(root) == before


def test_a_damaged_copy_is_refused_and_stays_as_it_is(root, offer, collection):
    folder, metadata = offer
    report = check_contribution(folder, metadata, *collection)
    archive = (root / ZIP).read_bytes()
    place = archive.index(b"IDAT") + 40
    (root / ZIP).write_bytes(archive[:place] + b"spoiled" + archive[place + 7 :])
    before = {path: path.read_bytes() for path in root.rglob("*.*")}
    with pytest.raises(ContributionError, match="damaged"):
        merge(root, folder, metadata, report)
    assert no_rests(root)
    assert before == {path: path.read_bytes() for path in root.rglob("*.*") if path.is_file()}


@pytest.mark.parametrize(
    ("file", "content"),
    [(ZIP, b"PK"), (XLSX, b"PK"), (CSV, b""), (CSV, b"a,b\n"), (CSV, b"\xff"), (TRAIN, None)],
)
def test_a_copy_that_cannot_be_read_is_refused_in_one_line(file, content, root, offer, collection):
    folder, metadata = offer
    report = check_contribution(folder, metadata, *collection)
    (root / file).unlink()
    if content is not None:
        (root / file).write_bytes(content)
    others = {path: path.read_bytes() for path in root.rglob("*.*") if path.is_file()}
    with pytest.raises(ContributionError) as caught:
        merge(root, folder, metadata, report)
    assert "\n" not in str(caught.value) and os.path.basename(file) in str(caught.value)
    assert no_rests(root)
    assert others.items() <= {p: p.read_bytes() for p in root.rglob("*.*") if p.is_file()}.items()


def test_a_folder_made_again_before_a_merge_was_finished_is_not_replaced(
    root, offer, collection, monkeypatch
):
    folder, metadata = offer
    report = check_contribution(folder, metadata, *collection)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, 2)
        merge(root, folder, metadata, report)
    assert not root.exists()
    (root / "Data-split").mkdir(parents=True)
    before = everything(root.parent)
    with pytest.raises(ContributionError, match="cannot be merged into"):
        merge(root, folder, metadata, report)
    assert everything(root.parent) == before


class Crash(BaseException):
    """Nothing in the code under test may catch it."""


STEPS = [(shutil, "copytree"), (zipfile.ZipFile, "writestr"), (openpyxl.Workbook, "save")]
STEPS += [(os, "rename"), (shutil, "rmtree")]


def crash_at(patch, number):
    """Stop the renaming at the call of this number, 1 for the first."""
    real, calls = os.rename, []

    def rename(source, target):
        calls.append(target)
        if len(calls) == number:
            raise Crash
        real(source, target)

    patch.setattr(os, "rename", rename)


@MERGE()
@pytest.mark.parametrize("n_calls", range(8))
def test_a_crash_leaves_the_copy_as_it_was_or_is_finished_later(
    n_calls, root, offer, collection, monkeypatch
):
    folder, metadata = offer
    before = everything(root)
    report = check_contribution(folder, metadata, *collection)
    calls = []

    def counted(real):
        def step(*arguments, **options):
            if len(calls) == n_calls:
                raise Crash
            calls.append(real.__name__)
            return real(*arguments, **options)

        return step

    # the copy, three images, the workbook, two renames, and the old folder goes
    with monkeypatch.context() as patch:
        for place, name in STEPS:
            patch.setattr(place, name, counted(getattr(place, name)))
        with pytest.raises(Crash):
            merge(root, folder, metadata, report)
    assert len(calls) == n_calls
    if n_calls <= 5:
        assert everything(root) == before
    merge(root, folder, metadata, report)
    held = everything(root)
    assert {key: held[key] for key in before} == before and no_rests(root)
    names = [*metadata["File name"][:2], "old0.png", "old1.png"]
    with zipfile.ZipFile(root / ZIP) as archive:
        found = sorted(archive.namelist())
        assert found == ["CT_COVID/", *sorted(f"CT_COVID/{name}" for name in names)]
    assert (root / TRAIN).read_text().split() == ["old0.png", *metadata["File name"][:2]]


SYSTEM = ["desktop.ini", "~$meta.xlsx", "ehthumbs.db", "Thumbs.db", "._case.png", ".DS_Store"]
SYSTEM += ["meta.xlsx:Zone.Identifier"]


def test_system_files_among_the_images_are_passed_over(offer, collection):
    folder, metadata = offer
    for name in SYSTEM:
        (folder / name).write_bytes(b"x")
    report = check_contribution(folder, metadata, *collection)
    assert report.is_accepted and len(report.table) == 3
    (folder / "more.png").write_bytes(b"x")
    report = check_contribution(folder, metadata, *collection)
    assert rules(report) == {("more.png", "no line in the metadata")}


def test_a_slice_of_12_bits_is_seen_as_it_is(offer, collection):
    folder, metadata = offer
    Image.fromarray(picture(3).astype(np.uint16) * 16).save(folder / "case.png")
    report = check_contribution(folder, metadata, *collection)
    assert rules(report) == {("case.png", "copy")} and "it is old3.png" in str(report)


def test_a_copy_of_a_read_only_data_set_is_merged_into_and_can_be_deleted(
    root, offer, collection, monkeypatch
):
    folder, metadata = offer
    report = check_contribution(folder, metadata, *collection)
    for path in (*root.rglob("*"), root):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (root / "link").symlink_to(folder / "case.png") if os.access(root, os.W_OK) else None
    assert merge(root, folder, metadata, report)["COVID"] == 2
    modes = {path.stat().st_mode & stat.S_IWUSR for path in (root, *root.rglob("*"))}
    assert modes == {stat.S_IWUSR} and no_rests(root)


def test_a_contribution_to_the_real_collection_loses_nothing(real_data, tmp_path):
    covid_ct = pytest.importorskip("helpers.covidct.covid_ct")
    root, folder = tmp_path / "real", tmp_path / "new"
    shutil.copytree(real_data / "covid_ct", root, copy_function=shutil.copyfile)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)
    folder.mkdir()
    table = covid_ct.read_collection(root)
    metadata = []
    for seed, kind in ((1, "COVID"), (2, "NonCOVID"), (3, "COVID")):
        png(folder / f"made-up{seed}.png", seed, height=300, width=400)
        metadata.append([f"made-up{seed}.png", kind, f"Patient 90{seed}", "10.1000/new", "Made up"])
    metadata = pd.DataFrame(
        metadata, columns=["File name", "Class", "Patient ID", "DOI", "Captions"]
    )
    images = covid_ct.read_images(root, table)
    shutil.copyfile(real_data / "covid_ct" / XLSX, tmp_path / "x.xlsx")
    report = check_contribution(folder, metadata, table, images)
    assert report.is_accepted and report.findings.empty
    before = everything(root)
    assert merge(root, folder, metadata, report) == {"COVID": 2, "NonCOVID": 1, "there before": 0}
    after = everything(root)
    assert {key: after[key] for key in before} == before
    new = covid_ct.read_collection(root)
    assert len(new) == 749 and set(new.image) - set(table.image) == set(metadata["File name"])
    added = new[new.image.isin(metadata["File name"])]
    assert (added.part == "train").all() and sorted(added.label) == [0, 1, 1]
    assert "10.1000/new" in set(added.paper)
    # handing in figures of the collection again: every rule that should speak does
    for line in (0, 1):
        Image.fromarray(images[line][::2, ::2]).save(folder / f"made-up{line + 1}.png")
    report = check_contribution(folder, metadata, table, images)
    assert {("made-up1.png", "copy"), ("made-up2.png", "copy")} <= rules(report)
