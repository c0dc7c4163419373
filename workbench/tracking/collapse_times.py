"""What khugepaged takes to copy 4 KiB folios into one of 2 MiB, and how long that keeps its users waiting.

``mm/khugepaged.c: collapse_file`` takes a huge folio (``alloc_charge_folio``, while everybody goes on), then isolates, unmaps
and copies what is there, clears what is missing, and flushes: that part holds the range, and who touches it waits. Counts come
from the engine (:mod:`workbench.engine.khugepaged`); times are modelled. One table is published, of anonymous memory on one
desktop (``datasets/published/khugepaged_collapse.yaml``); no kernel collapses guest_memfd, and no figure of it exists.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from workbench.units import PAGE_ORDERS

PARAMETERS = ("collapse_alloc", "collapse_fixed", "collapse_copy_page", "clear_page_2m")
"""Of :mod:`workbench.costs`."""
_PAGES = 1 << PAGE_ORDERS["2 MiB"]
_Floats = npt.NDArray[np.float64]


def held(folios: npt.ArrayLike, copied: npt.ArrayLike, draws: Mapping[str, npt.ArrayLike]) -> _Floats:
    """Nanoseconds that ranges are held, float64 (draws, n): of ``folios`` collapses with ``copied`` 4 KiB pages, int64 (n,).

    ``draws``: a value or float64 (draws,) of each of :data:`PARAMETERS`, in their units.
    """
    folios, copied = np.atleast_1d(folios), np.atleast_1d(copied)
    fixed, copy, clear = (np.atleast_1d(draws[name]) for name in PARAMETERS[1:])
    return np.outer(fixed, folios) + np.outer(copy, copied) + np.outer(clear, _PAGES * folios - copied)


def busy(folios: npt.ArrayLike, copied: npt.ArrayLike, draws: Mapping[str, npt.ArrayLike]) -> _Floats:
    """Nanoseconds that khugepaged spends: :func:`held`, and taking the huge folios before."""
    return held(folios, copied, draws) + np.outer(np.atleast_1d(draws["collapse_alloc"]), np.atleast_1d(folios))
