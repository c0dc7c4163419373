"""Frames that left a file while held, against lists in plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.kept_frames import NO_FRAME, NOWHERE, KeptFrames

PAGES = [0, 1, 2, 510, 511, 512, 513, 1023, 1024, 5000]


class Plain:
    """Of each page the frames that left it, the oldest first: zone, long-term pins, pins of devices."""

    def __init__(self) -> None:
        self.frames: dict[int, list[list[int]]] = {}

    def rows(self) -> list[list[int]]:
        return [[page, *frame, NO_FRAME] for page in sorted(self.frames) for frame in self.frames[page]]

    def unpin(self, page: int) -> list[list[int]]:
        """A long-term pin goes, if there is one: the oldest."""
        frame = next((frame for frame in self.frames[page] if frame[1]), None)
        if frame is None:
            return []
        frame[1] -= 1
        return self.let_go(page)

    def let_go(self, page: int) -> list[list[int]]:
        """Frames of a page that nobody holds go."""
        gone = [[page, *frame, NO_FRAME] for frame in self.frames[page] if not any(frame[1:])]
        self.frames[page] = [frame for frame in self.frames[page] if any(frame[1:])]
        if not self.frames[page]:
            del self.frames[page]
        return gone

    def drop_to(self, page: int, left: list[int]) -> list[list[int]]:
        for kind in (1, 2):
            while sum(frame[kind] for frame in self.frames[page]) > left[kind - 1]:
                next(frame for frame in self.frames[page] if frame[kind])[kind] -= 1
        return self.let_go(page)


FRAME = st.tuples(st.sampled_from([NOWHERE, 0, 1, 2]), st.integers(0, 3), st.integers(0, 2))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_frames_are_kept_and_let_go_as_lists_are(data: st.DataObject) -> None:
    kept, plain = KeptFrames(), Plain()
    for _ in range(data.draw(st.integers(1, 12))):
        what = data.draw(st.sampled_from(["keep", "keep", "unpin", "drop to", "replace"]))
        if what == "keep":
            left = data.draw(st.dictionaries(st.sampled_from(PAGES), FRAME, min_size=1))
            kept.keep(np.array([[page, *left[page], NO_FRAME] for page in sorted(left)], np.int64))
            for page in sorted(left):
                plain.frames.setdefault(page, []).append(list(left[page]))
        elif what == "replace":
            now = data.draw(st.dictionaries(st.sampled_from(PAGES), st.lists(FRAME, max_size=2)))
            rows = [[page, *frame, NO_FRAME] for page in sorted(now) for frame in now[page]]
            kept.replace(np.array(sorted(now), np.int64), np.array(rows, np.int64).reshape(-1, 5))
            plain.frames |= {page: [list(frame) for frame in frames] for page, frames in now.items()}
            plain.frames = {page: frames for page, frames in plain.frames.items() if frames}
        elif what == "unpin":
            first, end = sorted(data.draw(st.tuples(st.sampled_from(PAGES), st.sampled_from(PAGES))))
            pages = [page for page in sorted(plain.frames) if first <= page < end]
            assert kept.unpin(first, end).tolist() == [row for page in pages for row in plain.unpin(page)]
        else:
            first, end = sorted(data.draw(st.tuples(st.sampled_from(PAGES), st.sampled_from(PAGES))))
            pages = [page for page in sorted(plain.frames) if first <= page < end]
            stay = {page: data.draw(st.tuples(st.integers(0, 4), st.integers(0, 3))) for page in pages}
            gone = kept.drop_to(np.array(pages, np.int64), np.array([stay[page] for page in pages]).reshape(-1, 2))
            assert gone.tolist() == [row for page in pages for row in plain.drop_to(page, list(stay[page]))]
        assert kept.rows().tolist() == plain.rows() and bool(kept) == bool(plain.frames)
        first, end = sorted(data.draw(st.tuples(st.sampled_from(PAGES), st.sampled_from(PAGES))))
        assert kept.pages(first, end).tolist() == [page for page in sorted(plain.frames) if first <= page < end]
        assert kept.between(first, end).tolist() == [row for row in plain.rows() if first <= row[0] < end]
