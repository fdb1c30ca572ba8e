"""COVID-CT: download, reading and refusals on a tiny hand-made data set, and the real one."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import time
import warnings
import zipfile
import zlib

import numpy as np
import openpyxl
import pandas as pd
import pytest
from fault_marks import CONNECTIONS, DAMAGED, REFUSALS, UNSAFE, WRONG
from local_server import LocalServer
from PIL import Image

from helpers.course import sources
from helpers.covidct import covid_ct
from helpers.covidct.covid_ct import CovidCTError
from helpers.storage import downloads
from helpers.storage.downloads import DownloadError

POSITIVE = ["2020.02.10.20021584-p6-52%0.png", "2020.02.10.20021584-p6-52%1.png", "kjr-1.png"]
POSITIVE += ["lancet%0.png"]
NEGATIVE = ["0.jpg", "1%0.jpg", "1%1.jpg", "12.png"]
COVID_ZIP, OTHER_ZIP = (f"Images-processed/CT_{name}.zip" for name in ("COVID", "NonCOVID"))
XLSX, CSV = "COVID-CT-MetaInfo.xlsx", "NonCOVID-CT-MetaInfo.csv"
TRAIN = "Data-split/COVID/trainCT_COVID.txt"
SIZES = {"train": 2, "val": 1, "test": 1}


def encoded(image, form="PNG"):
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def picture(seed, mode="RGB", form="PNG", size=(12, 9)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    return encoded(Image.fromarray(noise).convert(mode), form)


def write_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # about a name that is there twice
        for name, content in members:
            archive.writestr(name, content)


def write_split(root, name, images):
    (root / "Data-split" / name).mkdir(parents=True, exist_ok=True)
    start = 0
    for short, n in SIZES.items():
        path = root / f"Data-split/{name}/{short}CT_{name}.txt"
        path.write_text("".join(f"{image}\n" for image in images[start : start + n]))
        start += n


def positive_members():
    kinds = [("RGBA", "PNG"), ("RGB", "JPEG"), ("L", "PNG"), ("RGB", "PNG")]
    images = [picture(k, *kind) for k, kind in enumerate(kinds)]
    return [
        ("CT_COVID/", b""),
        *((f"CT_COVID/{n}", i) for n, i in zip(POSITIVE, images, strict=True)),
    ]


def negative_members():
    images = [picture(10 + k, "RGB", "JPEG") for k in range(3)] + [picture(13)]
    return [
        ("CT_NonCOVID/", b""),
        *((f"CT_NonCOVID/{n}", i) for n, i in zip(NEGATIVE, images, strict=True)),
    ]


def write_excel(root, rows=None, sheet="positive_captions", columns=None):
    book = openpyxl.Workbook()
    book.active.title = sheet
    book.active.append(columns or [*covid_ct.COLUMNS, "Time"])
    for row in rows or [
        [POSITIVE[0], "Patient 1", None, 41, "M ", "Wuhan, China ", "severe ", "['A figure. ']"],
        [POSITIVE[1][:-4], "Patient 1 ", None, "40+", None, None, None, None],
        ["kjr-1 ", "Patient 7", "10.3348/KJR.2020.0132 ", 9, "f", None, None, "Plain text."],
        [POSITIVE[3], None, "10.1016/ S0140-6736(20)30360-3", None, None, None, None, "x"],
        [None, None, None, None, None, None, None, "NTM, a line that lost its row"],
    ]:
        book.active.append(row)
    book.save(root / XLSX)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "covid"
    write_zip(folder / COVID_ZIP, positive_members())
    write_zip(folder / OTHER_ZIP, negative_members())
    write_split(folder, "COVID", POSITIVE)
    write_split(folder, "NonCOVID", NEGATIVE)
    write_excel(folder)
    patients = ["crawled_patient_0", "crawled_patient_1", "crawled_patient_1", "medpix_patient_7"]
    table = pd.DataFrame({"image name": NEGATIVE, "patient id": patients})
    table.to_csv(folder / CSV)
    return folder


def refusal(folder, *words, read=covid_ct.read_collection):
    with pytest.raises(CovidCTError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_collection(root):
    before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    table = covid_ct.read_collection(root)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    names = "image label part patient paper age gender location severity caption member archive "
    assert list(table) == (names + "extension format mode width height n_bytes").split()
    assert table.image.tolist() == POSITIVE + NEGATIVE
    assert table.label.tolist() == [1] * 4 + [0] * 4
    assert table.part.tolist() == ["train", "train", "validation", "test"] * 2
    own = "covid-image-lancet%0.png"
    positive = ["covid-1", "covid-1", "covid-7", own]
    assert table.patient.tolist() == positive + [
        "noncovid-crawled_patient_0",
        "noncovid-crawled_patient_1",
        "noncovid-crawled_patient_1",
        "noncovid-medpix_patient_7",
    ]
    preprint = "10.1101/2020.02.10.20021584"
    other = ["10.3348/kjr.2020.0132", "10.1016/s0140-6736(20)30360-3"]
    assert table.paper.tolist() == [preprint, preprint, *other] + [""] * 4
    assert table.age[[0, 2]].tolist() == [41, 9]
    assert table.age.isna().sum() == 6
    assert table.gender.tolist() == ["M", "", "F", ""] + [""] * 4
    assert table.location[0] == "Wuhan, China"
    assert table.severity[0] == "severe"
    assert table.caption.tolist() == ["A figure.", "", "Plain text.", "x"] + [""] * 4
    assert table.member[0] == f"CT_COVID/{POSITIVE[0]}"
    assert table.archive.tolist() == [COVID_ZIP] * 4 + [OTHER_ZIP] * 4
    assert table.extension.tolist() == [".png"] * 4 + [".jpg"] * 3 + [".png"]
    assert table.format.tolist() == ["PNG", "JPEG", "PNG", "PNG"] + ["JPEG"] * 3 + ["PNG"]
    assert table["mode"].tolist() == ["RGBA", "RGB", "L", "RGB"] + ["RGB"] * 4
    assert set(table.width) == {12} and set(table.height) == {9}
    assert table.n_bytes[0] == len(positive_members()[1][1])
    assert table.attrs["not_in_a_split"] == 0


@pytest.mark.parametrize(
    "text, doi",
    [
        ("10.1136/bmj.m606 ", "10.1136/bmj.m606"),
        ("10.1016/ S0140-6736(20)30154-9", "10.1016/s0140-6736(20)30154-9"),
        ("https://doi.org/10.3348/KJR.2020.0112.", "10.3348/kjr.2020.0112"),
        ("http://dx.doi.org/10.1017/ice.2020.84", "10.1017/ice.2020.84"),
        ("doi: 10.1007/s11684-020-0757-x", "10.1007/s11684-020-0757-x"),
        ("2020.01.24.919183-p27-132.png", "10.1101/2020.01.24.919183"),
        ("2020.02.10.20021584", "10.1101/2020.02.10.20021584"),
        ("10.1101/2020.04.13.20063941v1", "10.1101/2020.04.13.20063941"),
        ("10.5.png", ""),
        ("https://medrxiv.org/content/10.1101/2020.04.13.20v1.full.pdf", "10.1101/2020.04.13.20"),
        ("2019-novel-Coronavirus-severe_2020_International-Jour-p3-91.png", ""),
        ("kjr-21-e24-p5-29.png", ""),
        ("", ""),
    ],
)
def test_doi(text, doi):
    assert covid_ct.normalise_doi(text) == doi


def test_images_in_no_split_and_other_files_are_allowed(root):
    extra = [("CT_COVID/spare.png", picture(5)), ("CT_COVID/readme.txt", b"?")]
    extra += [("__MACOSX/CT_COVID/._kjr-1.png", b"?"), ("CT_COVID/.DS_Store", b"?")]
    extra += [("CT_COVID/Thumbs.db", b"?"), ("CT_COVID/~$kjr-1.png", b"?"), ("desktop.ini", b"?")]
    write_zip(root / COVID_ZIP, positive_members() + extra)
    table = covid_ct.read_collection(root)
    assert len(table) == 8
    assert table.attrs["not_in_a_split"] == 1


def test_split_file_of_another_system(root):
    path = root / TRAIN
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b" \r\n") + b"\r\n")
    assert covid_ct.read_collection(root).image.tolist() == POSITIVE + NEGATIVE


@pytest.mark.parametrize("file", [COVID_ZIP, OTHER_ZIP, TRAIN, XLSX, CSV])
def test_missing_file(root, file):
    (root / file).unlink()
    refusal(root, str(root / file), "is missing", "download")


def test_wrong_names_in_a_split(root):
    path = root / TRAIN
    good = path.read_text()
    cases = {
        good + "gone.png\n": "'gone.png', of which there is no image",
        good + POSITIVE[0] + "\n": "twice",
        "<!DOCTYPE html>\n<html>": "'<!DOCTYPE html>', of which",
        "": "names no image",
    }
    for content, words in cases.items():
        path.write_text(content)
        words = f"names {POSITIVE[0]}, as trainCT" if words == "twice" else words
        refusal(root, "trainCT_COVID.txt", words)
    path.write_bytes(b"\xff\xfe\x00")
    refusal(root, "trainCT_COVID.txt", "cannot be read")
    path.write_text(good)
    other = root / "Data-split/COVID/testCT_COVID.txt"
    other.write_text(other.read_text() + POSITIVE[0])
    refusal(root, "testCT_COVID.txt", f"names {POSITIVE[0]}, as trainCT_COVID.txt does")


def test_name_in_both_classes(root):
    write_zip(root / OTHER_ZIP, [*negative_members(), ("CT_NonCOVID/kjr-1.png", picture(1))])
    path = root / "Data-split/NonCOVID/testCT_NonCOVID.txt"
    path.write_text("kjr-1.png\n")
    refusal(root, "testCT_NonCOVID.txt", "names kjr-1.png, as valCT_COVID.txt does")


def member(name, kind=0o100644):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, kind << 16
    return info


@UNSAFE()
@pytest.mark.parametrize(
    "extra, words",
    [
        ("../evil.png", "'../evil.png' leads outside"),
        ("/etc/evil.png", "'/etc/evil.png' leads outside"),
        ("CT_COVID/../../evil.png", "leads outside"),
        ("..\\evil.png", "leads outside"),
        ("C:/evil.png", "leads outside"),
        (member("CT_COVID/link.png", stat.S_IFLNK | 0o777), "'CT_COVID/link.png' is a link"),
        ("second/kjr-1.png", "'second/kjr-1.png' is there twice"),
        ("CT_COVID/kjr-1.png", "'CT_COVID/kjr-1.png' is there twice"),
    ],
)
def test_unsafe_archive(root, extra, words):
    write_zip(root / COVID_ZIP, [*positive_members(), (extra, picture(1))])
    refusal(root, "CT_COVID.zip", words)


@DAMAGED()
def test_encrypted_member(root):
    path = root / COVID_ZIP
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    refusal(root, "CT_COVID.zip", "lancet%0.png' is encrypted")


@DAMAGED(2)
def test_truncated_and_foreign_archive(root):
    path = root / COVID_ZIP
    data = path.read_bytes()
    for content in (data[: len(data) // 2], data[:-30], b"<html>not found</html>", b""):
        path.write_bytes(content)
        refusal(root, "CT_COVID.zip", "cannot be read", "delete it and download it again")


@DAMAGED()
def test_bad_crc_is_found_when_the_image_is_read(root):
    path = root / COVID_ZIP
    large = ("CT_COVID/" + POSITIVE[0], picture(0, size=(150, 150)))
    write_zip(path, [large, *positive_members()[2:]], zipfile.ZIP_STORED)
    table = covid_ct.read_collection(root)
    data = bytearray(path.read_bytes())
    data[data.index(b"IEND") + 5] ^= 1
    path.write_bytes(data)
    assert len(covid_ct.read_collection(root)) == 8
    read = lambda folder: covid_ct.read_images(folder, table)  # noqa: E731
    refusal(root, "CT_COVID.zip", f"CT_COVID/{POSITIVE[0]}", "Bad CRC-32", read=read)
    rest = table[table.image != POSITIVE[0]]
    assert len(covid_ct.read_images(root, rest)) == 7


def png_of_size(width, height):
    """A PNG whose header claims a size that its data do not have."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    head = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"\0" * 10)
    tail = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + head + tail


@pytest.mark.parametrize(
    "content, words",
    [
        (b"no image at all", "cannot identify image"),
        (b"", "cannot identify image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify image"),
        (png_of_size(60_000, 60_000), "decompression bomb"),
        (png_of_size(10_000, 10_000), "decompression bomb"),
    ],
)
def test_no_image_or_an_absurd_one(root, content, words):
    write_zip(root / COVID_ZIP, [*positive_members()[:-1], ("CT_COVID/lancet%0.png", content)])
    refusal(root, "CT_COVID.zip", "CT_COVID/lancet%0.png", words)


def test_image_cut_off(root):
    whole = picture(3, size=(60, 60))
    for content in (whole[:500], png_of_size(50, 50)):
        write_zip(root / COVID_ZIP, [*positive_members()[:-1], ("a/lancet%0.png", content)])
        table = covid_ct.read_collection(root)
        read = lambda folder, table=table: covid_ct.read_images(folder, table)  # noqa: E731
        refusal(root, "CT_COVID.zip", "a/lancet%0.png cannot be read", read=read)


@UNSAFE()
def test_member_that_claims_too_much(root, monkeypatch):
    monkeypatch.setattr(covid_ct, "MAX_BYTES", 300)
    write_zip(root / COVID_ZIP, [*positive_members(), ("CT_COVID/big.png", bytes(301))])
    refusal(root, "CT_COVID.zip", "is too large")


def test_wrong_metadata(root):
    write_excel(root, sheet="Sheet1")
    refusal(root, XLSX, "positive_captions")
    write_excel(root, columns=["File name", "Patient ID", "Age"])
    refusal(root, XLSX, "DOI")
    row = [POSITIVE[0], *[None] * 7]
    write_excel(root, rows=[row, row])
    refusal(root, XLSX, POSITIVE[0])
    (root / XLSX).write_bytes(b"<html>")
    refusal(root, XLSX, "cannot be read")
    write_excel(root)
    (root / CSV).write_text("image name,age\n0.jpg,4\n")
    refusal(root, CSV, "patient id")
    (root / CSV).write_text("<html>\n<body>, no\n")
    refusal(root, CSV, "cannot be read")


def test_images_without_metadata_are_patients_of_their_own(root):
    write_excel(root, rows=[["another.png", "Patient 3", *[None] * 6]])
    table = covid_ct.read_collection(root)
    assert table.patient[:4].tolist() == [f"covid-image-{name}" for name in POSITIVE]
    assert table.paper[:4].tolist() == ["10.1101/2020.02.10.20021584"] * 2 + [""] * 2


def test_images_come_grey_in_the_order_of_the_table(root):
    table = covid_ct.read_collection(root)
    images = covid_ct.read_images(root, table)
    assert all(image.dtype == np.uint8 and image.shape == (9, 12) for image in images)
    for k in (0, 2, 3):
        noise = np.random.default_rng(k).integers(0, 256, (9, 12), dtype=np.uint8)
        assert (images[k] == noise).all()
    jpeg = Image.open(io.BytesIO(positive_members()[2][1])).convert("L")
    assert (images[1] == np.asarray(jpeg)).all()
    order = [6, 0, 3, 5, 0]
    again = covid_ct.read_images(root, table.iloc[order])
    assert all((a == images[k]).all() for a, k in zip(again, order, strict=True))
    boxed = covid_ct.read_images(root, table.iloc[order], (20, 16))
    assert boxed.shape == (5, 20, 16) and boxed.dtype == np.uint8
    for a, k in zip(boxed, order, strict=True):
        assert (a == covid_ct.letterbox(images[k], (20, 16))).all()
    assert covid_ct.read_images(root, table[:0], (20, 16)).shape == (0, 20, 16)
    assert covid_ct.read_images(root, table[:0]) == []
    gone = table.assign(image="gone.png")
    read = lambda folder: covid_ct.read_images(folder, gone)  # noqa: E731
    refusal(root, "CT_COVID.zip", "holds no gone.png", read=read)


def reopened(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return Image.open(stream)


def test_colour_modes():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    plain = Image.fromarray(grey)
    for mode in ("L", "RGB", "RGBA", "LA"):
        assert (covid_ct.to_grey(reopened(plain.convert(mode))) == grey).all()
    palette = Image.fromarray(grey)
    palette.putpalette([value for k in range(255, -1, -1) for value in (k, k, k)])
    assert (covid_ct.to_grey(reopened(palette)) == 255 - grey).all()
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    assert (covid_ct.to_grey(reopened(sixteen)) == grey).all()
    twelve = Image.fromarray(grey.astype(np.uint16) * 16)  # 12 bits
    assert (covid_ct.to_grey(reopened(twelve)) == grey).all()
    shifted = Image.fromarray(grey.astype(np.uint16) * 8 + 31_700)  # HU with an offset
    assert (covid_ct.to_grey(reopened(shifted)) == grey).all()
    assert (covid_ct.to_grey(reopened(shifted, "TIFF")) == grey).all()
    flat = Image.fromarray(np.full((2, 2), 4095, np.uint16))
    assert not covid_ct.to_grey(reopened(flat)).any()
    assert covid_ct.to_grey(Image.new("1", (2, 2), 1)).tolist() == [[255, 255], [255, 255]]
    cmyk = covid_ct.to_grey(reopened(plain.convert("CMYK"), "JPEG", quality=100)).astype(int)
    assert abs(cmyk - grey).max() <= 3
    colour = covid_ct.to_grey(Image.new("RGB", (1, 1), (200, 100, 50)))
    assert colour[0, 0] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


def test_transparent_pixels_are_white():
    half = Image.new("RGBA", (1, 1), (100, 100, 100, 51))
    assert covid_ct.to_grey(half)[0, 0] == round(0.2 * 100 + 0.8 * 255)
    assert covid_ct.to_grey(Image.new("LA", (1, 1), (0, 0)))[0, 0] == 255
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 40, 40, 40])
    palette.putdata([0, 1])
    assert covid_ct.to_grey(reopened(palette, transparency=0)).tolist() == [[255, 40]]


def test_pixels_without_a_known_range():
    for mode in ("F", "I"):
        with pytest.raises(ValueError, match=f"mode {mode} has no known range"):
            covid_ct.to_grey(Image.new(mode, (2, 2)))


def png_of_16_bit_colours():
    """An RGB PNG of 16 bits a colour, which Pillow can read and not write: 12 bits of grey."""
    rows = b"".join(b"\0" + struct.pack(">12H", *[4095] * 12) for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_colours_of_16_bits_are_refused_not_darkened():
    image = Image.open(io.BytesIO(png_of_16_bit_colours()))
    with pytest.raises(ValueError, match="colours of 16 bits have no known range"):
        covid_ct.to_grey(image)
    image.load()
    assert image.mode == "RGB" and np.asarray(image).max() == 15, "what Pillow makes of it"


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("Patient 12", "covid-12"),
        ("patient12", "covid-12"),
        (" Patient  12 ", "covid-12"),
        ("case a b", "covid-case_a_b"),
        ("", "covid-image-x.png"),
        ("Patient ", "covid-image-x.png"),
    ],
)
def test_patient_ids(written, known):
    assert covid_ct.patient_id(written, "COVID", "x.png") == known


def triangle_matrix(n_in, n_out):
    """Weights (n_out, n_in) of a triangle filter as wide as the reduction; rows sum to 1."""
    scale = n_in / n_out
    width = max(scale, 1)
    centre = (np.arange(n_out) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(n_in)[None] - centre[:, None]) / width
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "shape, size, inner",
    [
        ((40, 90), (32, 32), (14, 32)),
        ((91, 40), (32, 32), (32, 14)),
        ((10, 20), (32, 48), (24, 48)),
        ((61, 1671), (64, 64), (2, 64)),
        ((32, 32), (32, 32), (32, 32)),
    ],
)
def test_letterbox(shape, size, inner):
    image = np.random.default_rng(1).integers(30, 256, shape, dtype=np.uint8)
    boxed = covid_ct.letterbox(image, size)
    assert boxed.shape == size and boxed.dtype == np.uint8
    rows = triangle_matrix(shape[0], inner[0])
    expected = rows @ image @ triangle_matrix(shape[1], inner[1]).T
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    found = boxed[top : top + inner[0], left : left + inner[1]].astype(float)
    assert np.abs(found - expected).max() <= 1.01
    frame = boxed.copy()
    frame[top : top + inner[0], left : left + inner[1]] = 0
    assert not frame.any()


def test_letterbox_does_not_alias():
    stripes = np.zeros((128, 128), np.uint8)
    stripes[:, ::2] = 200
    inner = covid_ct.letterbox(stripes, (16, 16))[1:-1, 1:-1]
    assert inner.min() >= 98 and inner.max() <= 102


def known_images():
    """The catalogue of the hand-made set."""
    kinds = {"COVID": positive_members(), "NonCOVID": negative_members()}
    rows = [
        (kind, name.split("/")[1], hashlib.sha1(content).hexdigest())
        for kind, members in kinds.items()
        for name, content in members[1:]
    ]
    return pd.DataFrame(rows, columns=["kind", "image", "sha1"])


@pytest.fixture
def server(root, monkeypatch):
    site = LocalServer()
    site.files = {
        f"master/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    counts = {file: SIZES.get(file.split("/")[-1].split("CT")[0], 4) for file in covid_ct.FILES}
    monkeypatch.setattr(covid_ct, "FILES", counts)
    monkeypatch.setattr(covid_ct, "catalogue", known_images)
    monkeypatch.setattr(downloads, "MAX_PAUSE", 0.0)
    yield site
    site.close()


@pytest.fixture
def fetch(server, tmp_path):
    def fetch(*names):
        sources = [f"{server.url}/{name}/" for name in names or ["master"]]
        return covid_ct.download(tmp_path / "new", sources)

    return fetch


def test_files_are_those_of_the_published_set():
    counts = list(covid_ct.FILES.values())
    assert counts == [349, 397, 191, 60, 98, 234, 58, 105, 349, 397]
    first, second = covid_ct.BASE_URLS
    assert first == "https://raw.githubusercontent.com/UCSD-AI4H/COVID-CT/master"
    mirror = "desaisrkr/https-github.com-UCSD-AI4H-COVID-CT"
    assert second == f"https://raw.githubusercontent.com/{mirror}/master"
    assert "2003.13865" in covid_ct.CREDIT


def test_download_and_second_call(server, fetch, root, tmp_path, monkeypatch):
    assert fetch() == tmp_path / "new"
    for file in covid_ct.FILES:
        assert (tmp_path / "new" / file).read_bytes() == (root / file).read_bytes()
    assert len(server.requests) == 10
    assert len(covid_ct.read_collection(fetch())) == 8

    def refuse(*args):
        raise PermissionError("read-only")

    monkeypatch.setattr(downloads, "lock", refuse)
    fetch()
    assert len(server.requests) == 10
    (tmp_path / "new" / CSV).unlink()
    with pytest.raises(DownloadError, match="cannot be written.*read-only.*another folder"):
        fetch()


@CONNECTIONS()
def test_cut_connections_are_continued(server, fetch, root, tmp_path):
    name = f"master/{COVID_ZIP}"
    server.faults[name] = [{"cut": 200}, {"status": 503}, {"cut": 100}]
    fetch()
    assert (tmp_path / "new" / COVID_ZIP).read_bytes() == (root / COVID_ZIP).read_bytes()
    asked = [byte_range for path, byte_range in server.requests if path == name]
    assert asked == [None, "bytes=200-", "bytes=200-", "bytes=300-"]


def test_damaged_file_is_fetched_again_and_kept_aside(server, fetch, root, tmp_path):
    fetch()
    path = tmp_path / "new" / OTHER_ZIP
    data = bytearray(path.read_bytes())
    data[data.index(b"1%0.jpg") + 200] ^= 255
    path.write_bytes(data)
    (tmp_path / "new" / TRAIN).write_text("<html>an error page</html>")
    fetch()
    assert path.read_bytes() == (root / OTHER_ZIP).read_bytes()
    assert path.with_name("CT_NonCOVID.zip.old").read_bytes() == data
    asked = sorted(path for path, _ in server.requests[10:])
    assert asked == sorted([f"master/{OTHER_ZIP}", f"master/{TRAIN}"])


@WRONG()
@pytest.mark.parametrize("file", [COVID_ZIP, TRAIN, XLSX, CSV])
def test_page_instead_of_a_file(server, fetch, tmp_path, file):
    server.faults[f"master/{file}"] = [{"html": b"<html>sign in</html>"}]
    with pytest.raises(DownloadError, match="web page.*place the file by hand"):
        fetch()
    assert not (tmp_path / "new" / file).exists()
    assert fetch() and (tmp_path / "new" / file).exists()


@WRONG()
@pytest.mark.parametrize("file", [COVID_ZIP, TRAIN, XLSX, CSV])
def test_page_without_its_content_type_is_refused_too(server, fetch, tmp_path, file):
    good = server.files[f"master/{file}"]
    server.files[f"master/{file}"] = b"<html>\n<p>try, again\n</html>"
    with pytest.raises(DownloadError) as caught:
        fetch()
    assert str(tmp_path / "new" / file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new" / file).exists()
    server.files[f"master/{file}"] = good
    fetch()


@REFUSALS()
def test_address_that_is_gone(server, fetch, tmp_path):
    del server.files[f"master/{XLSX}"]
    with pytest.raises(DownloadError, match="404.*place the file by hand: .*MetaInfo.xlsx"):
        fetch()
    assert (tmp_path / "new" / COVID_ZIP).exists()


def test_wrong_counts_are_refused(server, fetch, tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in positive_members()[:-1]:
            archive.writestr(name, content)
    good = server.files[f"master/{COVID_ZIP}"]
    server.files[f"master/{COVID_ZIP}"] = stream.getvalue()
    with pytest.raises(DownloadError, match="CT_COVID.zip: holds 3 images instead of 4"):
        fetch()
    server.files[f"master/{COVID_ZIP}"] = good
    short = "Data-split/COVID/testCT_COVID.txt"
    for lines in (f"{POSITIVE[3]}\n{POSITIVE[0]}\n", "x.png\n"):
        server.files[f"master/{short}"] = lines.encode()
        with pytest.raises(DownloadError, match="testCT_COVID.txt: .*(2 images instead|x.png)"):
            fetch()
    assert not (tmp_path / "new" / short).exists()


def mirrored(server):
    """The site's files under "mirror/", too."""
    server.files |= {f"mirror/{name[7:]}": data for name, data in server.files.items()}


def test_second_source_when_the_first_is_dead(server, root, tmp_path, recwarn):
    sources = ["http://127.0.0.1:9/master", f"{server.url}/master"]
    folder = covid_ct.download(tmp_path / "new", sources)
    for file in covid_ct.FILES:
        assert (folder / file).read_bytes() == (root / file).read_bytes()
    assert sources == ["http://127.0.0.1:9/master", f"{server.url}/master"]
    assert not list(recwarn)


@pytest.mark.parametrize(
    "fault", [{"html": b"<html>sign in</html>"}, {"status": 404}, {"replace": b"PK, or so"}]
)
def test_source_that_lies_is_asked_for_one_file_only(server, fetch, root, tmp_path, fault):
    mirrored(server)
    server.faults[f"master/{COVID_ZIP}"] = [fault]
    fetch("master", "mirror")
    asked = [path for path, _ in server.requests]
    assert asked == [f"master/{COVID_ZIP}", *(f"mirror/{file}" for file in covid_ct.FILES)]
    for file in covid_ct.FILES:
        assert (tmp_path / "new" / file).read_bytes() == (root / file).read_bytes()


def test_first_source_is_asked_again_for_what_the_second_lacks(server, fetch):
    mirrored(server)
    del server.files[f"master/{COVID_ZIP}"], server.files[f"mirror/{XLSX}"]
    assert len(covid_ct.read_collection(fetch("master", "mirror"))) == 8


def test_no_source_is_left(server, fetch, tmp_path):
    server.files = {f"mirror/{COVID_ZIP}": b"PK, or so"}
    with pytest.raises(DownloadError) as caught:
        fetch("master", "mirror")
    message, path = str(caught.value), tmp_path / "new" / COVID_ZIP
    assert "\n" not in message
    assert f"{server.url}/master/{COVID_ZIP}: the server answers 404" in message
    assert f"{server.url}/mirror/{COVID_ZIP}: thrown away ({path}: cannot be read" in message
    assert message.endswith(f"; place the file by hand: {path}")
    assert not path.exists()


def test_full_disk_is_no_fault_of_the_source(server, fetch, monkeypatch):
    mirrored(server)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("", (), {"free": 10}))
    with pytest.raises(DownloadError, match="^[^;]*are free; make room or choose.*another disk$"):
        fetch("master", "mirror")
    assert len(server.requests) == 1


@pytest.mark.parametrize("same", [True, False])
def test_part_of_one_source_is_continued_at_another_only_if_it_is_the_same(
    server, fetch, tmp_path, same
):
    mirrored(server)
    if not same:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, content in positive_members():
                archive.writestr(name, content)
        server.files[f"mirror/{COVID_ZIP}"] = stream.getvalue()
    server.faults[f"master/{COVID_ZIP}"] = [{"cut": 200}, {"status": 404}]
    fetch("master", "mirror")
    asked = [wanted for path, wanted in server.requests if path == f"mirror/{COVID_ZIP}"]
    assert asked == ["bytes=200-"]
    came = (tmp_path / "new" / COVID_ZIP).read_bytes()
    assert came == server.files[f"mirror/{COVID_ZIP}"]


def test_images_that_are_not_the_known_ones_are_named_once(server, fetch, root, recwarn):
    """Another picture under its name, one renamed, and in the other class the same, packed anew."""
    members = dict(positive_members())
    members[f"CT_COVID/{POSITIVE[1]}"] = picture(99)
    members["CT_COVID/own.png"] = members.pop(f"CT_COVID/{POSITIVE[3]}")
    write_zip(root / COVID_ZIP, members.items())
    write_zip(root / OTHER_ZIP, negative_members(), zipfile.ZIP_STORED)
    write_split(root, "COVID", [*POSITIVE[:3], "own.png"])
    server.files |= {
        f"master/{file}": (root / file).read_bytes() for file in covid_ct.FILES if "CT_" in file
    }
    folder = fetch()
    (warned,) = recwarn
    assert str(warned.message) == (
        f"{folder}: 6 of 8 images are the known ones, bit for bit; 1 with other bytes "
        f"({POSITIVE[1]}); 1 missing ({POSITIVE[3]}); 1 additional (own.png)"
    )
    assert warned.filename == __file__
    fetch()
    assert len(recwarn) == 1
    report = covid_ct.verify(folder)
    assert str(report) == str(warned.message)
    assert sorted(report.names("match")) == sorted([POSITIVE[0], POSITIVE[2], *NEGATIVE])
    assert set(report.images.kind[report.images.status != "match"]) == {"COVID"}


def test_verify_own_images_and_a_damaged_archive(root):
    report = covid_ct.verify(root)
    assert "0 of 746 images are the known ones" in str(report)
    assert "; 5 with other bytes (" in str(report)
    assert str(report).endswith(", ...); 3 additional (kjr-1.png, lancet%0.png, 12.png)")
    data = bytearray((root / OTHER_ZIP).read_bytes())
    data[data.index(b"1%0.jpg") + 200] ^= 255
    (root / OTHER_ZIP).write_bytes(data)
    refusal(root, "CT_NonCOVID.zip", "1%0.jpg cannot be read", read=covid_ct.verify)
    (root / COVID_ZIP).unlink()
    refusal(root, "CT_COVID.zip: is missing", read=covid_ct.verify)


def test_catalogue():
    table = covid_ct.catalogue()
    assert table.kind.value_counts().to_dict() == {"NonCOVID": 397, "COVID": 349}
    assert table.sha1.str.fullmatch("[0-9a-f]{40}").all()
    assert table.image.is_unique and table.sha1.is_unique
    pair = table.set_index("image").kind[["kjr-21-e24-p5-29.png", "71%0.jpg"]]
    assert pair.tolist() == ["COVID", "NonCOVID"]


def test_get(root, tmp_path, monkeypatch):
    assert sources.get_images(root) == (root, "Images of covid.")
    assert sources.get_images(str(root))[0] == root
    refusal(tmp_path, "Data-split", '"covid-ct"', read=sources.get_images)
    with pytest.raises(ValueError, match='PROFILE is "huge"; choose one of tiny, quick, full'):
        sources.get_images("phantom", tmp_path, "huge")
    monkeypatch.setattr(covid_ct, "download", lambda folder: folder)
    folder, caption = sources.get_images("covid-ct", tmp_path)
    assert folder == tmp_path / "covid-ct"
    assert "Zhao et al. 2020" in caption and "copyright" in caption


@pytest.fixture(scope="module")
def real(real_data):
    root = real_data / "covid_ct"
    start = time.perf_counter()
    table = covid_ct.read_collection(root)
    print(f"\nreal data, 746 headers: {time.perf_counter() - start:.1f} s")
    return root, table


def test_real_split(real):
    table = real[1]
    assert len(table) == 746 and table.attrs["not_in_a_split"] == 0
    counts = table.groupby(["label", "part"]).size()
    assert counts[1].to_dict() == {"train": 191, "validation": 60, "test": 98}
    assert counts[0].to_dict() == {"train": 234, "validation": 58, "test": 105}
    assert table.groupby("patient").part.nunique().max() == 1
    assert table.groupby("label").patient.nunique().to_dict() == {0: 171, 1: 213}
    assert not table.patient.str.contains("-image-").any()


def test_real_papers(real):
    table = real[1]
    positive = table[table.label == 1]
    assert positive.paper.str.fullmatch(r"10\.\d{4}/[^\sA-Z]+").all()
    assert positive.paper.nunique() == 58
    assert table.paper[table.label == 0].eq("").all()
    parts = positive.groupby("paper").part.agg(set)
    assert parts[parts.map(len) > 1].to_dict() == {
        "10.1101/2020.03.12.20034686": {"train", "test"},
        "10.1101/2020.03.13.20035212": {"train", "validation"},
        "10.1101/2020.03.22.20040782": {"validation", "test"},
    }
    # the Lancet's file names are one a figure; taken for papers they make 70 of the 58
    stems = positive.image.str.replace(r"\.png$", "", regex=True)
    assert stems.str.replace(r"[-_]?p\d+.*$", "", regex=True).nunique() == 70


def test_real_formats(real):
    table = real[1]
    counts = table.groupby(["label", "extension", "format", "mode"]).size().to_dict()
    assert counts == {
        (0, ".jpg", "JPEG", "L"): 23,
        (0, ".jpg", "JPEG", "RGB"): 179,
        (0, ".png", "PNG", "RGB"): 195,
        (1, ".png", "JPEG", "RGB"): 34,
        (1, ".png", "PNG", "L"): 21,
        (1, ".png", "PNG", "RGB"): 120,
        (1, ".png", "PNG", "RGBA"): 174,
    }
    assert (table.width.min(), table.width.max()) == (115, 1671)
    assert (table.height.min(), table.height.max()) == (61, 1225)
    assert table.age.notna().sum() == 157
    assert table.caption[table.label == 1].ne("").sum() == 336
    assert not table.caption.str.startswith("[").any()


def test_real_alpha_is_opaque_everywhere(real):
    root, table = real
    with zipfile.ZipFile(root / COVID_ZIP) as archive:
        for name in table.member[table["mode"] == "RGBA"]:
            with Image.open(io.BytesIO(archive.read(name))) as image:
                assert image.getchannel("A").getextrema() == (255, 255)


def test_real_images_decode(real):
    root, table = real
    start = time.perf_counter()
    images = covid_ct.read_images(root, table, (128, 128))
    print(f"\nreal data, 746 images decoded to 128 x 128: {time.perf_counter() - start:.1f} s")
    assert images.shape == (746, 128, 128)
    assert (images.reshape(746, -1).std(axis=1) > 10).all()
    few = table.iloc[[0, 400, 745]]
    for image, row in zip(covid_ct.read_images(root, few), few.itertuples(), strict=True):
        assert image.shape == (row.height, row.width)
    # a figure that stands in both classes and in two parts of the split
    pair = [np.flatnonzero(table.image == name)[0] for name in ("kjr-21-e24-p5-29.png", "71%0.jpg")]
    assert table.part.iloc[pair].tolist() == ["test", "train"]
    assert np.corrcoef(images[pair].reshape(2, -1))[0, 1] > 0.9


def test_real_set_counts_as_complete(real, monkeypatch):
    def refuse(*args):
        raise AssertionError("a complete folder is written to")

    monkeypatch.setattr(downloads, "lock", refuse)
    assert covid_ct.download(real[0], ["http://127.0.0.1:9/nowhere"]) == real[0]


def test_real_images_are_the_known_ones(real):
    report = covid_ct.verify(real[0])
    assert report.images.status.eq("match").all()
    assert str(report) == f"{real[0]}: 746 of 746 images are the known ones, bit for bit"
