"""How far the work is: one progress bar for scripts and notebooks, and curves that grow."""

from __future__ import annotations

import os

from tqdm.auto import tqdm


def progress(*arguments, **options):
    """tqdm's bar for where this runs; none at all if the variable TQDM_DISABLE is set.

    tqdm itself does not look at the variable in a notebook, where its bar is a widget that
    would stay in the saved file as a line of text.
    """
    if os.environ.get("TQDM_DISABLE"):
        options["disable"] = True
    return tqdm(*arguments, **options)
