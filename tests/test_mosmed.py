"""MosMedData: the catalogue, the download against a local server, and the check of what came."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import subprocess
import threading
import zipfile

import pandas as pd
import pytest
from fault_marks import CONNECTIONS, DAMAGED, ONCE, REFUSALS
from local_server import LocalServer

from helpers.ct import mosmed
from helpers.storage import downloads
from helpers.storage.archives import ArchiveError
from helpers.storage.downloads import DownloadError

STUDIES = {
    "CT-0.zip": {"CT-0": [1, 2, 100]},
    "CT-23.zip": {"CT-2": [939, 1063], "CT-3": [1064]},
    "CT-1.zip": {"CT-1": [255, 300]},
}


def packed(number: int) -> bytes:
    return gzip.compress(f"study {number}".encode() * 50, mtime=0)


def zip_bytes(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def release_zip(name: str) -> bytes:
    numbers = sum(STUDIES[name].values(), [])
    top = name.removesuffix(".zip")
    members = {f"{top}/": b""} | {f"{top}/study_{n:04}.nii.gz": packed(n) for n in numbers}
    return zip_bytes(members | {f"__MACOSX/{top}/._study_0001.nii.gz": b"?", f"{top}/x.txt": b"?"})


def expected_files(*names: str) -> list[str]:
    categories = [item for name in names for item in STUDIES[name].items()]
    return sorted(f"studies/{c}/study_{n:04}.nii.gz" for c, ns in categories for n in ns)


def files_in(root, top="studies"):
    return sorted(p.relative_to(root).as_posix() for p in (root / top).rglob("*") if p.is_file())


@pytest.fixture
def server(monkeypatch):
    site = LocalServer()
    site.files = {f"v0.2/{name}": release_zip(name) for name in STUDIES}
    sizes = {name: len(site.files[f"v0.2/{name}"]) for name in STUDIES}
    monkeypatch.setattr(mosmed, "RELEASE", sizes)
    monkeypatch.setattr(downloads, "MAX_PAUSE", 0.0)
    yield site
    site.close()


@pytest.fixture
def fetch(server, tmp_path):
    def get(which="subset", **options):
        return mosmed.download(tmp_path / "mosmed", which, f"{server.url}/v0.2/", **options)

    return get


def test_catalogue():
    table = mosmed.catalogue()
    assert len(table) == 1110
    assert table["study"].tolist() == [f"study_{n:04}" for n in range(1, 1111)]
    counts = {"CT-0": 254, "CT-1": 684, "CT-2": 125, "CT-3": 45, "CT-4": 2}
    assert table["category"].value_counts().to_dict() == counts
    ranges = table.groupby("category")["study"].agg(["min", "max"])
    assert ranges.loc["CT-2"].tolist() == ["study_0939", "study_1063"]
    assert ranges.loc["CT-4"].tolist() == ["study_1109", "study_1110"]
    assert table["file"][254] == "studies/CT-1/study_0255.nii.gz"
    assert table.loc[table["mask"], "study"].tolist() == [f"study_{n:04}" for n in range(255, 305)]
    assert table["git_blob_sha1"].str.fullmatch("[0-9a-f]{40}").all()
    assert table["git_blob_sha1"].is_unique
    assert table["git_blob_sha1"][0] == "d74ee8b1308efc95d05822bd66dc6ee6842ffdfd"


def test_catalogue_agrees_with_the_computed_list(real_data):
    path = real_data / "mosmed" / "study_git_blob_sha1.tsv"
    known = dict(line.split("\t") for line in path.read_text().splitlines())
    table = mosmed.catalogue()
    assert dict(zip(table["study"] + ".nii.gz", table["git_blob_sha1"], strict=True)) == known


def test_release_is_the_published_one():
    assert mosmed.RELEASE["CT-0.zip"] == 1_065_471_431
    assert mosmed.RELEASE["CT-23.zip"] == 1_045_162_547
    assert mosmed.RELEASE["CT-1.zip"] == 1_050_898_487
    assert mosmed.BASE_URL.endswith("/releases/download/v0.2")


def test_subset_lands_in_the_layout_of_mosmeddata(server, fetch, tmp_path):
    report = fetch()
    root = tmp_path / "mosmed"
    assert files_in(root) == expected_files("CT-0.zip", "CT-23.zip")
    assert (root / "studies/CT-3/study_1064.nii.gz").read_bytes() == packed(1064)
    assert (report.count("present"), report.count("missing")) == (6, 1104)
    assert "6 of 1110 studies (CT-0 3, CT-2 2, CT-3 1)" in str(report)
    assert "10.1101/2020.05.20.20100362" in str(report)
    assert list(root.glob("*.zip")) == []
    assert not any(".part" in path.name for path in root.rglob("*"))


def test_second_call_asks_nobody(server, fetch):
    fetch()
    n_requests = len(server.requests)
    assert n_requests == 2
    report = fetch()
    assert len(server.requests) == n_requests
    assert report.count("present") == 6


def test_only_what_is_missing_is_fetched(server, fetch, tmp_path):
    fetch()
    study = tmp_path / "mosmed" / "studies" / "CT-2" / "study_0939.nii.gz"
    study.write_bytes(packed(939)[:-5])
    fetch("subset+CT-1")
    assert study.read_bytes() == packed(939)
    asked = [path for path, _ in server.requests]
    assert asked == ["v0.2/CT-0.zip", "v0.2/CT-23.zip", "v0.2/CT-23.zip", "v0.2/CT-1.zip"]
    assert files_in(tmp_path / "mosmed") == expected_files(*STUDIES)


def test_whole_categories_of_the_learner_are_not_fetched_again(server, fetch, tmp_path):
    table = mosmed.catalogue()
    for file in table.loc[table["category"] == "CT-0", "file"]:
        path = tmp_path / "mosmed" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    fetch()
    assert [path for path, _ in server.requests] == ["v0.2/CT-23.zip"]


@CONNECTIONS()
def test_a_cut_download_goes_on_and_leaves_no_archive(server, fetch, tmp_path):
    name = "v0.2/CT-0.zip"
    server.faults[name] = [{"cut": 200}, {"status": 500}]
    fetch()
    assert [asked for path, asked in server.requests if path == name][1:] == ["bytes=200-"] * 2
    root = tmp_path / "mosmed"
    assert files_in(root) == expected_files("CT-0.zip", "CT-23.zip")
    assert not list(root.glob("[!.]*.zip*"))


def test_archive_placed_by_hand_is_used(server, fetch, tmp_path):
    (tmp_path / "mosmed").mkdir()
    for name in ("CT-0.zip", "CT-23.zip"):
        (tmp_path / "mosmed" / name).write_bytes(release_zip(name))
    assert fetch().count("present") == 6
    assert server.requests == []


@REFUSALS()
def test_dead_address_says_where_to_put_the_file(server, fetch, tmp_path):
    server.files.clear()
    with pytest.raises(DownloadError, match="404.*place the file by hand: .*mosmed.CT-0.zip"):
        fetch()
    assert not (tmp_path / "mosmed" / "studies").exists()


@DAMAGED(2)
def test_archive_without_studies_or_damaged_is_an_error(server, fetch, monkeypatch):
    for content in (zip_bytes({"CT-0/readme.txt": b"x"}), release_zip("CT-0.zip")[:-40]):
        server.files["v0.2/CT-0.zip"] = content
        monkeypatch.setitem(mosmed.RELEASE, "CT-0.zip", len(content))
        with pytest.raises(ArchiveError, match=r"CT-0\.zip: .*delete it and get it again"):
            fetch()


def test_disk_space_is_checked_before_the_first_byte(server, fetch, tmp_path, monkeypatch):
    sizes = [mosmed.RELEASE[name] for name in ("CT-0.zip", "CT-23.zip")]
    usage = shutil.disk_usage(".")
    free = {"bytes": sum(sizes) + max(sizes) - 1}
    monkeypatch.setattr(
        downloads.shutil, "disk_usage", lambda _: usage._replace(free=free["bytes"])
    )
    with pytest.raises(DownloadError, match="make room"):
        fetch()
    assert server.requests == []
    free["bytes"] += 1
    fetch()
    free["bytes"] = 0
    fetch()
    assert len(server.requests) == 2


def test_disk_space_takes_off_what_is_there(server, fetch, tmp_path, monkeypatch):
    root = tmp_path / "mosmed"
    (root / "studies" / "CT-0").mkdir(parents=True)
    (root / "CT-0.zip").write_bytes(release_zip("CT-0.zip"))
    (root / "CT-23.zip.part").write_bytes(release_zip("CT-23.zip")[:100])
    (root / "studies/CT-0/study_0001.nii.gz").write_bytes(packed(1))
    sizes = [mosmed.RELEASE[name] for name in ("CT-0.zip", "CT-23.zip")]
    needed = sum(sizes) + max(sizes) - sizes[0] - 100 - len(packed(1))
    usage = shutil.disk_usage(".")
    free = {"bytes": needed - 1}
    monkeypatch.setattr(
        downloads.shutil, "disk_usage", lambda _: usage._replace(free=free["bytes"])
    )
    with pytest.raises(DownloadError, match="make room"):
        fetch()
    free["bytes"] = needed
    assert fetch().count("present") == 6


@ONCE()
def test_two_at_once_fetch_once(server, fetch):
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(fetch())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.count("present") for report in reports] == [6, 6]
    assert len(server.requests) == 2


def test_complete_folder_is_not_written_to(server, fetch, tmp_path, monkeypatch):
    fetch()

    def refuse(*args):
        raise PermissionError("read-only")

    monkeypatch.setattr(downloads, "lock", refuse)
    assert fetch().count("present") == 6
    with pytest.raises(DownloadError, match="cannot be written.*read-only.*another folder"):
        fetch("subset+CT-1")


def test_unknown_set(tmp_path):
    with pytest.raises(ValueError, match="which='all'.*subset"):
        mosmed.download(tmp_path / "new", "all")
    assert not (tmp_path / "new").exists()


def write_full_zip(path, numbers, extras=None):
    table = mosmed.catalogue()
    members = {f"COVID19_1110/{table['file'][n - 1]}": packed(n) for n in numbers}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zip_bytes(members | (extras or {})))


def test_full_set_from_placed_archives(server, fetch, tmp_path):
    root = tmp_path / "mosmed"
    own = pd.DataFrame({"study_id": mosmed.catalogue()["study"], "category": "as published"})
    stream = io.BytesIO()
    own.to_excel(stream, index=False)
    extras = {
        "COVID19_1110/masks/study_0255_mask.nii.gz": packed(0),
        "COVID19_1110/masks/study_0001_mask.nii.gz": packed(0),
        "COVID19_1110/dataset_registry.xlsx": stream.getvalue(),
        "COVID19_1110/LICENSE": b"CC",
        "other/study_0001.nii.gz": b"a second copy",
        "other/study_1111.nii.gz": b"not in the catalogue",
    }
    write_full_zip(root / "archive one.zip", range(1, 801), extras)
    with pytest.raises(DownloadError) as caught:
        fetch("full")
    message = str(caught.value)
    assert "310 of 1110 studies are missing" in message
    assert "mosmed.ai/datasets/covid19_1110" in message
    assert "mathurinache/mosmeddata-chest-ct-scans-with-covid19" in message
    assert str(root / "studies/CT-0/study_0001.nii.gz") in message
    assert "\n" not in message
    write_full_zip(root / "two.zip", range(801, 1111))
    report = fetch("full")
    assert report.count("present") == 1110
    assert not list(root.rglob("study_1111*"))
    assert (root / "studies/CT-0/study_0001.nii.gz").read_bytes() == packed(1)
    assert files_in(root, "masks") == ["masks/study_0255_mask.nii.gz"]
    assert (root / "LICENSE").read_bytes() == b"CC"
    assert (root / "dataset_registry.xlsx").read_bytes() == stream.getvalue()
    assert {path.name for path in root.glob("*.zip")} == {"archive one.zip", "two.zip"}
    assert server.requests == []


def test_full_set_from_an_extracted_tree(server, fetch, tmp_path):
    root = tmp_path / "mosmed"
    for file in mosmed.catalogue()["file"]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")
    assert fetch("full").count("present") == 1110
    (root / "studies/CT-4/study_1110.nii.gz").unlink()
    with pytest.raises(DownloadError, match="1 of 1110"):
        fetch("full")
    assert server.requests == []


def test_kaggles_copy_holds_unpacked_studies(server, fetch, tmp_path):
    root, files = tmp_path / "mosmed", mosmed.catalogue()["file"].str.removesuffix(".gz")
    write_full_zip(root / "kaggle.zip", range(3, 1111), {f"copy 1.0/{files[0]}": b"a study"})
    (root / files[1]).parent.mkdir(parents=True)
    (root / files[1]).write_bytes(b"another study")
    report = fetch("full")
    assert report.count("present") == 1110
    assert report.studies["file"][:3].tolist() == [*files[:2], mosmed.catalogue()["file"][2]]
    assert (root / files[0]).read_bytes() == b"a study"
    report = mosmed.verify(root)
    assert (report.count("unpacked"), report.count("mismatch")) == (2, 1108)
    assert "not packed (.nii), so nothing to compare them with: 2" in str(report)
    assert server.requests == []


def test_verify_tells_match_mismatch_and_damage(server, fetch, tmp_path, monkeypatch):
    fetch()
    root = tmp_path / "mosmed"
    table = mosmed.catalogue()
    known = table["study"].isin(["study_0001", "study_0939"])
    table.loc[known, "git_blob_sha1"] = [
        hashlib.sha1(b"blob %d\0" % len(packed(n)) + packed(n)).hexdigest() for n in (1, 939)
    ]
    monkeypatch.setattr(mosmed, "catalogue", table.copy)
    report = mosmed.verify(root)
    counts = report.studies["status"].value_counts().to_dict()
    assert counts == {"missing": 1104, "mismatch": 4, "match": 2}
    assert report.studies.loc[known, "status"].tolist() == ["match", "match"]
    assert "gzip CRC-32: 6 good" in str(report)
    assert "not byte for byte those of the mirrors: 4" in str(report)

    bad = root / "studies/CT-0/study_0001.nii.gz"
    content = bytearray(packed(1))
    content[-6] ^= 1
    bad.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"1 damaged \(studies/CT-0/study_0001.nii.gz\)"):
        mosmed.verify(root)


def test_verify_of_an_empty_folder(tmp_path):
    report = mosmed.verify(tmp_path)
    assert report.count("missing") == 1110
    assert "0 of 1110 studies (none)" in str(report)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[:-8],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-8] + bytes(4) + data[-4:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:400] + bytes([data[400] ^ 0xFF]) + data[401:],
        lambda data: data + b"more",
        lambda data: b"",
        lambda data: b"<html>",
    ],
)
def test_damage_that_nibabel_would_not_see(tmp_path, spoil):
    good = gzip.compress(bytes(range(256)) * 100 + hashlib.sha512(b"x").digest() * 20, mtime=0)
    path = tmp_path / "study.nii.gz"
    path.write_bytes(good)
    sha1 = mosmed.hash_git_blob(good)
    assert mosmed.check_study(path, sha1) == "match"
    assert mosmed.check_study(path, "0" * 40) == "mismatch"
    path.write_bytes(spoil(good))
    assert mosmed.check_study(path, sha1) == "damaged"


def test_real_masks_are_whole_and_hash_as_git_does(real_data, tmp_path):
    masks = sorted((real_data / "mosmed" / "masks").glob("*.nii.gz"))
    assert len(masks) == 5
    for mask in masks:
        data = mask.read_bytes()
        sha1 = mosmed.hash_git_blob(data)
        assert mosmed.check_study(mask, sha1) == "match"
        if shutil.which("git"):
            command = ["git", "hash-object", "--no-filters", str(mask)]
            answer = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
            assert answer.stdout.decode().strip() == sha1
        copy = tmp_path / mask.name
        copy.write_bytes(data[:-8] + bytes([data[-8] ^ 1]) + data[-7:])
        assert mosmed.check_study(copy, sha1) == "damaged"


def test_git_blob_of_known_contents():
    # what `git hash-object` prints for an empty file and for "hello\n"
    assert mosmed.hash_git_blob(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert mosmed.hash_git_blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
