"""A lost machine costs nothing that was mirrored, and the mirror is never half written."""

import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from fault_marks import MIRROR, TWO

from helpers.course import runs, sources
from helpers.phantom import simulate
from helpers.storage import downloads, mirror
from helpers.storage.mirror import MirrorError, keep, restore


@pytest.fixture
def folder(tmp_path):
    """A work folder like those of the course, with files that are not to be mirrored."""
    folder = tmp_path / "data" / "cohort"
    contents = {
        "studies/CT-0/study_0001.nii.gz": os.urandom(5000),
        "cache/volumes-0a1b.npy": os.urandom(40_000),
        ".unpacked.json": b"{}",
        "größe.csv": b"",
        "deep/" + "long/" * 30 + "name.txt": b"x",
    }
    for k, (name, content) in enumerate(contents.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(1, 1_700_000_000_123_456_789 + k))
    for name in (".mosmed.lock", "cache/lock", "CT-0.zip.part", "CT-0.zip.part.validator"):
        (folder / name).write_bytes(b"temporary")
    for name in ("cache/a.partial", ".a.csv.123", ".b.json.12.tmp", ".dataset_registry.tmp.xlsx"):
        (folder / name).write_bytes(b"temporary")
    return folder


@pytest.fixture
def drive(tmp_path):
    """An empty folder for the mirror."""
    drive = tmp_path / "drive"
    drive.mkdir()
    return drive


def files(folder):
    """Name -> contents and time of all files but the note of what the folder was made from."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != mirror.MANIFEST)
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in found
    }


def kept(folder):
    """What `files` must give after a restore."""
    unwanted = ("lock", "part", "validator", "partial", "tmp", "tmp.xlsx", "123")
    return {name: both for name, both in files(folder).items() if not name.endswith(unwanted)}


def no_temporary_files(*folders):
    names = [path.name for place in folders for path in place.iterdir()]
    return not [name for name in names if name.endswith(".part")]


def tar_with(path, members, listed=None):
    """A tar as `keep` makes it: members (name, contents or TarInfo); listed: another list."""
    contents = [(name, data if isinstance(data, bytes) else b"") for name, data in members]
    lines = {name: [len(data), 10**18, hashlib.sha256(data).hexdigest()] for name, data in contents}
    head = json.dumps(lines if listed is None else listed).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in [(mirror.MANIFEST, head), *members]:
            info = tarfile.TarInfo(name)
            if not isinstance(data, bytes):
                info, data = data, b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_round_trip_with_times_as_one_file(folder, drive):
    before = kept(folder)
    assert len(before) == 5
    archive = keep(folder, drive)
    assert archive == drive / "cohort.tar" and list(drive.iterdir()) == [archive]
    shutil.rmtree(folder.parent)
    assert restore(folder, drive) is True
    assert files(folder) == before
    assert no_temporary_files(folder.parent, drive)
    assert list(drive.iterdir()) == [archive]
    assert keep(folder, drive) is None, "copied again after a restore"


def test_nothing_is_copied_unless_a_file_changed(folder, drive):
    archive = keep(folder, drive)
    first = archive.stat()
    assert keep(folder, drive) is None
    (folder / "cache/lock").write_bytes(b"another lock")
    os.utime(folder / ".unpacked.json")  # written again with the same contents
    assert keep(folder, drive) is None
    again = archive.stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)

    study = folder / "studies/CT-0/study_0001.nii.gz"
    study.write_bytes(os.urandom(5000))  # of the same size
    for change in (lambda: None, study.unlink, lambda: (folder / "new").write_bytes(b"")):
        change()
        assert keep(folder, drive) == archive
        shutil.copytree(folder, folder.parent / "copy" / "cohort", dirs_exist_ok=True)
        restored = folder.parent / "restored" / "cohort"
        assert restore(restored, drive)
        assert files(restored) == kept(folder)
        shutil.rmtree(restored)


def test_links_and_special_files_are_left_out(folder, drive, tmp_path):
    before = kept(folder)
    (tmp_path / "secret").write_text("not to be mirrored")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "nowhere").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe")
    keep(folder, drive)
    shutil.rmtree(folder)
    assert restore(folder, drive)
    assert files(folder) == before


def test_nothing_to_keep_or_to_restore(folder, drive, tmp_path):
    assert restore(tmp_path / "data" / "other", drive) is False
    assert not (tmp_path / "data" / "other").exists()
    archive = keep(folder, drive)
    content = archive.read_bytes()
    before = files(folder)
    (folder / "mine.txt").write_text("mine")
    assert restore(folder, drive) is False, "over a folder that has files"
    assert files(folder).keys() == {*before, "mine.txt"}
    shutil.rmtree(folder)
    assert keep(folder, drive) is None
    folder.mkdir()
    assert keep(folder, drive) is None, "an empty folder in place of a full one"
    assert archive.read_bytes() == content
    assert restore(folder, drive) is True, "into an empty folder"


def test_a_crash_in_the_copy_leaves_the_earlier_mirror(folder, drive, monkeypatch):
    before = kept(folder)
    archive = keep(folder, drive)
    (folder / "new").write_bytes(b"new")

    def fill_disk(*arguments, **options):
        raise OSError(28, "No space left on device")

    def break_in(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile, "copyfileobj", fill_disk)
    with pytest.raises(MirrorError, match=r"cohort\.tar.*No space left.*room$"):
        keep(folder, drive)
    monkeypatch.undo()
    # the one step in which the new mirror takes the place of the old one
    monkeypatch.setattr(os, "replace", break_in)
    with pytest.raises(KeyboardInterrupt):
        keep(folder, drive)
    monkeypatch.undo()
    assert list(drive.iterdir()) == [archive] and no_temporary_files(folder.parent)
    shutil.rmtree(folder)
    monkeypatch.setattr(shutil, "copyfileobj", fill_disk)
    with pytest.raises(MirrorError, match="No space left"):
        restore(folder, drive)
    monkeypatch.undo()
    assert not folder.exists() and no_temporary_files(folder.parent)
    assert restore(folder, drive)
    assert files(folder) == before
    (folder / "new").write_bytes(b"new")
    assert keep(folder, drive) == archive


def write_run(folder, epochs, machine):
    """A run of so many epochs, as one machine trained it; its weights are of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"last.pt": machine, "history.csv": "epoch"}.items():
        (folder / name).write_text(f"{content} {epochs}")


def epochs_kept(archive):
    with tarfile.open(archive) as tar:
        return tar.extractfile("last.pt").read().decode()


def test_a_training_of_another_machine_is_never_replaced(tmp_path, drive):
    a, b, c = (tmp_path / machine / "run" for machine in "abc")
    for epochs in range(1, 7):
        write_run(a, epochs, "a")
        archive = keep(a, drive)
    # a machine that ran without the mirror, and is ahead or behind
    for epochs in (1, 2, 9):
        write_run(b, epochs, "b")
        assert restore(b, drive) is False
        with pytest.raises(MirrorError, match=r"run\.tar: holds something else than .*delete") as e:
            keep(b, drive)
        assert "\n" not in str(e.value) and str(b) in str(e.value)
        assert epochs_kept(archive) == "a 6"
    # it does what the line says
    shutil.rmtree(b)
    assert restore(b, drive) and (b / "last.pt").read_text() == "a 6"
    # two machines go on from the same run: the second does not undo the first
    assert restore(c, drive)
    write_run(b, 7, "b")
    assert keep(b, drive) and epochs_kept(archive) == "b 7"
    write_run(c, 7, "c")
    with pytest.raises(MirrorError, match="holds something else"):
        keep(c, drive)
    write_run(b, 8, "b")
    assert keep(b, drive) and epochs_kept(archive) == "b 8"
    # a folder that was emptied and begun again is not the one that was restored
    for path in b.glob("*.*"):
        if not path.name.startswith("."):
            path.unlink()
    assert restore(b, drive) and (b / "last.pt").read_text() == "b 8"
    # what holds all that the mirror has, and more, may replace it wherever it comes from
    shutil.copytree(b, tmp_path / "d" / "run", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "d" / "run" / "predictions.csv").write_text("more")
    assert keep(tmp_path / "d" / "run", drive) == archive


def test_a_crash_before_the_new_tar_takes_its_place_makes_it_no_stranger(
    folder, drive, monkeypatch
):
    archive = keep(folder, drive)
    (folder / "new").write_bytes(b"new")
    real = os.replace

    def crash(source, target):
        if str(target) == str(archive):
            raise KeyboardInterrupt
        real(source, target)

    for crashes in (True, False):
        (folder / ".unpacked.json").write_text(str(crashes))
        monkeypatch.setattr(os, "replace", crash if crashes else real)
        with pytest.raises(KeyboardInterrupt) if crashes else nullcontext():
            assert keep(folder, drive) == archive


def test_what_a_killed_process_left_is_removed_after_a_day(folder, drive):
    old, young = (drive / f".cohort.tar.{name}.part" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    keep(folder, drive)
    assert not old.exists() and young.exists()


@MIRROR()
@pytest.mark.parametrize("left", [0.0, 0.001, 0.5, 0.75])
def test_a_tar_that_is_cut_off_is_refused(folder, drive, left):
    archive = keep(folder, drive)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(left * len(content))])
    with pytest.raises(MirrorError, match=r"cohort\.tar: .*delete it"):
        keep(folder, drive)
    shutil.rmtree(folder)
    with pytest.raises(MirrorError, match=r"cohort\.tar: .*delete it") as error:
        restore(folder, drive)
    assert "\n" not in str(error.value)
    assert not folder.exists() and no_temporary_files(folder.parent)


def test_a_damaged_byte_is_noticed_wherever_it_is(folder, drive):
    archive = keep(folder, drive)
    content = archive.read_bytes()
    before = kept(folder)
    shutil.rmtree(folder)
    for place in range(0, len(content) - 10240, 997):
        archive.write_bytes(content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :])
        try:
            restored = restore(folder, drive)
        except MirrorError:
            assert not folder.exists()
            continue
        assert restored
        contents = {name: data for name, (data, _) in files(folder).items()}
        assert contents == {name: data for name, (data, _) in before.items()}
        shutil.rmtree(folder)


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


@MIRROR(9)
def test_a_hostile_tar_writes_nothing(tmp_path, drive):
    outside = tmp_path / "data" / "evil"
    tars = {
        "up": [("../evil", b"x")],
        "deep": [("a/../../evil", b"x")],
        "absolute": [(str(outside), b"x")],
        "link": [link("a", str(tmp_path)), ("a/evil", b"x")],
        "hard": [link("a", str(drive / "hard.tar"), tarfile.LNKTYPE)],
        "device": [link("a", "", tarfile.CHRTYPE)],
        "twice": [("a", b"x"), ("a", b"x")],
        "inner": [("a", b"x"), link("b", "a")],
        "lacks": [("a", b"x")],
    }
    line = [1, 0, hashlib.sha256(b"x").hexdigest()]
    listed = {"inner": {"a": line, "b": line}, "lacks": {"a": line, "b": line}}
    for name, members in tars.items():
        target = tmp_path / "data" / name
        tar_with(drive / f"{name}.tar", members, listed.get(name))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(MirrorError, match=rf"{name}\.tar.*delete it"):
            restore(target, drive)
        target.parent.mkdir(exist_ok=True)
        new = {path.name for path in set(tmp_path.rglob("*")) - set(before)}
        assert new <= {"data", f".{name}.lock"}, new
    good = tar_with(drive / "good.tar", [("a/b", b"x")])
    assert restore(tmp_path / "data" / "good", drive), f"{good} is as keep makes it"


@MIRROR(2)
def test_a_foreign_file_is_neither_unpacked_nor_replaced(folder, drive):
    archive = drive / "cohort.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "cache", "cache")
    for _ in range(2):
        content = archive.read_bytes()
        with pytest.raises(MirrorError, match="not made by this course.*move it away"):
            keep(folder, drive)
        assert archive.read_bytes() == content
        with pytest.raises(MirrorError, match="not made by this course"):
            restore(folder.parent / "x" / "cohort", drive)
        assert not (folder.parent / "x" / "cohort").exists()
        archive.write_bytes(os.urandom(3000))


def test_drive_that_is_not_mounted_is_one_line(folder, tmp_path):
    drive = tmp_path / "drive" / "MyDrive" / "ct-course"
    for call in (keep, restore):
        with pytest.raises(MirrorError, match="mount Drive first") as error:
            call(folder, drive)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "drive").exists()
    drive.parent.mkdir(parents=True)
    assert restore(folder.parent / "no", drive) is False
    assert keep(folder, drive) == drive / "cohort.tar"


def test_a_full_disk_is_one_line(folder, drive, monkeypatch):
    archive = keep(folder, drive)
    (folder / "new").write_bytes(b"new")
    usage = shutil.disk_usage(drive)._replace(free=100)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MirrorError, match="make room"):
        keep(folder, drive)
    shutil.rmtree(folder)
    with pytest.raises(MirrorError, match="make room"):
        restore(folder, drive)
    assert not folder.exists() and no_temporary_files(folder.parent)
    assert list(drive.iterdir()) == [archive]


def test_a_folder_that_changes_while_it_is_packed_is_refused(folder, drive, monkeypatch):
    archive = keep(folder, drive)
    content, add = archive.read_bytes(), mirror._add
    file = folder / "cache" / "volumes-0a1b.npy"

    def change(tar, name, *arguments):
        if name == mirror.MANIFEST:
            file.write_bytes(os.urandom(40_000))
        add(tar, name, *arguments)

    file.write_bytes(b"x")
    with (
        monkeypatch.context() as patch,
        pytest.raises(MirrorError, match="changes while it is pac"),
    ):
        patch.setattr(mirror, "_add", change)
        keep(folder, drive)
    assert archive.read_bytes() == content and no_temporary_files(folder.parent, drive)
    assert keep(folder, drive) == archive
    assert restore(folder.parent / "x" / "cohort", drive)
    assert files(folder.parent / "x" / "cohort") == kept(folder)


@TWO()
def test_two_at_once_do_not_harm_each_other(folder, drive, monkeypatch):
    before = kept(folder)

    def at_once(call):
        errors = []

        def run():
            try:
                call(folder, drive)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors

    at_once(keep)
    assert [path.name for path in drive.iterdir()] == ["cohort.tar"]
    # two machines with one mirror have no lock in common
    (folder / "new").write_bytes(b"new")
    before = kept(folder)
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "lock", lambda path: nullcontext())
        at_once(keep)
    assert [path.name for path in drive.iterdir()] == ["cohort.tar"]
    shutil.rmtree(folder)
    at_once(restore)
    assert files(folder) == before and no_temporary_files(folder.parent)


def test_a_lost_machine_goes_on_where_it_stopped(tmp_path, drive, monkeypatch):
    machine, to = tmp_path / "machine", drive / "ct-course"
    data_dir, runs_dir = machine / "data", machine / "runs"
    data = runs.prepare("phantom", "tiny", data_dir, mirror=to)
    assert data.mirror == str(to)
    assert [path.name for path in to.iterdir()] == ["phantom-tiny.tar"]
    first = (to / "phantom-tiny.tar").stat()
    sources.get_studies("phantom", "tiny", data_dir, to)
    assert runs.prepare("phantom", "tiny", data_dir, mirror=to).table.equals(data.table)
    assert (to / "phantom-tiny.tar").stat().st_ino == first.st_ino, "copied without a change"
    whole = runs.train(replace(data, mirror=""), runs_dir=tmp_path / "unbroken")[1]
    assert len(whole) == 2 and len(list(to.iterdir())) == 1

    def lose_machine(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train(data, runs_dir=runs_dir, on_epoch=lose_machine, max_epochs_this_call=1)
    names = {"phantom-tiny.tar", f"bilstm-{data.run_name}.tar"}
    assert {path.name for path in to.iterdir()} == names
    labels, volumes = data.labels, data.volumes[:]
    mirrored = files(machine)
    shutil.rmtree(machine)

    def must_not(*arguments, **options):
        raise AssertionError("made again")

    monkeypatch.setattr(simulate, "_make_one", must_not)
    monkeypatch.setattr("helpers.ct.cache._preprocess_one", must_not)
    again = runs.prepare("phantom", "tiny", data_dir, mirror=to)
    assert (again.labels == labels).all() and (again.volumes == volumes).all()
    for name, both in files(data_dir).items():
        if name.endswith((".nii.gz", ".npy")):
            assert both == mirrored[f"data/{name}"]
    calls = []
    history = runs.train(again, runs_dir=runs_dir, on_epoch=lambda h: calls.append(len(h)))[1]
    assert calls == [1, 2], "epoch 1 was trained again"
    timeless = [name for name in whole if name != "seconds"]
    assert history[timeless].equals(whole[timeless])

    # the finished run comes back as well
    shutil.rmtree(runs_dir)
    finished = runs.train(again, runs_dir=runs_dir)[1]
    assert finished.equals(history)

    # and a mirror that fails meanwhile costs a warning, not the training
    shutil.rmtree(runs_dir)
    (to / f"bilstm-{data.run_name}.tar").unlink()

    def fill_drive(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile, "copyfileobj", fill_drive)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = runs.train(again, runs_dir=runs_dir)[1]
    assert history[timeless].equals(whole[timeless])
    (warning,) = [str(one.message) for one in caught if "mirrored" in str(one.message)]
    assert "No space left" in warning and "\n" not in warning

    # a folder of the learner's own: only what the course made of it is mirrored
    monkeypatch.undo()
    study_dir = data_dir / "phantom-tiny"
    before = files(study_dir)
    own = runs.prepare(str(study_dir), "tiny", machine / "work", mirror=to)
    assert files(study_dir) == before
    (archive,) = to.glob("phantom-tiny-*.tar")
    with tarfile.open(archive) as tar:
        held = [Path(name).name for name in tar.getnames()]
    assert not [name for name in held if name.endswith(".nii.gz")]
    assert "split-ct0-ct23-seed0.csv" in held and "index.csv" in held
    shutil.rmtree(machine / "work")
    monkeypatch.setattr("helpers.ct.cache._preprocess_one", must_not)
    once_more = runs.prepare(str(study_dir), "tiny", machine / "work", mirror=to)
    assert once_more.table.equals(own.table)


def test_get_studies_keeps_what_it_made_and_asks_for_drive_first(tmp_path, drive, monkeypatch):
    made = []

    def make(root, *arguments, **options):
        made.append(root)
        root.mkdir(parents=True, exist_ok=True)
        (root / "study").write_bytes(b"study")

    monkeypatch.setattr(simulate, "make_cohort", make)
    for call in (sources.get_studies, runs.prepare):
        with pytest.raises(MirrorError, match="mount Drive first"):
            call("phantom", "tiny", tmp_path / "data", mirror=tmp_path / "no" / "drive")
    assert not made, "work was done before the error"
    root = sources.get_studies("phantom", "tiny", tmp_path / "data", drive)[0]
    archive = drive / "phantom-tiny.tar"
    content = archive.read_bytes()
    (root / "more").write_bytes(b"more")
    sources.get_studies("phantom", "tiny", tmp_path / "data", drive)
    assert archive.read_bytes() == content, "packed twice; prepare does that at its end"
