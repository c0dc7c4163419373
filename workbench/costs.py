"""Every parameter of the cost model: value, unit, range and where the number comes from.

Nothing here is exact. A parameter is either read from a publication, named in ``source``, or chosen by us, and then
``source`` starts with the word "estimate" and the range says how wrong it may be. Results that depend on one of them
carry ``attrs["basis"] = "modelled"``. Ranges feed the ``sample`` dimension of modelled variables.

Parameters that are exact counts (bytes of a struct page, references of a walk) are not costs and live with the code
that counts them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from workbench.errors import WorkbenchError
from workbench.names import unknown

MESS_SKYLAKE = "github:bsc-mem/Mess-simulator memory_curve/skylake-ddr4/bwlat_78.txt (6-channel DDR4, local)"
MESS_REMOTE = "github:bsc-mem/Mess-simulator Skylake-numa-ddr4/bwlat_98.txt (remote socket)"
MESS_GRAVITON3 = "github:bsc-mem/Mess-simulator graviton3-ddr5/bwlat_100.txt (8-channel DDR5)"
MESS_A64FX = "github:bsc-mem/Mess-simulator a64fx-hbm2/bwlat_100.txt (four HBM2 stacks)"
MESS_RESULTS = "github:bsc-mem/Mess-Results memory_curves.csv"
MESS_CXL = "github:bsc-mem/Mess-simulator cxl/bwlat_90.txt (device side)"
VIRTUOSO_CXL = "github:CMU-SAFARI/Virtuoso simulator/sniper/config/cxl_configs/cxl.cfg"
PRICE_2024 = "LKML: Gregory Price, weighted-interleave v2 cover letter (Jan 2024)"
OPTANE_2020 = "arXiv 1908.03583 (Yang et al., FAST 2020: Optane DC modules)"
ROTH_2025 = "LKML: Michael Roth, 12 Jul 2025 (16 GB SNP guest, hugetlb guest_memfd)"
HYPERALLOC = "github:luhsra/hyperalloc-bench inflate/latest/*/out.csv"
KTASK = "LKML: Daniel Jordan, ktask v4, Nov 2018 (E7-8895 v3, fallocate of hugetlb)"
CLEARING = "LKML: Ankur Arora, multi-page clearing, v4 Jun 2025 and commit cb431accb36e (clear_pages)"
GANG_LI = "LKML: Gang Li, hugetlb: parallelize hugetlb page init on boot, v2 Dec 2023"
KHUGEPAGED = "LKML: pre-zeroing of huge pages in mm/khugepaged.c, Mar 2024 (Core i5)"
MIGRATION_2026 = "LKML: Shivank Garg, batch copying of folios, 8 May 2026 (EPYC Zen 3, other socket)"
POPULATION = "LKML: filemap_grab_folios RFC, Jan 2025: 3 GiB of guest_memfd in 0.71 s on Ice Lake, 0.9 us a page"
LLFREE = "github:luhsra/llfree-bench@775e549 out/module_c.dref"


class Cost(NamedTuple):
    """One parameter. ``low`` and ``high`` bound what is plausible; ``source`` names a publication or says estimate."""

    name: str
    value: float
    unit: str
    low: float
    high: float
    source: str

    @property
    def estimated(self) -> bool:
        """Whether the number is ours rather than somebody's measurement."""
        return self.source.startswith("estimate")


_ALL = (
    # Memory and links. Bandwidths are MB/s (10^6 bytes), latencies ns, as the kernel's HMAT attributes print them. These
    # are for machines of which nothing is known; datasets/profiles/classes.yaml narrows them by generation.
    Cost(
        "dram_latency",
        98.1,
        "ns",
        65.8,
        176.6,
        f"{MESS_GRAVITON3}: 98.1 ns; range: {MESS_SKYLAKE}: 65.8 ns to {MESS_RESULTS} Grace: 176.6 ns",
    ),
    Cost(
        "dram_bandwidth",
        142_000.0,
        "MB/s",
        30_000.0,
        480_000.0,
        f"{MESS_RESULTS} CTE-AMD: 142 GB/s; range: one die of EPYC Naples 33 GB/s to {MESS_RESULTS} Grace 449 GB/s",
    ),
    Cost(
        "channel_efficiency",
        0.80,
        "1",
        0.62,
        0.93,
        f"{MESS_RESULTS}: EPYC 7742 0.70, Xeon 8460Y 0.87, {MESS_SKYLAKE} 0.79, {MESS_GRAVITON3} 0.92",
    ),
    Cost(
        "mixed_bandwidth",
        0.87,
        "1",
        0.66,
        1.05,
        f"{MESS_RESULTS}: at 50 % reads over reads alone, Xeon 8460Y 0.89, Grace 0.83, EPYC 7742 1.01; range: MLC "
        "outputs of Xeon servers from 0.66 on",
    ),
    Cost("hbm_latency", 111.9, "ns", 100.0, 160.0, f"{MESS_A64FX}; range: estimate, Xeon Max above its DDR5"),
    Cost(
        "hbm_bandwidth", 942_607.0, "MB/s", 235_000.0, 950_000.0, f"{MESS_A64FX}; range: one of its four stacks to all"
    ),
    Cost(
        "cxl_latency",
        284.0,
        "ns",
        140.0,
        410.0,
        f"{VIRTUOSO_CXL} (ASIC); range: SupMario, arXiv 2409.14317: 140 to 410 ns",
    ),
    Cost(
        "cxl_bandwidth",
        26_500.0,
        "MB/s",
        17_000.0,
        60_000.0,
        f"{MESS_CXL}: 29.5 GB/s at 90 % reads, less for reads alone; range: MLC on EPYC 9224 17.6 GB/s, {PRICE_2024} 22 "
        "GB/s, to x16 devices",
    ),
    Cost(
        "cxl_duplex",
        1.89,
        "1",
        1.1,
        2.0,
        f"bandwidth at equal reads and writes over that of reads alone, {MESS_CXL}: 60 % reads carry 1.45 times what 90 % do; "
        f"range: {MESS_RESULTS} CXL device on Xeon 8568: 1.17; to a full duplex link",
    ),
    Cost(
        "gpu_latency",
        250.0,
        "ns",
        150.0,
        800.0,
        "estimate: coherent GPU memory behind a link, between CXL and two hops",
    ),
    Cost("gpu_bandwidth", 300_000.0, "MB/s", 50_000.0, 400_000.0, "estimate: one NVLink-C2C or NVLink 2 bundle"),
    Cost("nvm_latency", 305.0, "ns", 169.0, 305.0, f"{OPTANE_2020}, random reads; range: sequential reads"),
    Cost(
        "nvm_bandwidth", 39_400.0, "MB/s", 6_600.0, 39_400.0, f"{OPTANE_2020}, reads; range: one of six modules to all"
    ),
    Cost(
        "remote_latency_ratio",
        1.75,
        "1",
        1.35,
        2.3,
        f"Intel MLC outputs on github: two-socket Xeon servers: 1.52 to 1.71; {MESS_REMOTE}: 2.015; EPYC 9224: 1.87; range: "
        "estimate around them",
    ),
    Cost(
        "remote_bandwidth_ratio",
        0.48,
        "1",
        0.25,
        0.85,
        f"{MESS_REMOTE}: 0.348; MLC outputs: Skylake 0.38, Cascade Lake 0.42 to 0.46, EPYC 9224 0.77; range: "
        "estimate around them",
    ),
    Cost(
        "curve_delay_scale",
        1.0,
        "1",
        0.45,
        2.5,
        "estimate: delay over idle of another machine at the same part of its peak; MLC of Cascade Lake and EPYC beside Mess "
        "of Skylake and EPYC 7742; up to 2.4 on Xeon 6980P beside Mess of Xeon 8460Y",
    ),
    Cost(
        "reference_distance",
        21.0,
        "1",
        20.0,
        32.0,
        "estimate: SLIT value of another socket where the host has one only",
    ),
    Cost("link_ports", 2.0, "1", 1.0, 3.0, "estimate: full-rate remote streams one node's links carry at once"),
    Cost(
        "link_duplex",
        1.57,
        "1",
        0.77,
        2.0,
        "estimate: bandwidth at equal reads and writes over that of reads alone. Mess measured on a two-socket Xeon that 52 % "
        f"reads carry 1.51 times what 98 % do; range: {MESS_RESULTS}, remote memory: Xeon 8568 at 70 % reads 135 of 155 GB/s, "
        "Xeon 8480+ at 56 % 121 of 126; to a full duplex link",
    ),
    Cost(
        "queue_factor",
        1.0,
        "1",
        0.8,
        2.0,
        "estimate: requests a socket can hold over those its local memory needs at its peak; DDR loses up to 81 % beside "
        "saturated CXL (arXiv 2503.17864), so there is little room to spare",
    ),
    Cost(
        "given_bandwidth",
        1.0,
        "1",
        1.0 / 1.05,
        1.05,
        "estimate: what is drawn of a figure that a profile, a table or firmware gives, over that figure: MLC of one Xeon 6980P "
        "in two modes differs by 1.6 %, of Skylake testbeds of one kind by 0.2 to 3 %",
    ),
    Cost(
        "given_latency",
        1.0,
        "1",
        1.0 / 1.05,
        1.05,
        "estimate: as given_bandwidth; the sockets of one server differ by up to 3 % in MLC, its own idle and least loaded "
        "latency by up to 6 %",
    ),
    # What one vCPU keeps in flight, in 64-byte cache lines, and what a group of cores may pull together.
    Cost(
        "lines_streaming",
        32.0,
        "lines",
        12.0,
        86.0,
        "estimate: hardware prefetch; single-core STREAM of EPYC 50 GB/s at 110 ns is 86, of Skylake 12 GB/s is 12",
    ),
    Cost(
        "lines_random",
        10.0,
        "lines",
        6.0,
        24.0,
        "estimate: line fill buffers of x86 cores, 10 to 16; up to 24 on Zen 4",
    ),
    Cost("lines_pointer_chasing", 1.0, "lines", 1.0, 1.0, "estimate: by definition one dependent access at a time"),
    Cost(
        "core_group_bandwidth",
        50_000.0,
        "MB/s",
        28_000.0,
        110_000.0,
        "estimate: reads of one core complex die; 32 bytes a fabric clock of 1.4 to 2.0 GHz, twice that where two links "
        "lead to a die; used only by classes that have groups",
    ),
    Cost(
        "core_group_duplex",
        1.41,
        "1",
        1.23,
        1.52,
        "estimate: bandwidth at equal reads and writes over that of reads alone, from MLC on EPYC 9224, where 3:1 reads and "
        "writes carry 1.35 and 2:1 1.39 times reads alone; writes have half the width",
    ),
    Cost(
        "cache_bytes",
        32.0 * 2**20,
        "B",
        16.0 * 2**20,
        384.0 * 2**20,
        "estimate: share of the last-level cache a guest keeps",
    ),
    # Address translation.
    Cost(
        "tlb_entries_4k", 1536.0, "entries", 1024.0, 3072.0, "estimate: second-level TLB of x86 servers since Skylake"
    ),
    Cost(
        "tlb_entries_2m",
        1536.0,
        "entries",
        1024.0,
        3072.0,
        "estimate: shared with 4 KiB entries in the second-level TLB",
    ),
    Cost("tlb_entries_1g", 16.0, "entries", 16.0, 64.0, "estimate: separate 1 GiB entries of x86 servers"),
    Cost("walk_memory_fraction", 1.0, "1", 0.5, 1.0, "estimate: part of uncached leaf references that go to memory"),
    Cost(
        "table_cache_bytes",
        2.0 * 2**20,
        "B",
        0.5 * 2**20,
        32.0 * 2**20,
        "estimate: page tables that a core's caches keep",
    ),
    Cost("walk_cached_latency", 15.0, "ns", 4.0, 30.0, "estimate: page-table reference that hits a cache"),
    # Faults, resizing and locks.
    Cost(
        "ept_fault", 2917.0, "ns", 2000.0, 4000.0, f"{HYPERALLOC}: base-manual and huge-manual first minus second touch"
    ),
    Cost(
        "clear_page",
        657.0,
        "ns/4KiB",
        100.0,
        2050.0,
        f"{HYPERALLOC}: huge-manual first minus second touch, less the fault; range: published clearing of 2 to 40 GB/s, "
        f"{CLEARING}",
    ),
    Cost(
        "clear_page_4k",
        400.0,
        "ns/4KiB",
        250.0,
        2050.0,
        f"estimate: between {CLEARING}, 13.7 GB/s on Milan in chunks of 4 KiB, and slower machines at 2 GB/s",
    ),
    Cost(
        "clear_page_2m",
        346.0,
        "ns/4KiB",
        155.0,
        2450.0,
        f"{CLEARING}: 11.8 GB/s, 16.5 with clear_pages(); range: 26.3 GB/s on EPYC 9B24 (reply to v4) to {KTASK}: 200 GiB in "
        "127.53 s with the allocation, 2432 ns for 4 KiB",
    ),
    Cost(
        "clear_page_1g",
        234.0,
        "ns/4KiB",
        66.0,
        1_600.0,
        f"{CLEARING}: 17.5 GB/s, 38 to 50 with clear_pages() on AMD; range: 61 GB/s on EPYC 9B24 (reply to v4) to {KTASK}: "
        "100 GiB in 41.13 s, 1569 ns for 4 KiB",
    ),
    Cost(
        "remote_wait",
        1.0,
        "1",
        0.25,
        1.0,
        f"estimate: part of what memory of another node is later by that work on it waits for. {KTASK}: if a node's 128 GiB "
        "come first, one thread takes 1.21 to 1.38 times as long for the rest, where latencies differ by 1.35 to 2.3. The "
        "value is the most it can be",
    ),
    Cost("touch_page", 224.0, "ns/4KiB", 200.0, 340.0, f"{HYPERALLOC}: huge-manual second touch"),
    Cost(
        "iommu_unmap_2m",
        32_520.0,
        "ns",
        20_000.0,
        45_000.0,
        f"{HYPERALLOC}: virtio-mem-movable shrink with and without VFIO",
    ),
    Cost(
        "map_populated_2m",
        36_864.0,
        "ns",
        20_000.0,
        50_000.0,
        f"{HYPERALLOC}: virtio-mem-movable-vfio first minus second touch, 72 ns for each 4 KiB",
    ),
    Cost(
        "struct_page_init",
        21.1,
        "ns",
        1.8,
        92.0,
        f"{GANG_LI}: 65.2 s for 11,776 pages of 1 GiB (21.1 ns), 1 to 2 s for 1,800 (2.1 to 4.2 ns); range also: deferred "
        "initialisation, LKML: Mel Gorman, Apr 2015, 17 ns on 1 TB, 45 to 52 ns on 64 GB; Daniel Jordan, ktask on 4.15-rc2, "
        "89 ns",
    ),
    Cost(
        "struct_page_bytes_moved",
        128.0,
        "B",
        64.0,
        192.0,
        "estimate: a struct page is read for ownership and written back; caps what many threads initialise",
    ),
    # In-place conversion of guest memory.
    Cost("conversion_fixed", 320.0, "cycles", 250.0, 400.0, f"{ROTH_2025}: one normal conversion; range: estimate"),
    Cost(
        "split_merge_per_page",
        46_475_980 / 262_144,
        "cycles/4KiB",
        46_475_980 / 262_144,
        0.07 * 1_043_938_460 / 652 / 512,
        f"{ROTH_2025}: one 1 GiB split or merge, 46475980 cycles; range: 7 % of all cycles in 652 of 2 MiB",
    ),
    Cost(
        "invalidation",
        3000.0,
        "cycles",
        1000.0,
        15_000.0,
        "estimate: zap and remote TLB flush of one range; no measurement of KVM's zap was found. Ends: a flush on the CPU that "
        "zaps, and a shootdown on many cores, which takes microseconds (Amit, USENIX ATC 2017)",
    ),
    Cost(
        "reference_check",
        8.0,
        "ns/folio",
        1.0,
        60.0,
        "estimate: one struct page read; ends: the line is in a cache, and two reads at a time from memory at its idle latency",
    ),
    Cost(
        "lru_drain",
        50_000.0,
        "ns",
        5_000.0,
        1_000_000.0,
        "estimate: lru_add_drain_all() queues work on every CPU with a batch and waits for all of it; no measurement was found. "
        "Ends: no CPU has a batch, so that locks and a walk over the CPUs remain, and a worker that gets its CPU a tick later",
    ),
    Cost(
        "map_store",
        250.0,
        "ns",
        80.0,
        1_000.0,
        "estimate: an extent stored in a maple tree of some thousand entries; no measurement was found. Ends: a leaf in a cache, "
        "and new nodes on the way up that miss it",
    ),
    Cost(
        "fault_interval",
        100_000.0,
        "ns",
        2_000.0,
        10_000_000.0,
        f"estimate: between two faults of one vCPU. Low end: it populates memory as fast as faults go, one exit and twice what a "
        f"page takes without ({POPULATION}); high end: a settled guest that shares a page now and then",
    ),
    Cost("cpu_frequency", 2.7, "GHz", 2.0, 4.0, "estimate: server cores under load; turns ns into cycles"),
    # khugepaged: 4 KiB folios copied into one of 2 MiB. What was missing is cleared (clear_page_2m).
    Cost(
        "collapse_alloc",
        198_000.0,
        "ns",
        1_000.0,
        1_000_000.0,
        f"{KHUGEPAGED}: alloc_charge_hpage; nobody waits for it. Range: estimate, from a free block at hand to reclaim",
    ),
    Cost(
        "collapse_fixed",
        94_100.0,
        "ns",
        20_000.0,
        300_000.0,
        f"{KHUGEPAGED}: 95 us for a cleared folio with one page to copy, less that copy: isolating and unmapping 512 entries, "
        "flush, locks; range: estimate",
    ),
    Cost(
        "collapse_copy_page",
        894.0,
        "ns/4KiB",
        372.0,
        1_237.0,
        f"{KHUGEPAGED}: from 95 us with 1 page copied to 323 us with 256; range: {MIGRATION_2026}: migration of 2 MiB folios at "
        "11.02 GB/s, which is copying alone, to that of 4 KiB folios at 3.31 GB/s",
    ),
)

COSTS: Mapping[str, Cost] = MappingProxyType({cost.name: cost for cost in _ALL})
"""All parameters by name."""


_DRAWN: ContextVar[Mapping[str, float]] = ContextVar("drawn", default=MappingProxyType({}))


@contextlib.contextmanager
def drawn(values: Mapping[str, float]) -> Iterator[None]:
    """Within the block, parameters have these values where nothing else is said: one draw of a model's inputs."""
    check(values)
    token = _DRAWN.set({**_DRAWN.get(), **values})
    try:
        yield
    finally:
        _DRAWN.reset(token)


def drawn_value(name: str) -> float | None:
    """What :func:`drawn` says of a parameter at this moment, if anything."""
    return _DRAWN.get().get(name)


def drawn_values() -> Mapping[str, float]:
    """All that :func:`drawn` says at this moment."""
    return _DRAWN.get()


def drawing() -> bool:
    """Whether :func:`drawn` says anything at this moment."""
    return bool(_DRAWN.get())


def value(name: str, overrides: Mapping[str, float] | None = None) -> float:
    """Value of a parameter, or what ``overrides`` says instead."""
    if name not in COSTS:
        raise WorkbenchError(f"cost: {unknown(name, COSTS)}")
    if overrides is not None and name in overrides:
        check({name: overrides[name]})
        return float(overrides[name])
    return _DRAWN.get().get(name, COSTS[name].value)


def check(overrides: Mapping[str, float] | None) -> None:
    """Refuse parameters that do not exist and values that are no numbers above 0; 0 is allowed for caches."""
    if overrides is not None and not isinstance(overrides, Mapping):
        raise WorkbenchError(f"costs: {_shown(overrides)} is no mapping of parameters to numbers")
    for name, number in (overrides or {}).items():
        if type(number) is float and 0.0 < number < np.inf and name in COSTS:
            continue  # as nearly all are
        if name not in COSTS:
            raise WorkbenchError(f"costs: {unknown(str(name), COSTS)}")
        if not is_number(number) or number < 0 or (number == 0 and name not in MAY_BE_ZERO):
            raise WorkbenchError(f"costs.{name}: {_shown(number)} {COSTS[name].unit} is not a number above 0")


def _shown(given: object) -> str:
    return repr(given)[:60]


def is_number(given: object) -> bool:
    """Whether it is a finite number, and no truth value or text."""
    return (
        isinstance(given, (int, float, np.integer, np.floating))
        and not isinstance(given, bool)
        and bool(np.isfinite(given))
    )


def number(name: str, given: object, unit: str = "", *, zero: bool = False) -> float:
    """A number above 0, or from 0 on where ``zero`` says so; anything else is refused by name."""
    if is_number(given):
        found = float(given)  # type: ignore[arg-type]
        if found > 0 or (zero and found == 0):
            return abs(found)
    allowed = "numbers from 0 on" if zero else "numbers above 0"
    raise WorkbenchError(f"{name}: {_shown(given)}{' ' * bool(unit)}{unit}; {allowed} are allowed")


def whole(name: str, given: object, least: int = 1) -> int:
    """A whole number from ``least`` on; anything else is refused by name."""
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool) and given >= least:
        return int(given)
    raise WorkbenchError(f"{name}: {_shown(given)}; whole numbers from {least} on are allowed")


MAY_BE_ZERO = {"cache_bytes", "table_cache_bytes", "walk_memory_fraction", "walk_cached_latency", "invalidation"}


def sample(
    names: tuple[str, ...], samples: int, seed: int = 0, known: Mapping[str, Cost] | None = None
) -> dict[str, np.ndarray]:
    """Draws over the ranges of some parameters, sample 0 being the values themselves.

    Latin hypercube, uniform in the logarithm between ``low`` and ``high`` (all parameters are positive scales).

    Parameters
    ----------
    names : parameters to vary
    samples : number of draws, at least 1
    seed : of the draws
    known : values and ranges instead of :data:`COSTS`, for example those of a machine's class

    Returns
    -------
    dict of float64 (samples,)
    """
    whole("samples", samples)
    whole("seed", seed, 0)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xC057]))
    draws: dict[str, np.ndarray] = {}
    for name in names:
        if name not in COSTS:
            raise WorkbenchError(f"cost: {name!r} is unknown; known are {', '.join(COSTS)}")
        cost = (known or COSTS)[name]
        strata = (rng.permutation(samples) + rng.random(samples)) / samples
        drawn = cost.low * (cost.high / cost.low) ** strata
        drawn[0] = cost.value
        draws[name] = drawn
    return draws


DRAWS = 25
"""Draws, of which the first has the values, that the ends of a range are taken from where nobody asks for more."""
ENDS = (0.05, 0.95)


def ends(every: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high end of draws (draws, ...): nine in ten lie between them, and the value, which is the first."""
    low, high = np.quantile(every[1:], ENDS, axis=0)
    return np.minimum(low, every[0]), np.maximum(high, every[0])


def draws_of(samples: int | None) -> int:
    """How many draws answer ``samples``: as many as ends are taken from where nobody says how many."""
    return DRAWS if samples is None else whole("samples", samples)


def presented(every: Mapping[str, np.ndarray], samples: int | None) -> dict[str, np.ndarray]:
    """Draws by name, each (draws, ...), as a Dataset has them: all of them, the value of one, or value and ends (None)."""
    if samples is None:
        out = {}
        low, high = ends(np.concatenate([values.reshape(len(values), -1) for values in every.values()], axis=1))
        start = 0
        for name, values in every.items():
            shape, size = values.shape[1:], values[0].size
            out[name] = values[0]
            for end, flat in (("low", low), ("high", high)):
                out[f"{name}_{end}"] = flat[start : start + size].reshape(shape)
            start += size
        return out
    return {name: values if samples > 1 else values[0] for name, values in every.items()}
