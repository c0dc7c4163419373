"""Pins of a file without struct pages are the same page by page and looked up among all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.tracking.light_file import LightFile
from workbench.units import PAGE_SIZE

PAGES = 96
CALL = st.tuples(
    st.sampled_from(["pin", "pin", "unpin", "punch_hole"]), st.integers(0, PAGES - 1), st.integers(1, 40),
    st.sampled_from(["long_term", "long_term", "transient"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(CALL, max_size=25))
def test_pins_are_the_same_one_by_one_and_among_all(calls: list[tuple[str, int, int, str]]) -> None:
    file = LightFile(PAGES * PAGE_SIZE, "4 KiB", shared=True)
    file.insert(np.arange(PAGES), np.zeros(PAGES, np.int64))
    for call, first, pages, kind in calls:
        span = first * PAGE_SIZE, min(pages, PAGES - first) * PAGE_SIZE
        file.punch_hole(*span) if call == "punch_hole" else getattr(file, call)(*span, kind)
    pages = np.arange(PAGES)
    for left_file in (False, True):
        rows = [file.references(np.array([page]), left_file).tolist()[0] for page in range(PAGES)]
        assert rows == file.references(pages, left_file).tolist()
    alone = [page for page in range(PAGES) if len(file.pinned(page, page + 1))]
    assert alone == file.pinned(0, PAGES).tolist() == file.pinned().tolist()
