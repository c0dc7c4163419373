"""The designs: ways to track the memory of a guest. A new one is a file here and a line in :data:`DESIGNS`."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.design.contiguous_4k import CONTIGUOUS_4K
from workbench.design.design import Design
from workbench.design.filemap import FILEMAP
from workbench.design.hugetlb import HUGETLB
from workbench.design.hugetlb_hvo import HUGETLB_HVO
from workbench.design.pfn_range import PFN_RANGE
from workbench.design.thp import THP
from workbench.errors import WorkbenchError
from workbench.names import unknown

DESIGNS: dict[str, Design] = {
    design.name: design
    for design in (
        FILEMAP,
        HUGETLB,
        HUGETLB_HVO,
        PFN_RANGE,
        CONTIGUOUS_4K,
        THP,
    )
}
"""By name, in the order in which tables and figures show them."""


def find(name: str) -> Design:
    """The design of that name."""
    if name not in DESIGNS:
        raise WorkbenchError(f"design: {name!r} is not one of {', '.join(DESIGNS)}")
    return DESIGNS[name]


def choose(names: Sequence[str]) -> list[Design]:
    """Designs to compare, in this order: at least one, each once."""
    for name in names:
        if name not in DESIGNS:
            raise WorkbenchError(f"designs: {unknown(name, DESIGNS)}")
    if not names or len(set(names)) != len(names):
        raise WorkbenchError(f"designs: {', '.join(names) or 'none'}; each of {', '.join(DESIGNS)} once")
    return [DESIGNS[name] for name in names]
