"""matplotlib without regard to its backend: figures are drawn into files, and pyplot is never needed.

Import this before any part of matplotlib. Jupyter and Colab export MPLBACKEND to what they start; where the backend
that it names is not installed beside us, matplotlib would fail to load.
"""

import os
from contextlib import suppress

named = os.environ.pop("MPLBACKEND", "")
import matplotlib as mpl  # noqa: E402

if named:
    os.environ["MPLBACKEND"] = named
    with suppress(ValueError):  # as matplotlib does when it is loaded, for whoever shows figures in this process
        mpl.rcParams["backend"] = named

__all__ = ["mpl"]
