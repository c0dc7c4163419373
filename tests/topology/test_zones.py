"""Zones, watermarks and reserves against five boots of Linux 7.3, and the modelled layout of memory."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from workbench.data import datasets_path
from workbench.kernels.zonelist import ZONE_DMA, ZONE_DMA32, ZONE_MOVABLE, ZONE_NORMAL
from workbench.topology.host import Host
from workbench.topology.zones import ZONE_NAMES, default_zones, lowmem_reserve, min_free_kbytes, watermarks

BOOTS = sorted(datasets_path("recordings", "boot").glob("*.txt.gz"))
PAGES_PER_GIB = 1 << 18


def read_boot(path: Path) -> tuple[np.ndarray, str]:
    """Rows (node, type, managed, min, low, high, protection from NORMAL requests) of /proc/zoneinfo, and the text."""
    text = gzip.decompress(path.read_bytes()).decode()
    zoneinfo = text.split("== /proc/zoneinfo\n")[1].split("\n== ")[0]
    rows = []
    for node, name, body in re.findall(r"Node (\d+), zone\s+(\w+)\n(.*?)(?=\nNode \d+, zone|\Z)", zoneinfo, re.S):
        if name not in ZONE_NAMES:
            continue
        field = {key: int(value) for key, value in re.findall(r"^\s+(managed|min|low|high)\s+(\d+)$", body, re.M)}
        if not field["managed"]:
            continue
        protection = re.search(r"protection: \(([\d, ]+)\)", body)
        assert protection
        reserve = int(protection[1].split(",")[ZONE_NORMAL])
        marks = (field["managed"], field["min"], field["low"], field["high"], reserve)
        rows.append((int(node), ZONE_NAMES.index(name), *marks))
    return np.array(rows, np.int64), text


@pytest.mark.parametrize("path", BOOTS, ids=lambda path: path.name.split(".")[0])
def test_watermarks_of_real_boots(path: Path) -> None:
    """All watermarks of a boot, page for page.

    They were computed before the memory of the init sections and of the initrd was freed, so from smaller managed
    values: init lies in the first node's DMA32, and there is exactly one zone that the initrd can have been in.
    """
    rows, text = read_boot(path)
    kinds, managed, expected = rows[:, 1], rows[:, 2], rows[:, 3:6]
    init = sum(map(int, re.findall(r"Freeing unused kernel image[^:]*: (\d+)K", text)))
    init += sum(map(int, re.findall(r"Freeing unused decrypted memory: (\d+)K", text)))
    initrd = int(re.search(r"Freeing initrd memory: (\d+)K", text)[1])  # type: ignore[index]
    fits = []
    for zone in range(len(rows)):
        early = managed.copy()
        early[(rows[:, 0] == 0) & (kinds == ZONE_DMA32)] -= init // 4
        early[zone] -= initrd // 4
        if np.array_equal(np.column_stack(watermarks(early, kinds)), expected):
            fits.append(zone)
    assert len(fits) == 1
    min_free = int(text.split("== /proc/sys/vm/min_free_kbytes\n")[1].split()[0])
    assert min_free // 4 - len(rows) < expected[:, 0].sum() <= min_free // 4


@pytest.mark.parametrize("path", BOOTS, ids=lambda path: path.name.split(".")[0])
def test_reserves_of_real_boots(path: Path) -> None:
    """lowmem_reserve follows managed memory, and was set up again after everything was freed."""
    rows, _ = read_boot(path)
    assert np.array_equal(lowmem_reserve(rows[:, 0], rows[:, 1], rows[:, 2]), rows[:, 6])


def host(*nodes: dict[str, object]) -> Host:
    size = len(nodes)
    return Host.from_mapping(
        {
            "name": "test",
            "nodes": [{"id": i, **node} for i, node in enumerate(nodes)],
            "distances": [[10 if i == j else 20 for j in range(size)] for i in range(size)],
        }
    )


def test_layout_below_and_above_four_gib() -> None:
    table = default_zones(host({"memory_bytes": "8 GiB"}, {"memory_bytes": "8 GiB"}))
    assert table.zone_node.tolist() == [0, 0, 0, 1]
    assert table.zone_type.tolist() == [ZONE_DMA, ZONE_DMA32, ZONE_NORMAL, ZONE_NORMAL]
    present = np.array([4096, 2 * PAGES_PER_GIB - 4096, 6 * PAGES_PER_GIB, 8 * PAGES_PER_GIB])
    assert np.array_equal(table.managed, present - present // 64)
    assert np.array_equal(table.free, table.managed)
    assert np.all((table.min < table.low) & (table.low < table.high))
    assert table.lowmem_reserve_normal[1] == table.managed[2] // 256
    assert table.lowmem_reserve_normal[2:].tolist() == [0, 0]


def test_second_node_can_reach_into_dma32() -> None:
    table = default_zones(host({"memory_bytes": "1 GiB"}, {"memory_bytes": "4 GiB"}))
    assert list(zip(table.zone_node.tolist(), table.zone_type.tolist(), strict=True)) == [
        (0, ZONE_DMA),
        (0, ZONE_DMA32),
        (1, ZONE_DMA32),
        (1, ZONE_NORMAL),
    ]


@pytest.mark.parametrize("lowmem", [1 << 30, 2 << 30, 3 << 30, 4 << 30])
def test_every_page_is_in_a_zone(lowmem: int) -> None:
    nodes = [{"memory_bytes": size} for size in ("1 GiB", "0 B", "700 MiB", "5 GiB", "3 GiB")]
    asked = host(*nodes)
    table = default_zones(asked, lowmem)
    present = [node.memory_bytes // 4096 for node in asked.nodes]
    for index, pages in enumerate(present):
        mine = table.managed[table.zone_node == index].sum()
        assert pages - pages // 64 <= mine <= pages - pages // 64 + 3
    below = table.managed[table.zone_type <= ZONE_DMA32].sum() * 64 / 63 * 4096
    assert abs(below - lowmem) < 1 << 20


def test_movable_node_has_nothing_for_guest_memfd() -> None:
    table = default_zones(host({"memory_bytes": "8 GiB"}, {"memory_bytes": "8 GiB", "movable": True}))
    movable = table.zone_node == 1
    assert table.zone_type[movable].tolist() == [ZONE_MOVABLE]
    assert table.min[movable][0] == 128  # clamp(managed / 1024, 32, 128)
    alone = default_zones(host({"memory_bytes": "8 GiB"}))
    assert np.array_equal(table.min[~movable], alone.min), "movable memory does not count for min_free_kbytes"


def test_stated_zones_are_taken_as_they_are() -> None:
    stated = {"name": "Normal", "managed": 1000, "free": 900, "min": 10, "low": 12, "high": 14}
    table = default_zones(host({"memory_bytes": "4 GiB"}, {"memory_bytes": "4 MiB", "zones": [stated]}))
    row = int(np.flatnonzero(table.zone_node == 1)[0])
    columns = (table.managed, table.free, table.min, table.low, table.high)
    assert [int(column[row]) for column in columns] == [1000, 900, 10, 12, 14]


def test_stated_free_memory_fills_zones_from_the_top() -> None:
    table = default_zones(host({"memory_bytes": "8 GiB", "free_bytes": "6 GiB"}))
    assert table.free.sum() * 4096 == 6 << 30
    assert table.free[2] == table.managed[2]
    assert table.free[0] == 0


def test_transparent_hugepages_raise_the_watermarks() -> None:
    """set_recommended_min_free_kbytes: 512 pages x zones x (2 + 3 x 3), at most a twentieth of memory."""
    large = host(*({"memory_bytes": "32 GiB"} for _ in range(8)))
    plain, raised = default_zones(large), default_zones(large, thp=True)
    zones = len(raised.managed)
    assert 512 * zones * 11 - zones < raised.min.sum() <= 512 * zones * 11
    assert np.all(raised.low[2:] > plain.low[2:])
    small = default_zones(host({"memory_bytes": "512 MiB"}), thp=True)
    assert small.min.sum() <= small.managed.sum() // 20
    huge = host({"memory_bytes": "64 TiB"})
    assert np.array_equal(default_zones(huge, thp=True).min, default_zones(huge).min), "262144 kB is more already"


@pytest.mark.parametrize(
    ("pages", "kbytes"),
    [(64, 128), (256, 128), (260, 128), (1 << 20, 8192), (1 << 30, 262144), (1 << 31, 262144)],
)
def test_min_free_kbytes_has_a_floor_and_a_ceiling(pages: int, kbytes: int) -> None:
    """mm/page_alloc.c: calculate_min_free_kbytes: the root of 16 times the kilobytes, 128 to 262,144."""
    assert min_free_kbytes(np.array([pages]), np.array([0])) == kbytes
