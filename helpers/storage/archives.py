"""Zip archives: one safe way to list what is in them, and to unpack it."""

from __future__ import annotations

import os
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from helpers.storage.downloads import DownloadError, check_space
from helpers.storage.files import file_size, temporary_beside
from helpers.storage.progress import progress

MAX_EXPANSION = 100
BLOCK = 1 << 20


class ArchiveError(RuntimeError):
    """An archive or a packed file that is damaged or unsafe; the message names it and says why."""


def list_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files in an open archive, in its order.

    ArchiveError, which does not name the archive, for a list that is not whole, and for members
    that are unsafe or cannot be read: outside the folder, links, devices, encrypted, two of one
    name on some system, or more than 100 times the archive when they are unpacked.
    """
    archive.fp.seek(-22 - len(archive.comment), os.SEEK_END)
    n_listed = int.from_bytes(archive.fp.read(12)[10:], "little")  # in the end record
    if n_listed not in (len(archive.infolist()), 0xFFFF):
        raise ArchiveError(f"lists {len(archive.infolist())} of {n_listed} members")
    files, names = [], set()
    left = MAX_EXPANSION * archive.fp.seek(0, os.SEEK_END)
    for info in archive.infolist():
        key = unicodedata.normalize("NFC", info.filename).casefold()
        left -= info.file_size
        problems = {
            "leads outside": not (is_safe(info.orig_filename) and is_safe(info.filename)),
            "is a link or a device": stat.S_IFMT(info.external_attr >> 16)
            not in (0, stat.S_IFREG, stat.S_IFDIR),
            "is encrypted": info.flag_bits & 1,
            "is there twice": key in names,
            "is too large": left < 0,
        }
        for problem in (text for text, is_so in problems.items() if is_so):
            raise ArchiveError(f"its member {info.orig_filename!r} {problem}")
        if not info.is_dir():
            names.add(key)
            files.append(info)
    return files


def is_safe(name: str) -> bool:
    """Whether a name in an archive is a path below its folder on every system.

    Windows drops dots and blanks at the end of a part of a path, and knows drives and streams.
    """
    parts = name.removesuffix("/").split("/")
    is_plain = not set(name) & set("\\:\0")
    return is_plain and all(part and part == part.rstrip(". ") for part in parts)


def unpack_zip(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    place: Callable[[str], str | None] = lambda name: name,
) -> list[Path]:
    """Unpack a zip archive into `folder`; return the files' paths, in the archive's order.

    place: turns a name in the archive into the path below `folder`, or None to leave it out. A
    file that is there with the same size and CRC-32 is not written again. Raises ArchiveError for
    an archive that is damaged or not safe (`list_members`); DownloadError if the disk has no room.
    """
    path, folder = Path(path), Path(folder)
    try:
        with zipfile.ZipFile(path) as archive:
            placed = [(info, place(info.filename)) for info in list_members(archive)]
            chosen = [(info, folder / name) for info, name in placed if name is not None]
            todo = [(info, target) for info, target in chosen if not _is_same(info, target)]
            n_bytes = sum(info.file_size for info, _ in todo)
            folder.mkdir(parents=True, exist_ok=True)
            check_space(folder, n_bytes)
            with progress(total=n_bytes, unit="B", unit_scale=True, desc=path.name) as bar:
                for info, target in todo:
                    _unpack(archive, info, target, bar)
    except DownloadError:
        raise
    except OSError as error:
        reason = f"cannot be unpacked into {folder} ({error.strerror or error})"
        raise ArchiveError(f"{path}: {reason}; see that it is whole and there is room") from None
    except Exception as bad:  # readers of damaged archives raise nearly everything
        reason = " ".join(str(bad).split())[:200] or "is cut off"
        raise ArchiveError(f"{path}: {reason}; delete it and get it again") from None
    return [target for _, target in chosen]


def _is_same(info, target):
    same_size = target.is_file() and file_size(target) == info.file_size
    return same_size and zlib.crc32(target.read_bytes()) == info.CRC


def _unpack(archive, info, target, bar):
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(target) as part:
        with archive.open(info) as packed, open(part, "wb") as stream:
            while block := packed.read(BLOCK):
                stream.write(block)
                bar.update(len(block))
        if file_size(part) != info.file_size:
            raise ArchiveError(f"{info.filename} is cut off")
        os.replace(part, target)
