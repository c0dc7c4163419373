"""Handover files: real bytes, read back by a fresh process; a wrong byte restores nothing; sizes are Linux's."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.engine import handover
from workbench.engine.handover import CannotPreserve, PolicyRange, Preserved
from workbench.errnos import EHWPOISON
from workbench.errors import WorkbenchError
from workbench.kernels import kho

CONSTANTS = json.loads((Path(__file__).parents[2] / "datasets" / "linux" / "constants.json").read_text())["kho"]
GIB = 1 << 18
TIB = 1 << 28


def state(extents: list[tuple[int, int, int, int]], pages: int = 1 << 20, **more: Any) -> Preserved:
    return Preserved(pages, 3, np.array(extents, np.int64).reshape(-1, 4), **more)


POLICY = (PolicyRange(0, 512, 2, 0, (0, 3)), PolicyRange(512, 4096, 6, 1 << 15, (1, 2, 255), 2))
SMALL = state([(0, 512, 1 << 21, 0), (512, 1024, 1 << 30, 9), (5000, 3, 77, 0)], policy=POLICY,
              shared=np.array([[5000, 2]]))  # fmt: skip


@pytest.mark.parametrize("order", [0, 9, 18])
def test_radix_nodes_of_a_terabyte(order: int) -> None:
    expected = CONSTANTS["nodes_1TiB"]["value"][f"order{order}"]
    assert kho.dense_tree_nodes(TIB >> order) == expected
    blocks = min(TIB >> order, 1 << 22)
    keys = (np.int64(1) << (52 - order)) | np.arange(blocks, dtype=np.int64)
    assert kho.tree_nodes(keys) == kho.dense_tree_nodes(blocks)


@pytest.mark.parametrize(("order", "records"), [(0, 4 << 30), (9, 8 << 20), (18, 16 << 10)])
def test_metadata_of_a_terabyte_per_folio(order: int, records: int) -> None:
    parts = handover.sizes(state([(0, TIB, 0, order)], TIB), "kho")
    assert parts["records"] == records
    assert parts["tree"] == 4096 * CONSTANTS["nodes_1TiB"]["value"][f"order{order}"]
    assert parts["chunks"] == -(-(records // 4096) // CONSTANTS["vmalloc_chunk_entries"]["value"]) * 4096
    if order == 0:
        assert parts["chunks"] // 4096 == 2053


def test_metadata_as_ranges_does_not_depend_on_the_page_size() -> None:
    """1 TiB in extents of 1 GiB apart from each other: 24 KiB, whatever the folios."""
    extents = [(k * GIB, GIB, 2 * k * GIB, 18) for k in range(1024)]
    assert handover.sizes(state(extents, TIB), "pfn-ranges")["records"] == 24 * 1024
    assert handover.sizes(state([(0, TIB, 0, 0)], TIB), "pfn-ranges")["records"] == 24


@given(order=st.integers(0, 18), block=st.integers(0, (1 << 30) - 1))
def test_keys_are_those_of_the_kernel(order: int, block: int) -> None:
    pfn = block << order
    key = kho.encode_key(pfn, order)
    physical = pfn << 12
    assert key == (1 << (64 - (12 + order))) | (physical >> (12 + order))
    out = np.zeros(2, np.int64)
    kho.decode_key(key, out)
    assert list(out) == [pfn, order]


def test_a_key_beyond_53_bits_is_refused() -> None:
    assert kho.encode_key((1 << 52) - 1, 0) > 0
    assert kho.encode_key(1 << 52, 0) == -errno.ERANGE


@given(pfn=st.integers(0, 5000), pages=st.integers(1, 3000), borders=st.lists(st.integers(0, 8000), max_size=3))
def test_preserve_pages_covers_a_range_with_aligned_blocks(pfn: int, pages: int, borders: list[int]) -> None:
    out = np.zeros((4096, 2), np.int64)
    rows = kho.preserve_pages(pfn, pages, np.array(sorted(borders), np.int64), out)
    at = pfn
    for block, order in out[:rows]:
        assert block == at
        assert block % (1 << order) == 0
        assert not any(block < border < block + (1 << order) for border in borders)
        at += 1 << order
    assert at == pfn + pages
    if not borders:
        order = 0
        while pfn % (2 << order) == 0 and 2 << order <= pages:
            order += 1
        assert out[0, 1] == order


@pytest.mark.parametrize("format", handover.FORMATS)
def test_a_fresh_process_restores_the_same_map_and_policy(format: Any, tmp_path: Path) -> None:
    path = tmp_path / "guest.kho"
    size = handover.preserve(path, SMALL, format)
    assert size == path.stat().st_size
    done = subprocess.run(
        [sys.executable, "-m", "workbench.engine.handover", str(path)], capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    extents = handover._maximal(SMALL.extents)
    assert answer["map_digest"] == hashlib.sha256(np.ascontiguousarray(extents, "<i8").tobytes()).hexdigest()
    assert answer["policy"] == [[0, 512, 2, 0, [0, 3], -1], [512, 4096, 6, 1 << 15, [1, 2, 255], 2]]
    assert answer["shared"] == [[5000, 2]]
    restored = handover.restore(path)
    assert restored.same_as(SMALL)
    if format == "kho":
        np.testing.assert_array_equal(restored.extents, SMALL.extents)  # orders too


@pytest.mark.parametrize("format", handover.FORMATS)
def test_every_wrong_byte_and_every_missing_tail_is_refused(format: Any) -> None:
    data = handover.serialise(state([(0, 3, 7, 0)], policy=POLICY[:1]), format)
    for position in [*range(0, min(len(data), 120)), *range(120, len(data), 997), len(data) - 1]:
        for flip in (0x01, 0x80):
            wrong = bytearray(data)
            wrong[position] ^= flip
            with pytest.raises(WorkbenchError, match="handover file"):
                handover.deserialise(bytes(wrong))
    for length in [0, 1, 40, len(data) // 2, len(data) - 1]:
        with pytest.raises(WorkbenchError, match="truncated"):
            handover.deserialise(data[:length])


def test_a_damaged_file_ends_the_process_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "guest.kho"
    handover.preserve(path, SMALL)
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "workbench.engine.handover", str(path)], capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "digest" in done.stderr


@pytest.mark.parametrize(
    ("holders", "reason", "number"),
    [
        ({"pinned": [5]}, "page 5 is pinned", errno.EBUSY),
        ({"poisoned": [6]}, "page 6 is poisoned", EHWPOISON),
        ({"mapped_by_device": [7]}, "device", errno.EBUSY),
        ({"scratch": [(70, 80)]}, "scratch", errno.EINVAL),
        ({"confidential": "tdx"}, "TDX module", errno.EOPNOTSUPP),
        ({"huge": True, "format": "kho"}, "huge folios", errno.EOPNOTSUPP),
    ],
)
def test_what_cannot_be_preserved_is_refused_with_a_reason(
    holders: dict[str, Any], reason: str, number: int, tmp_path: Path
) -> None:
    path = tmp_path / "guest.kho"
    with pytest.raises(CannotPreserve, match=reason) as caught:
        handover.preserve(path, SMALL, **holders)
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


def test_unknown_flags_and_pfns_too_large_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotPreserve, match="flags 0x8"):
        handover.preserve(tmp_path / "a", Preserved(10, 8, SMALL.extents))
    with pytest.raises(CannotPreserve, match="52 bits"):
        handover.preserve(tmp_path / "a", state([(0, 1, 1 << 52, 0)]))


@given(data=st.data())
def test_any_map_comes_back_page_for_page(data: st.DataObject) -> None:
    extents = []
    at = 0
    pfn = 0
    for _ in range(data.draw(st.integers(0, 8))):
        order = data.draw(st.sampled_from([0, 0, 9]))
        size = 1 << order
        at = -(-(at + data.draw(st.integers(0, 600))) // size) * size
        pfn = -(-(pfn + data.draw(st.integers(0, 2000))) // size) * size
        count = data.draw(st.integers(1, 4))
        extents.append((at, count * size, pfn, order))
        at += count * size
        pfn += count * size
    original = state(extents, at + 10)
    everything = np.arange(original.pages)
    for format in handover.FORMATS:
        restored = handover.deserialise(handover.serialise(original, format))
        np.testing.assert_array_equal(restored.pfn_of(everything), original.pfn_of(everything))
        assert restored.same_as(original)
        assert len(handover.serialise(original, "kho")) > 0
    written = handover.serialise(original, "kho")
    parts = handover.sizes(original, "kho")
    assert parts["tree"] == 4096 * kho.tree_nodes(handover._keys(original))
    assert len(written) >= parts["records"] + parts["tree"] - 4096
