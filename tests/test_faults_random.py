"""Files changed at random: each is read as it truly is, or refused in one line.

Never another exception, never a warning from a library, never more memory than the files need, and
never a file outside the folder. The seed is fixed, so that a failure can be repeated.
"""

from __future__ import annotations

import gzip
import io
import random
import shutil
import stat
import tarfile
import tempfile
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import test_odd_studies as odd
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.covidct import covid_ct
from helpers.ct.nifti import UnreadableStudy
from helpers.ct.studies import read_study
from helpers.learn import checkpoints
from helpers.phantom import covidct_twin
from helpers.storage import mirror
from helpers.storage.archives import ArchiveError, unpack_zip
from helpers.storage.downloads import DownloadError

OUTSIDE = Path(tempfile.gettempdir()) / "written-outside"
MEMORY = 256 << 20  # bytes more than are in use already


@contextmanager
def little_memory():
    """What asks for much more memory than is in use now fails with a MemoryError."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def tried(what, n):
    """Mark a test of `n` random cases, and run that many."""

    def decorate(test):
        options = {"deadline": None, "derandomize": True, "database": None}
        options["suppress_health_check"] = list(HealthCheck)
        test = settings(max_examples=n, **options)(test)
        return pytest.mark.faults("Random changes", what, cases=n)(test)

    return decorate


@contextmanager
def sandbox():
    """A folder in which nothing but `inside` may change."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "a" / "b"
        folder.mkdir(parents=True)
        with little_memory():
            yield folder
        assert not OUTSIDE.exists()
        assert [path.name for path in Path(name).iterdir()] == ["a"]
        assert [path.name for path in (Path(name) / "a").iterdir()] == ["b"]


def refused(error):
    """An error of ours, in one line, that names its file."""
    assert len(str(error).splitlines()) == 1 and 20 < len(str(error)) < 600, str(error)
    return True


def changed(content, changes):
    """Bytes of `content` overwritten, each piece at a place from 0 to 1."""
    content = bytearray(content)
    for place, piece in changes:
        start = int(place * max(0, len(content) - 1))
        content[start : start + len(piece)] = piece
    return bytes(content)


places = st.floats(0, 1, allow_nan=False)
pieces = st.binary(min_size=1, max_size=8)
edits = st.lists(st.tuples(places, pieces), min_size=1, max_size=4)
cuts = st.one_of(st.just(1.0), places)

# NIfTI-1 and NIfTI-2: where the fields are and of what kind, by the published headers
FIELDS = {
    348: {
        "dim": ("i2", 40, 8),
        "datatype": ("i2", 70, 1),
        "pixdim": ("f4", 76, 8),
        "vox_offset": ("f4", 108, 1),
        "slope": ("f4", 112, 1),
        "inter": ("f4", 116, 1),
        "qform_code": ("i2", 252, 1),
        "sform_code": ("i2", 254, 1),
        "quaternion": ("f4", 256, 3),
        "srow": ("f4", 280, 12),
    },
    540: {
        "dim": ("i8", 16, 8),
        "datatype": ("i2", 12, 1),
        "pixdim": ("f8", 104, 8),
        "vox_offset": ("i8", 168, 1),
        "slope": ("f8", 176, 1),
        "inter": ("f8", 184, 1),
        "qform_code": ("i4", 344, 1),
        "sform_code": ("i4", 348, 1),
        "quaternion": ("f8", 352, 3),
        "srow": ("f8", 400, 12),
    },
}
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
TYPES |= {1024: "i8", 1280: "u8"}
NUMBERS = [0, 1, -1, 2, 3, 7, 8, 255, 32767, -32768, 1e-30, 1e30, float("nan"), float("inf")]


def fields_of(content):
    """The header's fields, read without nibabel."""
    (little,), (big,) = (np.frombuffer(content, end + "i4", 1) for end in "<>")
    size = 540 if 540 in (little, big) else 348
    kind, place, _ = FIELDS[size]["dim"]
    dims = {end: int(np.frombuffer(content, end + kind, 1, place)[0]) for end in "<>"}
    end = "<" if 0 < dims["<"] < 8 else ">"
    return end, {
        name: np.frombuffer(content, end + kind, n, place).astype(float)
        for name, (kind, place, n) in FIELDS[size].items()
    }


def affine_of(fields):
    if fields["sform_code"][0] > 0:
        return np.vstack([fields["srow"].reshape(3, 4), [0, 0, 0, 1]])
    steps, affine = fields["pixdim"][1:4], np.eye(4)
    if fields["qform_code"][0] > 0:
        b, c, d = fields["quaternion"]
        a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        turn = [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
        last = -1 if fields["pixdim"][0] < 0 else 1
        affine[:3, :3] = np.array(turn) * steps * (1, 1, last)
    else:
        affine[:3, :3] = np.diag(steps * (-1, 1, 1))
    return affine


def truth(header, content, is_single):
    """What the study holds, int16 (S, P, L), worked out from the bytes by the standard's words."""
    end, fields = fields_of(header)
    shape = [int(n) for n in fields["dim"][1:4]]
    kind = np.dtype(TYPES[int(fields["datatype"][0])]).newbyteorder(end)
    start = int(fields["vox_offset"][0]) if is_single or fields["vox_offset"][0] else 0
    stored = np.frombuffer(content, kind, int(np.prod(shape)), start).reshape(shape, order="F")
    slope, inter = fields["slope"][0], fields["inter"][0]
    values = stored.astype(float)
    if np.isfinite(slope) and slope != 0:
        values = values * slope + inter
    values = np.where(np.isfinite(values), values, -1000)
    image = nib.as_closest_canonical(nib.Nifti1Image(values, affine_of(fields)))
    hu = np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
    return np.clip(np.rint(hu), -32768, 32767)


@st.composite
def studies(draw):
    """Options of a sound file, and what is then done to its bytes."""
    options = {"dtype": draw(st.sampled_from(["i2", "i4", "f4", "f8", "i8"]))}
    options["end"] = draw(st.sampled_from("<>"))
    options["kind"] = draw(st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]))
    options["codes"] = draw(st.sampled_from(["LAS", "RPI", "SLA", "PSR"]))
    field = draw(st.sampled_from([None, *FIELDS[348]]))
    number = draw(st.one_of(st.sampled_from(NUMBERS), st.floats(-400, 400)))
    return options, (field, draw(st.integers(0, 11)), number)


def set_field(content, change, options):
    field, position, number = change
    if field is None:
        return content
    size = 540 if options["kind"] is nib.Nifti2Header else 348
    kind, place, n = FIELDS[size][field]
    kind = np.dtype(kind).newbyteorder(options["end"])
    if kind.kind == "i":
        limits = np.iinfo(kind)
        number = int(np.clip(np.nan_to_num(number), limits.min // 2, limits.max // 2))
    start = place + position % n * kind.itemsize
    with np.errstate(over="ignore"):
        piece = np.array(number).astype(kind).tobytes()
    return content[:start] + piece + content[start + len(piece) :]


@tried("a NIfTI header with a field or bytes changed", 350)
@given(
    study=studies(),
    header_edits=st.lists(st.tuples(places, pieces), max_size=3),
    is_packed=st.booleans(),
)
def test_a_header_changed_at_random_is_read_truly_or_refused(study, header_edits, is_packed):
    options, change = study
    with sandbox() as folder:
        path = odd.write(folder, name="study_0001.nii", **options)
        content = path.read_bytes()
        size = 540 if options["kind"] is nib.Nifti2Header else 348
        head = set_field(changed(content[:size], header_edits), change, options)
        content = head + content[size:]
        if is_packed:
            path = folder / "study_0001.nii.gz"
        path.write_bytes(gzip.compress(content, 1) if is_packed else content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                study = read_study(path)
                hu = study.hu
            except UnreadableStudy as error:
                assert refused(error)
                hu = None
        # NumPy says it where a slope is so large that voxels become infinite, which are counted
        said = [str(line.message) for line in said if "overflow encountered" not in str(line)]
        assert all(str(path) in line for line in said), said
    if hu is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numbers beyond what float32 holds
            expected = truth(content, content, True)
        assert hu.shape == expected.shape == study.shape
        assert np.abs(hu - expected).max() <= 1


@tried("a NIfTI file cut, or changed anywhere, compressed or not", 150)
@given(
    edits=st.lists(st.tuples(places, pieces), max_size=3),
    cut=cuts,
    is_packed=st.booleans(),
    within=st.booleans(),
)
def test_a_file_changed_at_random_is_read_truly_or_refused(edits, cut, is_packed, within):
    with sandbox() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = odd.write(folder, name="study_0001.nii").read_bytes()
        content = changed(content, edits if within else [])[: int(cut * len(content)) or None]
        packed = gzip.compress(content, 1) if is_packed else content
        if not within:
            packed = changed(packed, edits)
        path = folder / ("study_0001.nii.gz" if is_packed else "study_0001.nii")
        path.write_bytes(packed)
        try:
            hu = read_study(path).hu
        except UnreadableStudy as error:
            assert refused(error)
            return
        content = gzip.decompress(packed) if is_packed else packed
        assert np.abs(hu - truth(content, content, True)).max() <= 1


STARTS = [b"", b"\x1f\x8b\x08", b"n+1\0", b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0n+2\0"]


@tried("bytes at random under a study's name", 75)
@given(
    start=st.sampled_from(STARTS),
    content=st.binary(max_size=900),
    name=st.sampled_from(["s.nii", "s.nii.gz", "s.hdr", "s.img", "S.NII.GZ"]),
    is_packed=st.booleans(),
)
def test_random_bytes_are_refused(start, content, name, is_packed):
    with sandbox() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        content = start + content
        (folder / name).write_bytes(gzip.compress(content) if is_packed else content)
        (folder / "s.hdr").touch()
        (folder / "s.img").touch()
        with pytest.raises(UnreadableStudy) as caught:
            _ = read_study(folder / name).hu
        assert refused(caught.value)


NASTY = ["..", "../x", "a/../../x", "/x", "//x", "C:/x", "C:x", "a\\..\\..\\x", "./x", "a//b", "a/"]
NASTY += ["a/./b", "~/x", "%2e%2e/x", "71%0.jpg", "A", "a", "\u00e9", "e\u0301", "\u212a", "k", "K"]
NASTY += ["stra\u00dfe", "STRASSE", "a.", "a ", " ", ".", "a/b", "a/B", "CON", "x" * 300, "снимок"]


def harmless(name):
    """An absolute name leads to a place that is looked at, and harms nothing if it is written."""
    plain = name.lstrip("/").replace("..", "b")
    return f"{OUTSIDE}/{plain}" if name.startswith("/") else name


names = st.one_of(st.sampled_from(NASTY), st.text("abAB./\\:% \u00e9\u0301\u202e", max_size=9)).map(
    harmless
)
KINDS = [0, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
contents = st.one_of(st.binary(max_size=300), st.sampled_from([200_000, 10**6]).map(bytes))
members = st.tuples(names, contents, st.sampled_from(KINDS + [0] * 12), st.sampled_from(METHODS))


def zip_of(listed):
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)
        for name, content, kind, method in listed:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (kind | 0o644) << 16
            info.compress_type = method
            archive.writestr(info, content)
    return stream.getvalue()


def unpack(folder, packed):
    """Unpack, or be refused; every file that is there is whole; returns them or None."""
    (folder / "a.zip").write_bytes(packed)
    out = folder / "out"
    try:
        paths = unpack_zip(folder / "a.zip", out)
    except (ArchiveError, DownloadError) as error:
        assert refused(error)
        paths = None
    assert sorted(path.name for path in folder.iterdir()) in (["a.zip"], ["a.zip", "out"])
    there = [path for path in out.rglob("*") if not path.is_dir()]
    assert not [path for path in there if path.is_symlink() or not path.is_file()]
    assert not [path for path in there if path.name.endswith(".part")]
    return (paths, {path: path.read_bytes() for path in there})


@tried("a zip archive of members with nasty names and kinds", 200)
@given(listed=st.lists(members, min_size=1, max_size=5))
def test_an_archive_at_random_is_unpacked_within_its_folder_or_refused(listed):
    with sandbox() as folder:
        paths, there = unpack(folder, zip_of(listed))
        known = [content for _, content, _, _ in listed]
        assert all(content in known for content in there.values())
        if paths is not None:
            wanted = [name for name, *_ in listed if not name.endswith("/")]
            assert len(paths) == len(set(paths)) == len(there) == len(wanted)
            assert {p: there[p] for p in paths} == {
                folder / "out" / name: content
                for name, content, _, _ in listed
                if not name.endswith("/")
            }


@tried("a zip archive cut, or changed anywhere", 200)
@given(
    listed=st.lists(
        st.tuples(st.sampled_from("abcd"), contents, st.just(0), st.sampled_from(METHODS)),
        min_size=1,
        max_size=4,
        unique_by=lambda member: member[0],
    ),
    edits=edits,
    cut=cuts,
)
def test_a_damaged_archive_is_unpacked_truly_or_refused(listed, edits, cut):
    with sandbox() as folder:
        packed = zip_of(listed)
        packed = changed(packed, edits)[: int(cut * len(packed))]
        paths, there = unpack(folder, packed)
        known = [content for _, content, _, _ in listed]
        assert all(content in known for content in there.values())


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tar")
    for name in ("a/b.csv", "a/c.npy", "größe.txt"):
        (folder / "cohort" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cohort" / name).write_bytes(random.Random(name).randbytes(700))
    return mirror.keep(folder / "cohort", folder / "drive").read_bytes()


@tried("a mirror's tar cut, or changed anywhere", 125)
@given(edits=st.lists(st.tuples(places, pieces), max_size=3), cut=cuts)
def test_a_mirror_changed_at_random_is_restored_truly_or_refused(tar, edits, cut):
    with sandbox() as folder:
        (folder / "drive").mkdir()
        packed = changed(tar, edits)[: int(cut * len(tar))]
        (folder / "drive" / "cohort.tar").write_bytes(packed)
        (folder / "data").mkdir()
        try:
            done = mirror.restore(folder / "data" / "cohort", folder / "drive")
        except mirror.MirrorError as error:
            assert refused(error)
            assert not (folder / "data" / "cohort").exists()
        else:
            assert done
            found = {p.name: p.read_bytes() for p in (folder / "data").rglob("*.???")}
            assert found == {
                Path(name).name: random.Random(name).randbytes(700)
                for name in ("a/b.csv", "a/c.npy", "größe.txt")
            }
        try:
            mirror.keep(folder / "data", folder / "drive")
        except mirror.MirrorError as error:
            assert refused(error)


@st.composite
def tar_members(draw):
    info = tarfile.TarInfo(draw(names.filter(lambda name: "\0" not in name)))
    kinds = [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
    info.type = draw(st.sampled_from(kinds + [tarfile.DIRTYPE] + [tarfile.REGTYPE] * 6))
    info.linkname = draw(st.sampled_from(["/etc/passwd", "..", "a"]))
    return info, draw(st.binary(max_size=50))


@tried("a mirror's tar of members with nasty names and kinds", 100)
@given(listed=st.lists(tar_members(), min_size=1, max_size=4))
def test_a_tar_at_random_writes_nothing_outside(listed):
    from test_mirror import tar_with

    with sandbox() as folder:
        (folder / "drive").mkdir()
        given = []
        for info, content in listed:
            is_file = info.type == tarfile.REGTYPE
            given.append((info.name, content if is_file else info))
        tar_with(folder / "drive" / "cohort.tar", given)
        target = folder / "data" / "cohort"
        try:
            mirror.restore(target, folder / "drive")
        except mirror.MirrorError as error:
            assert refused(error)
            assert not target.exists()
        else:
            assert not [path for path in target.rglob("*") if path.is_symlink()]
        assert sorted(path.name for path in folder.iterdir()) in (["data", "drive"], ["drive"])
        assert {path.name for path in (folder / "data").glob("*")} <= {"cohort", ".cohort.lock"}


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return covidct_twin.make_twin(tmp_path_factory.mktemp("twin"), 20, 20, matrix=48, workers=1)


@tried("a file of COVID-CT cut, or changed anywhere", 75)
@given(file=st.sampled_from(list(covid_ct.FILES)), edits=edits, cut=cuts)
def test_a_collection_changed_at_random_is_read_or_refused(twin, file, edits, cut):
    with sandbox() as folder:
        root = folder / "twin"
        shutil.copytree(twin, root, ignore=shutil.ignore_patterns(".*"))
        content = (root / file).read_bytes()
        (root / file).write_bytes(changed(content, edits)[: int(cut * len(content))])
        try:
            table = covid_ct.read_collection(root)
            images = covid_ct.read_images(root, table, (16, 16))
        except covid_ct.CovidCTError as error:
            assert refused(error)
        else:
            assert len(table) == len(images) > 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint and the network that it belongs to."""
    torch.manual_seed(0)
    folder, net = tmp_path_factory.mktemp("run"), torch.nn.Linear(6, 4)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(6)).sum().backward()
    optimizer.step()
    parts = {"model": net, "optimizer": optimizer}
    parts["scaler"] = torch.amp.GradScaler("cuda", enabled=False)
    checkpoints.save_run(folder, {"seed": 1}, parts, [{"epoch": 1, "train_loss": 0.5}])
    return folder / "last.pt", net


@pytest.mark.filterwarnings("ignore::UserWarning")
@tried("a checkpoint cut, or changed anywhere", 100)
@given(edits=st.lists(st.tuples(places, pieces), max_size=3), cut=cuts)
def test_a_checkpoint_changed_at_random_is_loaded_truly_or_refused(run, edits, cut):
    path, net = run
    with sandbox() as folder:
        content = path.read_bytes()
        (folder / "last.pt").write_bytes(changed(content, edits)[: int(cut * len(content))])
        other = torch.nn.Linear(6, 4)
        try:
            state = checkpoints.read_checkpoint(folder / "last.pt")
            checkpoints.load_weights(other, state, folder / "last.pt")
        except checkpoints.CheckpointError as error:
            assert refused(error)
        else:
            assert torch.equal(other.weight, net.weight) and torch.equal(other.bias, net.bias)
            assert state["history"] == [{"epoch": 1, "train_loss": 0.5}]
