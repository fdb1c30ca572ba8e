"""A second home for what is slow to make: each folder as one tar file, on Google Drive for example.

Colab takes its machine back without asking, and Drive is slow with many small files. The first
member of a tar lists all its files with size, time and SHA-256. The list and the files come into
the mirror in one step, so no crash can part them. A folder notes which tars it was made from or
copied to: a tar of another origin, a longer training of another machine, is never replaced.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from contextlib import contextmanager
from pathlib import Path

from helpers.storage.archives import is_safe
from helpers.storage.downloads import DownloadError, check_space
from helpers.storage.files import file_size, lock, temporary_beside, write_whole

# in a tar the list of its files, in a folder the fingerprints of two such lists
MANIFEST = ".mirror.json"
TEMPORARY = re.compile(r"lock|.*\.(part|partial|lock|tmp)(\..*)?|\..*\.\d+")
DAMAGE = (tarfile.TarError, ValueError, TypeError, KeyError, AttributeError, OverflowError)


class MirrorError(RuntimeError):
    """A folder cannot be mirrored or restored; one line: the file, the reason and the remedy."""


def keep(folder: str | os.PathLike, mirror: str | os.PathLike) -> Path | None:
    """Copy `folder` to `mirror` as one file, <name of the folder>.tar; return its path.

    None, and nothing is copied, when the folder is missing or empty, or when the mirror has the
    same files with the same contents; a file of the same size and time counts as the same.
    Empty folders, temporary files, locks, symbolic links and special files are left out.
    `mirror` is made if the folder it lies in exists. An interrupted call leaves the earlier tar as
    it was. Raises MirrorError, also for a tar that is damaged or not made here, for it may be
    yours, and for one with other contents that this folder was neither restored from nor kept in.
    """
    folder = Path(folder)
    archive = archive_of(folder, mirror)
    with _in_words(folder, archive):
        if not _files(folder):
            return None
        with lock(folder):
            known = _read_manifest(archive) if archive.exists() else {}
            manifest = _list(folder, known)
            # a file that was written again with the same contents has another time, and is the same
            if _contents(manifest) == _contents(known):
                return None
            is_more = _contents(known).items() <= _contents(manifest).items()
            if not (is_more or _fingerprint(known) in _origin(folder)):
                raise MirrorError(
                    f"{archive}: holds something else than {folder}, which was not restored from "
                    "it; delete that folder to get what the mirror has, or move the tar away"
                )
            archive.parent.mkdir(exist_ok=True)
            with temporary_beside(archive) as part:
                _pack(folder, part, manifest)
                if _list(folder, manifest) != manifest:
                    reason = "changes while it is packed; try again when nothing writes to it"
                    raise MirrorError(f"{folder}: {reason}")
                # before the tar takes its place: a crash between the two must not make it foreign
                _note_origin(folder, known, manifest)
                os.replace(part, archive)
    return archive


def restore(folder: str | os.PathLike, mirror: str | os.PathLike) -> bool:
    """Bring `folder` back from `mirror`; True if that was done.

    False when something is in the folder already, or when the mirror does not have it. The times
    of the files come back as well. Raises MirrorError when Drive is not mounted, the disk is full
    or the tar is damaged, cut off or foreign; then the folder is as it was.
    """
    folder = Path(folder)
    archive = archive_of(folder, mirror)
    with _in_words(folder, archive):
        if _is_filled(folder) or not archive.is_file():
            return False
        with lock(folder), temporary_beside(folder) as unpacked:
            if _is_filled(folder):  # another process was first
                return False
            check_space(folder.parent, file_size(archive))
            unpacked.mkdir()
            _note_origin(unpacked, _unpack(archive, unpacked))
            if folder.is_dir():
                (folder / MANIFEST).unlink(missing_ok=True)
                folder.rmdir()
            os.replace(unpacked, folder)
    return True


def archive_of(folder: str | os.PathLike, mirror: str | os.PathLike) -> Path:
    """Where the mirror holds `folder`; MirrorError if it is not there and cannot be made."""
    mirror = Path(mirror).expanduser()
    if not os.path.isdir(mirror.parent):  # False for a broken mount too, where Path.is_dir raises
        raise MirrorError(
            f"{mirror}: there is no folder {mirror.parent}; mount Drive first, or correct the path"
        )
    return mirror / f"{Path(folder).name}.tar"


@contextmanager
def _in_words(folder, archive):
    try:
        yield
    except DownloadError as full:
        raise MirrorError(str(full)) from None
    except OSError as error:
        raise MirrorError(
            f"{archive} or {folder}: cannot be read or written ({error.strerror or error}); make "
            "sure that Drive is mounted and that there is room"
        ) from None
    except DAMAGE as bad:
        raise MirrorError(
            f"{archive}: is damaged or not made by this course ({bad}); delete it or move it "
            "away, it will be made again"
        ) from None


def _is_filled(folder):
    return folder.is_dir() and any(path.name != MANIFEST for path in folder.iterdir())


def _files(folder) -> dict[str, list[int]]:
    """Name below `folder` -> size and time (ns) of every file that is to be mirrored."""
    found = {}
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names if not TEMPORARY.fullmatch(name)):
            if path.is_file() and not path.is_symlink():
                stat = path.stat()
                found[path.relative_to(folder).as_posix()] = [stat.st_size, stat.st_mtime_ns]
    found.pop(MANIFEST, None)
    return dict(sorted(found.items()))


def _list(folder, known) -> dict[str, list]:
    """Name -> size, time (ns) and SHA-256, which `known` tells for files of its size and time."""
    manifest = {}
    for name, seen in _files(folder).items():
        is_known = name in known and known[name][:2] == seen
        manifest[name] = [*seen, known[name][2] if is_known else _sha256(folder / name)]
    return manifest


def _sha256(path):
    import pooch

    return pooch.file_hash(str(path), alg="sha256")


def _contents(manifest):
    return {name: sha256 for name, (_, _, sha256) in manifest.items()}


def _fingerprint(manifest):
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _origin(folder) -> str:
    """The fingerprints of the tars that hold what this folder was made from, or "" for none."""
    note = folder / MANIFEST
    return note.read_text(encoding="utf-8", errors="replace") if note.is_file() else ""


def _note_origin(folder, *manifests):
    text = json.dumps([_fingerprint(manifest) for manifest in manifests])
    write_whole(folder / MANIFEST, lambda file: file.write(text.encode()))


def _pack(folder, packed, manifest):
    """Write the tar of the listed files: their list, then each of them."""
    check_space(packed.parent, sum(size for size, _, _ in manifest.values()))
    head = json.dumps(manifest).encode()
    with tarfile.open(packed, "w") as tar:
        _add(tar, MANIFEST, len(head), 0, io.BytesIO(head))
        for name, (size, modified_ns, _) in manifest.items():
            with open(folder / name, "rb") as file:
                _add(tar, name, size, modified_ns, file)


def _add(tar, name, size, modified_ns, file):
    member = tarfile.TarInfo(name)
    member.size, member.mtime = size, modified_ns // 10**9
    tar.addfile(member, file)


def _read_manifest(archive) -> dict[str, list]:
    """Name -> size, time (ns) and SHA-256, from the first member; ValueError if it is not ours."""
    with tarfile.open(archive, "r:") as tar:
        head = tar.next()
        if head is None or head.name != MANIFEST:
            raise ValueError("it has no list of its files")
        manifest = json.load(tar.extractfile(head))
    sizes = [head.size, *(size for size, _, _ in manifest.values())]
    if file_size(archive) < sum(512 + -(-size // 512) * 512 for size in sizes):
        raise ValueError("it is cut off")
    return manifest


def _unpack(archive, target) -> dict[str, list]:
    """Write the listed files, and nothing else, below `target`; ValueError for any other tar.

    Only contents are read from the tar: no link, no owner and no rights are taken from it.
    Returns the list.
    """
    manifest = _read_manifest(archive)
    with tarfile.open(archive, "r:") as tar:
        tar.next()
        for name, (size, modified_ns, sha256) in manifest.items():
            member, path = tar.next(), target / name
            if member is None or member.name != name or not (member.isreg() and is_safe(name)):
                raise ValueError(f"its member {name!r} is missing or not allowed")
            path.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(path, "xb") as file:
                shutil.copyfileobj(source, file)
            os.utime(path, ns=(modified_ns, modified_ns))
            if file_size(path) != size or _sha256(path) != sha256:
                raise ValueError(f"its member {name!r} is damaged")
        if tar.next():
            raise ValueError("it holds more than it lists")
    return manifest
