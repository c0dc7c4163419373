"""What a stream of :mod:`workbench.kernels.folios.run` is given where nobody asks how it was after some of its operations."""

from __future__ import annotations

import numpy as np

from workbench.kernels.folios import run as folio
from workbench.kernels.whole import nobody_asks

NOT_ASKED = (
    np.zeros(0, np.int64),
    np.zeros((0, len(folio.COUNTERS) + 2), np.int64),
    nobody_asks(),
    np.zeros((0, 0), np.int64),
)
"""``ends``, ``series``, ``watched`` and ``rows``."""
