"""Placement of a 1 TiB guest against filling memory, C page by page, and what one would write without the kernels."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.harness import NO_COMPILER, Variant, compile_c, duration, measure, pointer, print_table, verdict
from workbench.kernels import filemap, placement, zonelist
from workbench.kernels.buddy import MAX_BLOCK_PAGES, UNMOVABLE, Buddy, allocate_extents, new_buddy, release_range

LOG2_PAGES = int(os.environ.get("BENCH_PLACEMENT_LOG2_PAGES", "28"))
PAGES = 1 << LOG2_PAGES
NODES = 8
WEIGHTS = np.array([5, 2, 1, 5, 2, 1, 3, 3], np.int64)
RANGES = 1000
MARK = 1000
ROWS = 4 * RANGES


@dataclass
class Case:
    """One host and one list of pieces, with room for the answer."""

    pieces: np.ndarray
    kind: np.ndarray
    start: np.ndarray
    nodes: np.ndarray
    free_at_start: np.ndarray
    free: np.ndarray = field(default_factory=lambda: np.zeros(NODES, np.int64))
    rotations: np.ndarray = field(default_factory=lambda: np.zeros((1, 2), np.int64))
    progress: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    allocations: np.ndarray = field(default_factory=lambda: np.zeros((ROWS, 5), np.int64))
    tiles: np.ndarray = field(default_factory=lambda: np.zeros(64 * ROWS, np.int16))
    runs: np.ndarray = field(default_factory=lambda: np.zeros((ROWS, 3), np.int64))
    cycle: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    target: np.ndarray = field(default_factory=lambda: np.zeros(NODES, np.int64))
    taken: np.ndarray = field(default_factory=lambda: np.zeros(NODES, np.int64))

    def __post_init__(self) -> None:
        requests = len(self.kind)
        self.filters = np.ones((requests, 2, NODES), bool)
        self.passes, self.task = np.ones(requests, np.int64), np.zeros(requests, np.int64)
        self.index_base = np.full(requests, -1)
        self.marks = np.full((2, NODES), MARK)
        self.marks[1] //= 2
        self.zone_node = np.arange(NODES)
        ring = np.abs(np.subtract.outer(self.zone_node, self.zone_node))
        order, load = np.zeros((NODES, NODES), np.int64), np.zeros(NODES, np.int64)
        zonelist.fallback_order(
            10 + 10 * np.minimum(ring, NODES - ring), np.ones(NODES, bool), np.zeros(NODES, bool), load, order
        )
        self.zonelists = np.zeros((NODES, NODES + 1), np.int64)
        normal = np.full(NODES, zonelist.ZONE_NORMAL)
        end, listed = np.zeros(NODES + 1, np.int64), np.zeros(NODES, np.int64)
        zonelist.zonelists(
            order, self.zone_node, normal, self.free_at_start, zonelist.ZONE_NORMAL, end, listed, self.zonelists
        )
        self.reset()

    def reset(self) -> None:
        """As before the first page."""
        self.free[:] = self.free_at_start
        self.rotations[:] = 0
        self.progress[:] = 0

    def place(self) -> np.ndarray:
        """Place all pieces; the runs of the answer."""
        status = placement.place_pieces(
            self.pieces,
            placement.Requests(
                self.kind, self.start, self.nodes, self.filters, self.passes, self.task, self.index_base
            ),
            placement.Interleaving(self.rotations, WEIGHTS),
            placement.Zones(self.free, self.marks, self.zone_node, self.zonelists),
            placement.Output(self.progress, self.allocations, self.tiles, self.cycle, self.target, self.taken),
        )
        assert status == placement.DONE
        rows = int(self.progress[placement.ALLOCATIONS])
        runs = self.runs[:rows]
        runs[:, :2] = self.allocations[:rows, :2]
        runs[:, 2] = np.arange(rows)
        return runs

    def render(self, out: np.ndarray) -> None:
        """Place, and write the node of every page."""
        filemap.render(self.place(), self.allocations, self.tiles, NODE_IDS, 0, out)

    def count(self) -> np.ndarray:
        """Place, and count the pages of each node from the runs."""
        counts = np.zeros(NODES, np.int64)
        filemap.count_zones(self.place(), self.allocations, self.tiles, counts)
        return counts

    def in_c(self, library: ctypes.CDLL, out: np.ndarray) -> None:
        """Page by page in C."""
        placed = library.place(
            pointer(self.pieces), ctypes.c_int64(len(self.pieces)), ctypes.c_int64(NODES), ctypes.c_int64(NODES),
            pointer(self.kind), pointer(self.start), pointer(self.nodes), pointer(self.filters),
            pointer(self.rotations), pointer(WEIGHTS), pointer(self.free), pointer(self.marks),
            pointer(self.zone_node), pointer(self.zonelists), pointer(out),
        )  # fmt: skip
        assert placed == PAGES


NODE_IDS = np.arange(NODES, dtype=np.int8)


def one_policy(kind: int, free: np.ndarray) -> Case:
    """The whole guest under one policy over all nodes."""
    pieces = np.array([[0, PAGES, 1, 0]])
    return Case(pieces, np.array([kind]), np.array([0]), np.ones((1, NODES), bool), free)


def many_ranges(free: np.ndarray) -> Case:
    """Ranges of uneven length, each under one of 24 policies: interleave, weighted or preferred on some nodes."""
    rng = np.random.default_rng(5)
    edges = np.unique(np.concatenate(([0, PAGES], rng.integers(1, PAGES, RANGES - 1))))
    kinds = np.repeat([placement.START, placement.INTERLEAVE, placement.WEIGHTED], NODES)
    masks = rng.random((len(kinds), NODES)) < 0.5
    masks[np.arange(len(kinds)), np.arange(len(kinds)) % NODES] = True
    request = rng.integers(0, len(kinds), len(edges) - 1)
    pieces = np.column_stack((edges[:-1], np.diff(edges), np.ones(len(request), np.int64), request))
    return Case(pieces, kinds, np.arange(len(kinds)) % NODES, masks, free)


def ample() -> np.ndarray:
    """Every node could hold the guest."""
    return np.full(NODES, 2 * PAGES)


def tight() -> np.ndarray:
    """Nodes of different sizes that fill up one after another; all together the guest and little more."""
    share = np.array([3, 5, 7, 9, 11, 13, 15, 17])
    return share * PAGES // share.sum() + 2 * MARK


def zones_of(case: Case) -> Buddy:
    """Free lists of all nodes as after boot."""
    sizes = -(-case.free_at_start // MAX_BLOCK_PAGES) * MAX_BLOCK_PAGES
    ends = np.cumsum(sizes)
    buddy = new_buddy(ends - sizes, ends)
    for node in range(NODES):
        release_range(buddy, node, int(ends[node] - sizes[node]), int(ends[node]))
    return buddy


class Whole:
    """The complete answer as runs: stretches of nodes, and per node the extents of pfns they take in turn."""

    def __init__(self, case: Case) -> None:
        self.case, self.buddy = case, zones_of(case)
        self.saved = Buddy(*(array.copy() if array.ndim and array.size < PAGES // 2 else array for array in self.buddy))
        self.large = slice(len(self.buddy.block_type) * 512, None)
        self.saved_links = self.buddy.links[2 * self.large.start :].copy()
        self.saved_state = self.buddy.state[self.large].copy()
        self.extents = [np.zeros((1000, 2), np.int64) for _ in range(NODES)]
        self.progress = np.zeros((NODES, 2), np.int64)

    def reset(self) -> None:
        """As before the first page."""
        self.case.reset()
        self.progress[:] = 0
        self.buddy.state[: self.large.start] = 0
        self.buddy.state[self.large] = self.saved_state
        self.buddy.links[2 * self.large.start :] = self.saved_links
        for name in ("block_type", "free_blocks", "free_pages"):
            getattr(self.buddy, name)[...] = getattr(self.saved, name)

    def answer(self) -> int:
        """Node and pfn of every page; the bytes it takes."""
        case = self.case
        runs = case.place()
        for node in range(NODES):
            taken = int(case.free_at_start[node] - case.free[node])
            allocate_extents(self.buddy, node, 0, UNMOVABLE, False, taken, self.extents[node], self.progress[node])
            assert self.progress[node, 1] == taken
        rows, entries = case.progress[placement.ALLOCATIONS], case.progress[placement.TILES]
        return int(runs.nbytes + rows * 5 * 8 + entries * 2 + self.progress[:, 0].sum() * 16)


def plain_python(pages: int, weights: list[int], free: list[int], fallback: list[list[int]]) -> list[int]:
    """Weighted interleave with nodes filling up, as one writes it down."""
    out, node, left = [], 0, 0
    for _ in range(pages):
        if left == 0:
            node = (node + 1) % len(weights)
            left = weights[node]
        left -= 1
        for candidate in fallback[node]:
            if free[candidate] > MARK:
                free[candidate] -= 1
                out.append(candidate)
                break
    return out


def with_numpy(pages: int, weights: np.ndarray, free: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Weighted interleave with one step of fallback per pass, in whole arrays."""
    cycle = np.repeat(np.roll(np.arange(NODES), -1), np.roll(weights, -1))
    out = cycle[np.arange(pages) % len(cycle)]
    for step in range(1, NODES):
        full = False
        for node in range(NODES):
            mine = np.flatnonzero(out == node)
            if len(mine) > free[node] - MARK:
                out[mine[free[node] - MARK :]] = fallback[node, step]
                full = True
        if not full:
            break
    return out


def with_simpy(pages: int, weights: list[int], free: list[int], fallback: list[list[int]]) -> list[int]:
    """One event per page: a process that takes pages out of one container per node."""
    import simpy

    environment = simpy.Environment()
    containers = [simpy.Container(environment, init=pages_free) for pages_free in free]
    out: list[int] = []

    def vcpu():  # type: ignore[no-untyped-def]
        node, left = 0, 0
        for _ in range(pages):
            if left == 0:
                node = (node + 1) % len(weights)
                left = weights[node]
            left -= 1
            for candidate in fallback[node]:
                if containers[candidate].level > MARK:
                    yield containers[candidate].get(1)
                    out.append(candidate)
                    break

    environment.process(vcpu())
    environment.run()
    return out


def per_page_rows(library: ctypes.CDLL | None) -> list[list[str]]:
    """Per-page output against fill and C."""
    out, out_c = np.zeros(PAGES, np.int8), np.zeros(PAGES, np.int8)
    cases = [
        ("interleave over 8 nodes", one_policy(placement.INTERLEAVE, ample()), 1.5),
        ("weighted interleave over 8 nodes", one_policy(placement.WEIGHTED, ample()), 1.5),
        ("interleave, nodes filling up", one_policy(placement.INTERLEAVE, tight()), 2.0),
        ("weighted interleave, nodes filling up", one_policy(placement.WEIGHTED, tight()), 2.0),
        ("1000 policy ranges", many_ranges(ample()), 2.0),
        ("1000 policy ranges, nodes filling up", many_ranges(tight()), 2.0),
    ]
    rows = []
    for name, case, limit in cases:
        if library is not None:
            out[:] = -1
            case.render(out)
            case.reset()
            case.in_c(library, out_c)
            assert np.array_equal(out, out_c), name
        times = measure(
            {"fill": Variant(lambda: out.fill(3)), "this": Variant(lambda c=case: c.render(out), case.reset)}
        )
        in_c = measure({"C": Variant(lambda c=case: c.in_c(library, out_c), case.reset)}, 1) if library else None
        ratio = times.ratio("this", "fill")
        rows.append(
            [
                name,
                duration(times["fill"]),
                duration(times["this"]),
                f"{ratio:.2f} ×",
                f"{limit:g} ×",
                verdict(ratio, limit),
                f"{in_c['C'] / times['fill']:.1f} ×" if in_c else "",
            ]
        )
    return rows


def without_pages_rows() -> list[list[str]]:
    """Answers whose cost follows events."""
    counted = many_ranges(tight())
    times = measure({"this": Variant(counted.count, counted.reset)}, 21)
    counted.reset()
    assert counted.count().sum() == PAGES
    rows = [["pages per node, 1000 ranges, nodes filling up", duration(times["this"]), "1 ms",
             verdict(times["this"], 1e-3), ""]]  # fmt: skip
    whole = Whole(one_policy(placement.WEIGHTED, tight()))
    times = measure({"this": Variant(whole.answer, whole.reset)}, 9)
    whole.reset()
    size = whole.answer()
    good = times["this"] <= 10e-3 and size <= 10e6
    rows.append(
        [
            "node and pfn of every page as runs, nodes filling up",
            duration(times["this"]),
            "10 ms, 10 MB",
            "met" if good else "missed",
            f"{size / 1e6:.3g} MB",
        ]
    )
    return rows


def alternatives_rows() -> list[list[str]]:
    """The same placement written in other ways, scaled down, per page."""
    small = 1 << 18
    free = np.array([small * share // 80 + 2 * MARK for share in (3, 5, 7, 9, 11, 13, 15, 17)])
    case = one_policy(placement.WEIGHTED, tight())
    fallback = case.zonelists[:, :NODES]
    lists = fallback.tolist()
    out = np.zeros(PAGES, np.int8)
    times = measure(
        {
            "Python": Variant(lambda: plain_python(small, WEIGHTS.tolist(), free.tolist(), lists)),
            "NumPy": Variant(lambda: with_numpy(small, WEIGHTS, free, fallback)),
            "SimPy": Variant(lambda: with_simpy(small // 8, WEIGHTS.tolist(), free.tolist(), lists)),
            "this, per page": Variant(lambda: case.render(out), case.reset),
            "this, as runs": Variant(lambda: case.place(), case.reset),
        },
        3,
    )
    pages = {"Python": small, "NumPy": small, "SimPy": small // 8, "this, per page": PAGES, "this, as runs": PAGES}
    per_page = {name: times[name] / count for name, count in pages.items()}
    notes = {"NumPy": "fallback only from node to node, not in the order of events"}
    return [
        [name, f"{seconds * 1e9:.3g} ns", f"{seconds / per_page['this, per page']:,.3g} ×", notes.get(name, "")]
        for name, seconds in per_page.items()
    ]


SIMULATE = """
import json, sys, time
import numpy as np
begin = time.perf_counter()
import workbench as wb
imported = time.perf_counter() - begin
from workbench.scenario import Scenario
kind = sys.argv[1]
pages = 1 << int(sys.argv[2])
def node(i, gib): return {"id": i, "memory_bytes": int(gib * 1024) << 20, "cpus": list(range(4 * i, 4 * i + 4))}
def scenario(pages, page_size, design, ranges, gib, output):
    rng = np.random.default_rng(7)
    edges = sorted({0, pages, *rng.integers(1, pages, ranges - 1).tolist()}) if ranges else []
    modes = ["interleave", "weighted_interleave", "preferred", "bind"]
    policies = []
    for low, high in zip(edges, edges[1:]):
        mode = modes[int(rng.integers(0, 4))]
        nodes = str(int(rng.integers(0, 8))) if mode == "preferred" else "0-7"
        policies.append({"mode": mode, "nodes": nodes, "offset": low * 4096, "length": (high - low) * 4096})
    nodes = [node(i, gib) for i in range(8)]
    distances = [[10 + 10 * (i != j) for j in range(8)] for i in range(8)]
    size = {"4 KiB": 4096, "1 GiB": 1 << 30}[page_size]
    return Scenario.from_mapping({
        "host": {"name": "eight", "nodes": nodes, "distances": distances},
        "guest": {"memory": pages * size, "page_size": page_size, "design": design, "policies": policies,
                  "vcpus": [{"node": i} for i in range(8)]},
        "boot": {"weights": {i: 1 + i % 3 for i in range(8)}},
        "operations": [{"op": "create"}, {"op": "prefault"}],
        "output": output,
    })
def memory(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024
def forget_peak():
    open("/proc/self/clear_refs", "w").write("5")
result = {"import": imported}
if kind == "first":
    small = scenario(1 << 10, "4 KiB", "filemap", 4, 16, "auto")
    begin = time.perf_counter(); used = time.process_time(); wb.simulate(small)
    result.update(first=time.perf_counter() - begin, first_cpu=time.process_time() - used)
else:
    if kind == "huge":
        big = scenario(1 << 14, "1 GiB", "hugetlb", 0, 2400, "auto")
    else:
        big = scenario(pages, "4 KiB", "filemap", 1000, 1.3 * pages * 4096 / (1 << 30) / 8 + 4, "pages")
    warm = scenario(1 << 12, "4 KiB", "filemap", 20, 16, "pages")
    wb.simulate(warm)
    if kind == "huge": wb.simulate(big)
    forget_peak()
    before = memory("VmRSS")
    times, fills = [], []
    buffer = None
    for _ in range(5):
        begin = time.process_time(); data = wb.simulate(big); times.append(time.process_time() - begin)
        if not result.get("peak"): result["peak"] = memory("VmHWM") - before
        if kind != "huge":
            page_node = data["page_node"].values
            assert page_node.size == pages and (page_node >= 0).all()
            begin = time.process_time(); page_node.fill(3); fills.append(time.process_time() - begin)
            del page_node
        del data
    result.update(times=times, fills=fills)
print(json.dumps(result))
"""


def simulated(kind: str) -> dict:
    """Run ``SIMULATE`` in a fresh process."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", SIMULATE, kind, str(LOG2_PAGES)], capture_output=True, text=True, env=os.environ
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def end_to_end_rows() -> list[list[str]]:
    """``workbench.simulate``, in fresh processes."""
    rows = []
    big = simulated("pages")
    ratio = float(np.median([a / b for a, b in zip(big["times"], big["fills"], strict=True)]))
    bytes_per_page = big["peak"] / PAGES
    rows.append(["simulate, 1000 policy ranges, per-page output", duration(float(np.median(big["times"]))),
                 f"{ratio:.2f} × fill", "5 × fill", verdict(ratio, 5)])  # fmt: skip
    rows.append(["its peak memory", f"{big['peak'] / 1e6:.0f} MB", f"{bytes_per_page:.2f} B per page", "3 B per page",
                 verdict(bytes_per_page, 3)])  # fmt: skip
    huge = float(np.median(simulated("huge")["times"]))
    rows.append(["simulate, 16 TiB in 1 GiB pages", duration(huge), "", "50 ms", verdict(huge, 50e-3)])
    simulated("first")  # the cache of compiled kernels is warm after this
    fresh = [simulated("first") for _ in range(5)]
    rows.append(["import workbench in a fresh process", duration(float(np.median([f["import"] for f in fresh]))),
                 "", "", ""])  # fmt: skip
    first, used = (float(np.median([f[name] for f in fresh])) for name in ("first", "first_cpu"))
    rows.append(["first small simulate in it, warm cache", duration(first), f"{duration(used)} of CPU time", "", ""])
    return rows


def main() -> None:
    """Print the tables."""
    source = Path(__file__).with_name("placement_port.c").read_text()
    library = compile_c(source)
    if library is None:
        print(NO_COMPILER)
    else:
        library.place.restype = ctypes.c_int64
    size = f"{PAGES * 4096 >> 30} GiB guest in 4 KiB pages"
    print_table(
        f"{size}: node of every page, int8",
        ["policy", "fill", "this", "ratio", "goal", "", "C page by page / fill"],
        per_page_rows(library),
    )
    print_table(f"{size}: answers that touch no page", ["answer", "time", "goal", "", "size"], without_pages_rows())
    print_table(
        "Weighted interleave, nodes filling up, in other ways (scaled down), per page",
        ["written in", "time", "as multiple of this", "remark"],
        alternatives_rows(),
    )
    print_table(f"{size}: end to end", ["what", "value", "ratio", "goal", ""], end_to_end_rows())


if __name__ == "__main__":
    main()
