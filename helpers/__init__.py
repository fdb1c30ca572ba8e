"""What more than one notebook of the course needs."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    raise ImportError(f"the course needs Python 3.10 or newer, this is {sys.version.split()[0]}")
