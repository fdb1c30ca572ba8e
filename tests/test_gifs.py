"""Moving pictures: pixels, timing, palettes, interrupted writes, and the README's four files."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageSequence

from helpers.course.runner import phantom_gifs
from helpers.figures import gifs
from helpers.figures.gifs import pair_gifs, save_gif
from tests.conftest import ROOT

FILES = ("ct0_normal_raw", "ct0_normal_normalized", "ct23_abnormal_raw", "ct23_abnormal_normalized")


def read(path):
    """Frames as grey (n, rows, columns), their durations in ms, and whether it loops."""
    with Image.open(path) as image:
        frames, durations = [], []
        for frame in ImageSequence.Iterator(image):
            durations.append(frame.info["duration"])
            pixels = np.asarray(frame.convert("RGB"))
            assert (pixels == pixels[..., :1]).all(), "grey"
            frames.append(pixels[..., 0].astype(int))
        return np.stack(frames), durations, image.info.get("loop")


@pytest.fixture
def moving():
    """A volume (9, 32, 32) in which every slice differs; HU from below to above the window."""
    hu = np.random.default_rng(0).integers(-1300, 700, (9, 4, 4)).astype(np.int16)
    return hu.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture
def unmarked(monkeypatch):
    """Frames without the patient's sides, in this many greys."""

    def choose(greys=256):
        monkeypatch.setattr(gifs, "GREYS", greys)
        monkeypatch.setattr(gifs.rendering, "annotate", lambda picture, *_: picture)

    choose()
    return choose


def bare(volume, path, **options):
    return read(save_gif(volume, path, **({"size": volume.shape[2]} | options)))


@pytest.mark.parametrize("greys", [2, 6, 20, 256])
def test_grey_is_the_courses_window_in_so_many_steps(unmarked, moving, tmp_path, greys):
    unmarked(greys)
    frames, _, _ = bare(moving, tmp_path / "a.gif")
    step = 255 / (greys - 1)
    assert len(np.unique(frames)) <= greys
    expected = np.clip((moving.astype(float) + 1000) / 1400, 0, 1) * 255
    assert np.abs(frames - expected).max() <= (1 if greys == 256 else step / 2 + 2)
    assert np.abs(frames / step - np.rint(frames / step)).max() < 1 / step


def test_eight_bit_volumes_are_shown_as_they_are(unmarked, tmp_path):
    volume = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4).repeat(4, 1).repeat(4, 2) * 2
    frames, _, _ = bare(volume, tmp_path / "a.gif")
    np.testing.assert_array_equal(frames, volume)


def test_front_is_up_and_right_is_left(unmarked, tmp_path):
    hu = np.full((3, 20, 20), -1000, np.int16)
    hu[0, :5, :5], hu[1, :5, 15:], hu[2, 15:, :5] = 400, 400, 400
    frames, _, _ = bare(hu, tmp_path / "a.gif", size=40)
    for frame, corner in zip(frames, ((0, 0), (0, -1), (-1, 0)), strict=True):
        assert frame[corner] == 255 and (frame == 255).sum() == 100
    assert frames[0, 9, 9] == 255 and frames[0, 10, 10] == 0


@pytest.mark.parametrize(("fps", "ms"), [(10, 100), (12, 80), (16, 60), (25, 40)])
def test_time_and_loop(moving, tmp_path, fps, ms):
    frames, durations, loop = bare(moving, tmp_path / "a.gif", fps=fps)
    assert len(frames) == len(moving) and loop == 0
    assert durations == [ms] * len(moving), "GIF counts in hundredths of a second"


@pytest.mark.parametrize("size", [16, 100, 512])
def test_size_of_a_frame(moving, tmp_path, size):
    assert read(save_gif(moving, tmp_path / "a.gif", size=size))[0].shape == (9, size, size)


def test_a_smaller_frame_is_the_mean(unmarked, tmp_path):
    volume = np.random.default_rng(1).integers(0, 255, (4, 32, 32)).astype(np.uint8)
    frames, _, _ = bare(volume, tmp_path / "a.gif", size=8)
    means = volume.reshape(4, 8, 4, 8, 4).mean(axis=(2, 4))
    assert np.abs(frames - means).max() <= 1


def test_caption_and_sides_are_drawn(tmp_path, request):
    volume = np.arange(4, dtype=np.uint8)[:, None, None] * 40 + np.zeros((4, 9, 9), np.uint8)
    sides, _, _ = bare(volume, tmp_path / "a.gif", size=128)
    words, _, _ = bare(volume, tmp_path / "b.gif", size=128, caption="synthetic phantom")
    request.getfixturevalue("unmarked")(gifs.GREYS)
    plain, _, _ = bare(volume, tmp_path / "c.gif", size=128)
    for k in range(4):
        changed = np.argwhere(words[k] != sides[k])
        assert len(changed) > 50 and changed[:, 0].min() > 100, "at the bottom of every frame"
        changed = sides[k] != plain[k]
        zones = (np.s_[50:78, :25], np.s_[50:78, -25:], np.s_[:25, 50:78], np.s_[-25:, 50:78])
        assert all(changed[zone].any() for zone in zones)
        for zone in zones:
            changed[zone] = False
        assert not changed.any()


def test_the_result_is_the_path_in_a_folder_that_is_made(moving, tmp_path):
    path = save_gif(moving, str(tmp_path / "new" / "folder" / "a.gif"))
    assert path == tmp_path / "new" / "folder" / "a.gif" and path.is_file()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_what_was_there(moving, tmp_path, monkeypatch, error):
    path = save_gif(moving, tmp_path / "a.gif")
    earlier = path.read_bytes()

    def stop(file, *arguments, **options):
        file.write(b"GIF89a")
        raise error

    monkeypatch.setattr(gifs.imageio, "imwrite", stop)
    for name in ("a.gif", "b.gif"):
        with pytest.raises(error):
            save_gif(moving, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["a.gif"]
    assert path.read_bytes() == earlier


def study(path, hu, spacing):
    """Write a volume (S, P, L) as NIfTI."""
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), affine), path)
    return path


def test_pairs_are_padded_to_square_and_normalised(tmp_path):
    rng = np.random.default_rng(2)
    hu = rng.integers(-900, 300, (10, 12, 16)).astype(np.int16).repeat(8, 1).repeat(8, 2)
    healthy = study(tmp_path / "healthy.nii.gz", hu, (5, 1, 1))
    ill = study(tmp_path / "ill.nii.gz", hu[:, :, ::-1].copy(), (5, 1, 1))
    paths = pair_gifs(healthy, str(ill), tmp_path / "out", size=(20, 64, 64))
    assert [path.stem for path in paths] == list(FILES)
    raw, durations, loop = read(paths[0])
    assert raw.shape == (10, 128, 128) and loop == 0 and set(durations) == {80}
    padding = np.concatenate([raw[:, :16, :50], raw[:, -16:, :50]])
    assert (padding == 0).all(), "air above and below"
    expected = np.clip((hu[:, 10:20, 30:60].astype(float) + 1000) / 1400, 0, 1) * 255
    assert np.abs(raw[:, 26:36, 30:60] - expected).max() <= 255 / 19 / 2 + 2
    mirrored = read(paths[2])[0]
    assert (mirrored[:, 20:50, 20:50] == raw[:, 20:50, 78:108][..., ::-1]).all()

    seen, durations, loop = read(paths[1])
    assert seen.shape == (20, 64, 64) and loop == 0 and set(durations) == {60}
    assert (seen[:, :7, :25] == 0).all() and (seen[:, 12:24, 14:24] > 0).all()
    grey = np.clip((hu[:, 4:32, 20:48].astype(float) + 1000) / 1400, 0, 1) * 255
    grey = grey.reshape(10, 14, 2, 14, 2).mean(axis=(2, 4))
    between = 0.25 * grey[:-1] + 0.75 * grey[1:]
    assert np.abs(seen[2::2, 10:24, 10:24] - between).max() <= 255 / 19 / 2 + 2


def test_phantoms(tmp_path):
    paths = phantom_gifs(tmp_path, matrix=64, size=(16, 64, 64), seed=4)
    assert [path.stem for path in paths] == list(FILES)
    frames = {path.stem: read(path)[0] for path in paths}
    for name, stack in frames.items():
        assert stack.shape[1:] == (64, 64), name
        assert stack[:, -14:, 8:30].max(axis=(1, 2)).min() > 180, "the caption, in every frame"
        assert stack.std() > 30
    assert len(frames["ct0_normal_normalized"]) == 16
    assert not np.array_equal(frames["ct0_normal_normalized"], frames["ct23_abnormal_normalized"])
    lungs = {name: (stack[:, 16:48, 8:56] < 75).mean() for name, stack in frames.items()}
    assert lungs["ct0_normal_normalized"] > lungs["ct23_abnormal_normalized"]


@pytest.mark.parametrize("name", FILES)
def test_committed_files(name):
    path = ROOT / "gifs" / f"{name}.gif"
    assert path.stat().st_size < 2.5e6
    with Image.open(path) as image:
        is_raw = name.endswith("raw")
        assert image.size == ((512, 512) if is_raw else (256, 256))
        assert image.info["loop"] == 0
        assert 30 <= image.n_frames <= 60 if is_raw else image.n_frames == 64
        image.seek(image.n_frames // 2)
        middle = np.asarray(image.convert("L"))
    assert middle.std() > 40
