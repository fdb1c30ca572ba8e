"""How far the work is: one progress bar for scripts and notebooks, and curves that grow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

if TYPE_CHECKING:
    import pandas as pd


def progress(*arguments, **options):
    """tqdm's bar for where this runs; none at all if the variable TQDM_DISABLE is set.

    tqdm itself does not look at the variable in a notebook, where its bar is a widget that
    would stay in the saved file as a line of text.
    """
    if os.environ.get("TQDM_DISABLE"):
        options["disable"] = True
    return tqdm(*arguments, **options)


class LiveCurve:
    """For fit's on_epoch: draws the training curves again in place, after every `every` epochs.

    Outside a notebook it does nothing; in one that runs without a screen the last picture stays.
    """

    def __init__(self, every: int = 1) -> None:
        self.every, self.display = every, None

    def __call__(self, history: pd.DataFrame) -> None:
        if len(history) % self.every:
            return
        try:
            from IPython import display, get_ipython
        except ImportError:
            return
        if not hasattr(get_ipython(), "kernel"):
            return
        import matplotlib.pyplot as plt

        from helpers.plots import training_curves

        figure = training_curves(history)
        if self.display is None:
            self.display = display.display(figure, display_id=True)
        else:
            self.display.update(figure)
        plt.close(figure)
