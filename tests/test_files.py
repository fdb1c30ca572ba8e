"""Locks where there are none, and files that are nobody's data."""

import errno
import os
import threading
import warnings

import filelock
import pytest

from helpers.storage.files import is_system_file, lock

fcntl = pytest.importorskip("fcntl")

SYSTEM = ["desktop.ini", "Desktop.ini", "Thumbs.db", "ehthumbs.db", "~$meta.xlsx", "._a.png"]
SYSTEM += [".DS_Store", "meta.xlsx:Zone.Identifier", "Icon\r", "__MACOSX", ".~lock.a.xlsx#"]


@pytest.mark.parametrize("name", SYSTEM)
def test_names_of_system_files(name):
    assert is_system_file(name)


@pytest.mark.parametrize("name", ["a.png", "meta.xlsx", "ini", "a~$b.png", "thumbs.png", "_a.png"])
def test_names_of_data(name):
    assert not is_system_file(name)


def test_one_at_a_time(tmp_path):
    inside, most = [], []

    def work():
        with lock(tmp_path / "new" / "a"):
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4
    assert os.listdir(tmp_path / "new") == [".a.lock"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, 524, errno.EIO])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, code):
    """NFS without its lock service, some FUSE and Lustre mounts."""

    def flock(descriptor, operation):
        if operation & (fcntl.LOCK_EX | fcntl.LOCK_SH):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with lock(tmp_path / "a"):
            (tmp_path / "a").write_text("done")
    (warning,) = caught
    assert str(tmp_path / ".a.lock") in str(warning.message)
    assert "only one program" in str(warning.message) and "\n" not in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to_is_a_warning(tmp_path, monkeypatch, code):
    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), lock(tmp_path / "a"):
        pass


def test_what_fails_under_the_lock_is_not_taken_for_the_lock(tmp_path):
    with warnings.catch_warnings(), pytest.raises(PermissionError, match="mine"):
        warnings.simplefilter("error")
        with lock(tmp_path / "a"):
            raise PermissionError("mine")
    with lock(tmp_path / "a"):  # it is free again
        pass
