"""Moving pictures of a volume: the README's GIFs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from helpers.volumes import preprocess, read_study, window


def save_gif(volume, path, fps=12, size=512, limits=(-1000, 400), caption="", levels=20) -> Path:
    """Write a volume (D, H, W) as a looped GIF that scrolls from the feet to the head.

    volume: HU, shown in the window `limits` (low, high), or uint8, shown as it is. size: of a
    frame, in pixels. caption: drawn into every frame. levels: of grey; fewer make a smaller file.
    """
    grey = volume if volume.dtype == np.uint8 else window(volume, *limits) * 255
    step = 255 / (levels - 1)
    frames = []
    for plane in grey:
        frame = Image.fromarray(plane.astype(np.uint8)).resize((size, size), Image.Resampling.BOX)
        frame = Image.fromarray((np.rint(np.asarray(frame) / step) * step).astype(np.uint8))
        draw, font = ImageDraw.Draw(frame), ImageFont.load_default(size=size // 24)
        draw.text((size * 0.02, size * 0.94), caption, fill=255, font=font)
        draw.text((size * 0.02, size * 0.46), "R", fill=255, font=font)
        frames.append(np.asarray(frame))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.gif")
    imageio.imwrite(temporary, np.stack(frames), duration=1000 / fps, loop=0)
    os.replace(temporary, path)
    return path


def phantom_gifs(folder="gifs", matrix=512, size=(64, 256, 256), seed=2020) -> list[Path]:
    """Make the README's four GIFs: a healthy and an ill phantom, raw and normalised."""
    from helpers import phantom
    from helpers.cohort import find_studies

    written = []
    with tempfile.TemporaryDirectory() as made:
        phantom.make_cohort(made, {"CT-0": 1, "CT-3": 1}, matrix, seed, workers=1)
        for study, name in zip(
            find_studies(made).file, ("ct0_normal", "ct23_abnormal"), strict=True
        ):
            hu, seen = read_study(Path(made) / study).hu, preprocess(Path(made) / study, size)
            text = "synthetic phantom"
            raw, normalised = f"{name}_raw.gif", f"{name}_normalized.gif"
            written.append(save_gif(hu, Path(folder) / raw, size=matrix, caption=text))
            written.append(
                save_gif(seen, Path(folder) / normalised, size=size[1], caption=text, fps=16)
            )
    return written


if __name__ == "__main__":
    if sys.argv[1:] != ["gifs"]:
        sys.exit("usage: python -m helpers.viewers gifs")
    for gif in phantom_gifs():
        print(f"{gif}: {gif.stat().st_size / 1e6:.1f} MB")
