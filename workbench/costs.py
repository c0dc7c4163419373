"""Every parameter of the cost model: value, unit, range and where the number comes from.

Nothing here is exact. A parameter is either read from a publication, named in ``source``, or chosen by us, and then
``source`` starts with the word "estimate" and the range says how wrong it may be. Results that depend on one of them
carry ``attrs["basis"] = "modelled"``. Ranges feed the ``sample`` dimension of modelled variables.

Parameters that are exact counts (bytes of a struct page, references of a walk) are not costs and live with the code
that counts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from workbench.errors import WorkbenchError

MESS_SKYLAKE = "github:bsc-mem/Mess-simulator memory_curve/skylake-ddr4/bwlat_78.txt (6-channel DDR4, local)"
MESS_REMOTE = "github:bsc-mem/Mess-simulator Skylake-numa-ddr4/bwlat_98.txt (remote socket)"
MESS_GRAVITON3 = "github:bsc-mem/Mess-simulator graviton3-ddr5/bwlat_100.txt (8-channel DDR5)"
MESS_A64FX = "github:bsc-mem/Mess-simulator a64fx-hbm2/bwlat_100.txt (four HBM2 stacks)"
MESS_CXL = "github:bsc-mem/Mess-simulator cxl/bwlat_90.txt (device side)"
VIRTUOSO_CXL = "github:CMU-SAFARI/Virtuoso simulator/sniper/config/cxl_configs/cxl.cfg"
PRICE_2024 = "LKML: Gregory Price, weighted-interleave v2 cover letter (Jan 2024)"
OPTANE_2020 = "arXiv 1908.03583 (Yang et al., FAST 2020: Optane DC modules)"
ROTH_2025 = "LKML: Michael Roth, 12 Jul 2025 (16 GB SNP guest, hugetlb guest_memfd)"
HYPERALLOC = "github:luhsra/hyperalloc-bench inflate/latest/*/out.csv"
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
    # Memory and links. Bandwidths are MB/s (10^6 bytes), latencies ns, as the kernel's HMAT attributes print them.
    Cost("dram_latency", 65.8, "ns", 65.8, 125.0, f"{MESS_SKYLAKE}; range: Graviton3 98 ns, EPYC 9575F NPS1 about 130"),
    Cost(
        "dram_bandwidth", 101_007.0, "MB/s", 85_000.0, 320_000.0, f"{MESS_SKYLAKE}; range: DDR5 sockets 283 to 320 GB/s"
    ),
    Cost("hbm_latency", 111.9, "ns", 100.0, 140.0, MESS_A64FX),
    Cost(
        "hbm_bandwidth", 942_607.0, "MB/s", 235_000.0, 950_000.0, f"{MESS_A64FX}; range: one of its four stacks to all"
    ),
    Cost("cxl_latency", 284.0, "ns", 140.0, 410.0, f"{VIRTUOSO_CXL} (ASIC); range: SupMario, arXiv 2409.14317"),
    Cost(
        "cxl_bandwidth", 29_496.0, "MB/s", 20_000.0, 60_000.0, f"{MESS_CXL}; range: {PRICE_2024} 22 GB/s to x16 devices"
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
        "remote_latency_ratio", 2.015, "1", 1.5, 3.3, f"{MESS_REMOTE}: 132.6 ns against 65.8 ns local, at distance 21"
    ),
    Cost(
        "remote_bandwidth_ratio",
        0.348,
        "1",
        0.25,
        0.7,
        f"{MESS_REMOTE}: 35.2 GB/s against 101 GB/s local, at distance 21",
    ),
    Cost(
        "reference_distance",
        21.0,
        "1",
        20.0,
        21.0,
        "estimate: SLIT value of two-socket Skylake servers, not read with the curve",
    ),
    Cost("link_ports", 2.0, "1", 1.0, 3.0, "estimate: full-rate remote streams one node's links carry at once"),
    Cost(
        "write_weight",
        1.0,
        "1",
        1.0,
        1.5,
        "estimate: cost of a written byte in read bytes where HMAT gives no write bandwidth",
    ),
    # What one vCPU keeps in flight, in 64-byte cache lines.
    Cost(
        "lines_streaming",
        24.0,
        "lines",
        12.0,
        48.0,
        "estimate: hardware prefetch; EPYC single-core STREAM 50 GB/s at 110 ns is 86, Skylake 12 GB/s is 12",
    ),
    Cost("lines_random", 10.0, "lines", 6.0, 16.0, "estimate: line fill buffers of x86 cores"),
    Cost("lines_pointer_chasing", 1.0, "lines", 1.0, 1.0, "estimate: by definition one dependent access at a time"),
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
        400.0,
        800.0,
        f"{HYPERALLOC}: huge-manual first minus second touch, less the fault",
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
        23.0,
        "ns",
        21.0,
        25.0,
        "LKML: 1 GiB hugetlb page initialisation, 21 to 25 ns per struct page",
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
    Cost("invalidation", 3000.0, "cycles", 1000.0, 15_000.0, "estimate: zap and remote TLB flush of one range"),
    Cost("cpu_frequency", 2.7, "GHz", 2.0, 4.0, "estimate: server cores under load; turns ns into cycles"),
)

COSTS: Mapping[str, Cost] = MappingProxyType({cost.name: cost for cost in _ALL})
"""All parameters by name."""


def value(name: str, overrides: Mapping[str, float] | None = None) -> float:
    """Value of a parameter, or what ``overrides`` says instead."""
    if name not in COSTS:
        raise WorkbenchError(f"cost: {name!r} is unknown; known are {', '.join(COSTS)}")
    if overrides is not None and name in overrides:
        return float(overrides[name])
    return COSTS[name].value


def sample(names: tuple[str, ...], samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws over the ranges of some parameters, sample 0 being the values themselves.

    Latin hypercube, uniform in the logarithm between ``low`` and ``high`` (all parameters are positive scales).

    Parameters
    ----------
    names : parameters to vary
    samples : number of draws, at least 1
    seed : of the draws

    Returns
    -------
    dict of float64 (samples,)
    """
    if samples < 1:
        raise WorkbenchError(f"samples: {samples!r} must be 1 or more")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xC057]))
    draws: dict[str, np.ndarray] = {}
    for name in names:
        if name not in COSTS:
            raise WorkbenchError(f"cost: {name!r} is unknown; known are {', '.join(COSTS)}")
        cost = COSTS[name]
        strata = (rng.permutation(samples) + rng.random(samples)) / samples
        drawn = cost.low * (cost.high / cost.low) ** strata
        drawn[0] = cost.value
        draws[name] = drawn
    return draws
