"""Moving pictures of a volume: the README's GIFs, and those of a study of your own."""

from __future__ import annotations

import io
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

from helpers.ct import preprocessing, studies
from helpers.figures import rendering
from helpers.storage.files import write_whole

GREYS = 20  # in the palette; fewer make a smaller file


def save_gif(volume, path, fps=12, size=512, caption="") -> Path:
    """Write a volume (D, H, W) as a looped GIF that scrolls from the feet to the head.

    volume: HU, shown in the course's window, or uint8, shown as it is. size: of a frame, in
    pixels; slices that are not square are squeezed, so pad them first. caption: words that go
    into every frame, beside the patient's sides. The file appears when it is complete.
    """
    grey = volume if volume.dtype == np.uint8 else preprocessing.window(volume) * 255
    step, frames = 255 / (GREYS - 1), []
    for plane in grey:
        frame = Image.fromarray(np.rint(plane).astype(np.uint8))
        frame = np.asarray(frame.resize((size, size), Image.Resampling.BOX))
        frame = (np.rint(frame / step) * step).astype(np.uint8)
        frames.append(rendering.annotate(np.stack([frame] * 3, -1), "RLAP", caption)[..., 0])
    options = {"extension": ".gif", "duration": 1000 / fps, "loop": 0, "optimize": True}
    imageio.imwrite(packed := io.BytesIO(), np.stack(frames), **options)
    return write_whole(path, lambda file: file.write(packed.getbuffer()))


def pair_gifs(healthy, ill, folder, size=preprocessing.SIZE, caption="") -> list[Path]:
    """Make the four GIFs of the README's table from two studies: raw and as the network sees it.

    healthy, ill: a Study or a path. size: what `preprocess` makes. Returns the files' paths:
    ct0_normal_raw, ct0_normal_normalized, ct23_abnormal_raw, ct23_abnormal_normalized (.gif).
    """
    written = []
    for study, name in ((healthy, "ct0_normal"), (ill, "ct23_abnormal")):
        study = study if isinstance(study, studies.Study) else studies.read_study(study)
        raw = preprocessing.pad_to_square(study.hu, study.spacing, fill=studies.AIR)
        path = Path(folder) / f"{name}_raw.gif"
        written.append(save_gif(raw, path, size=raw.shape[2], caption=caption))
        seen, path = preprocessing.preprocess(study, size), Path(folder) / f"{name}_normalized.gif"
        written.append(save_gif(seen, path, size=size[2], caption=caption, fps=16))
    return written
