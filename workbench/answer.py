"""What a run found, as plain arrays: the engine's answer, of which the Dataset of a simulation is one presentation.

An :class:`Answer` has the variables of :class:`workbench.variables.Simulation` by name. Each is worked out when it is first
asked for, so that who wants two numbers of a million runs pays for those two.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from workbench import policy as mp
from workbench import scenario as sc
from workbench.engine import attributes
from workbench.engine.calls import changes_no_page
from workbench.engine.conversion_counts import KVM_PAGES
from workbench.engine.filemap import FileMap
from workbench.engine.generators import ConvertMany, policies_left_out
from workbench.engine.kernel_pages import KINDS
from workbench.engine.lists.faults import Done
from workbench.engine.objects import Inode, Result
from workbench.engine.sums import Sums
from workbench.engine.system import System
from workbench.engine.unreached import lost_at_kexec, unreached
from workbench.engine.users import NAMES as USERS
from workbench.errnos import errno_name
from workbench.errors import WorkbenchError
from workbench.intervals import Int64s, ranges_text
from workbench.kernels import filemap
from workbench.limits import LISTED_PAGES, OBSERVED_RUNS
from workbench.tracking.confidential import DPAMT_PAGES_PER_2M, LARGEST_LEAF
from workbench.tracking.whole import WATCHED
from workbench.units import PAGE_SIZE

AUTO_PAGES = 1 << 22
"""``output: auto`` lists the node of every folio up to so many folios in all."""
MAX_RUNS = 1 << 16
"""Runs of one node are listed if there can be no more than so many; stretches always are."""

_SHARED, _PRIVATE_BACKEND, _SHARED_BACKEND = map(
    attributes.COUNTERS.index, ("shared_pages", "private_backend_pages", "shared_backend_pages")
)

Made = TypeVar("Made")
Put = Callable[[str, Callable[[], object]], None]
"""Takes the name of a variable and what works it out."""


class Log:
    """What is kept of each event while a scenario runs."""

    def __init__(self, system: System, operations: list[sc.Operation]) -> None:
        self.operations = operations
        self.results: list[Result] = []
        self.placed = np.empty((len(operations), len(system.free)), np.int64)
        self.free = np.empty_like(self.placed)
        self.observed: list[tuple[int, str, np.ndarray]] = []
        self.observed_runs = 0
        self.accesses: dict[int, Any] = {}
        self.conversions: np.ndarray | None = None
        self.whole = np.empty((0, 0), np.int64)
        if system.conversions is not None:
            self.conversions = np.empty((len(operations), system.conversions.width), np.int64)
            self.whole = np.zeros((len(operations), 4 + 2 * system.nodes + 3), np.int64)
        metadata = system.metadata
        self.metadata = None if metadata is None else np.empty((len(operations), *metadata.held.shape), np.int64)
        self.attributes: list[list[int]] | None = [] if attributes.wanted(system.scenario) else None
        self._of_attributes = Sums(len(attributes.COUNTERS), functools.partial(_attribute_row, system))

    def keep(self, system: System, operation: sc.Operation, result: Result) -> None:
        """Note the state after an operation."""
        number = len(self.results)
        self.results.append(result)
        self.placed[number] = system.placed
        # Metadata that found no memory are asked for again after each call.
        settled = system.metadata is None or not system.metadata.taking
        if settled and number and "killed" not in result.detail and changes_no_page(system, operation):
            self._as_before(number)
        else:
            self._note(system, operation, number)
        if result.errno:
            return
        if type(operation) is sc.Observe:
            self._observe(system, operation, result)
        elif type(operation) is sc.Access:
            from workbench.cost import access

            inode = system.files[operation.file].inode
            self.accesses[number] = access.record(system, operation, inode, inode.tracked)

    def _note(self, system: System, operation: sc.Operation, number: int) -> None:
        """The state as it is."""
        vmemmap = pamt = None
        if system.conversions is not None and self.conversions is not None:
            row = self.conversions[number]
            vmemmap = system.conversions.count(row)
            if system.scenario.guest.vm_type in WATCHED or system.conversions.devices:
                self._look_what_is_whole(system, operation, number)
                if system.scenario.guest.vm_type == "tdx":
                    pamt = self.whole[number, 4 + system.nodes : 4 + 2 * system.nodes] // PAGE_SIZE
        if self.attributes is not None:
            self.attributes.append(self._attributes_now(system).tolist())
        if self.metadata is not None and system.metadata is not None:
            if vmemmap is not None or system.scenario.guest.private_memory or system.metadata.light:
                system.metadata.settle(system.task(operation), vmemmap, pamt)
            self.metadata[number] = system.metadata.held
        self.free[number] = system.free  # after what the call has left to be taken
        system.was_looked_at()

    def _as_before(self, number: int) -> None:
        """The state is that after the operation before."""
        self.free[number] = self.free[number - 1]
        if self.conversions is not None:
            self.conversions[number], self.whole[number] = self.conversions[number - 1], self.whole[number - 1]
        if self.attributes is not None:
            self.attributes.append(self.attributes[-1])
        if self.metadata is not None:
            self.metadata[number] = self.metadata[number - 1]

    def _attributes_now(self, system: System) -> Int64s:
        """Counters of conversions out of place, of all files together."""
        return self._of_attributes.look(system.changed, system.attributed)

    def keep_many(self, system: System, done: Done) -> None:
        """Note the states after many operations, none of which was refused."""
        low, high = len(self.results), len(self.results) + len(done.results)
        self.results += done.results
        self.placed[low:high] = done.placed
        self.free[low:high] = done.free
        if self.metadata is not None and done.metadata is not None:
            self.metadata[low:high] = done.metadata
        if self.attributes is not None and done.attributes is not None and system.bulk is not None:
            beside = self._attributes_now(system) - self._of_attributes.rows.get(system.bulk.inode, 0)
            self.attributes += (done.attributes + beside).tolist()
        elif self.attributes is not None:  # of files that nobody converts
            self.attributes += [self._attributes_now(system).tolist()] * len(done.results)
        if self.conversions is not None and done.states is not None:
            self.conversions[low:high] = done.states.counters
            if done.states.leaves is not None:
                self.whole[low:high, -3:] = done.states.leaves
            if done.states.whole is not None:
                self.whole[low:high, :-3] = done.states.whole
            if done.states.whole is not None or done.states.leaves is not None:  # who looks next sees what it changes
                assert system.conversions is not None
                system.conversions.stays_whole(np.empty_like(self.whole[low]))

    def _observe(self, system: System, operation: sc.Observe, result: Result) -> None:
        """List the runs of a range. Too many of them are refused, or in a replay named as not listed."""
        inode = system.files[operation.file].inode
        runs = _observed_runs(system, inode, operation, OBSERVED_RUNS - self.observed_runs)
        if runs is not None:
            self.observed.append((len(self.results) - 1, operation.file, runs))
            self.observed_runs += len(runs)
        elif system.scenario.strict:
            pages = np.diff(system.pages(operation, inode.pages))[0]
            raise WorkbenchError(
                f"observe: {pages} pages may be more runs than the {OBSERVED_RUNS} that a scenario lists in all; "
                f"observe a shorter range"
            )
        else:
            result.detail["not_listed"] = True

    def _look_what_is_whole(self, system: System, operation: sc.Operation, number: int) -> None:
        """What stays whole after an operation: sums of all files, then by node, then leaves of devices."""
        conversions, rows = system.conversions, self.conversions
        assert conversions is not None and rows is not None
        same = number > 0 and rows[number].tobytes() == rows[number - 1].tobytes()
        if same and type(operation) in _OF_A_RANGE:
            self.whole[number] = self.whole[number - 1]
            return
        # Of types that are not watched there are leaves of devices alone; of many conversions each was looked at when made.
        if not same and system.scenario.guest.vm_type in WATCHED and type(operation) is not ConvertMany:
            for inode in conversions.inodes if system.changed is None else system.changed:
                if inode.tracked is not None and not inode.evicted:
                    conversions.whole(inode).look(*_part_that_changed(system, operation, inode))
        conversions.stays_whole(self.whole[number])


_OF_A_RANGE = frozenset((
    sc.Convert, sc.Fault, sc.Fallocate, sc.PunchHole, sc.Pin, sc.Unpin, sc.IommuMap, sc.IommuUnmap, sc.Hwpoison,
))  # fmt: skip
"""Operations that change nothing but folios that a range of one file touches."""


def _part_that_changed(system: System, operation: sc.Operation, inode: Inode) -> tuple[int, int]:
    """Pages of a file that an operation may have changed."""
    if type(operation) not in _OF_A_RANGE:
        return 0, inode.pages
    file = system.files.get(operation.file)  # type: ignore[attr-defined]
    if file is None or file.inode is not inode:
        return 0, 0
    start, end = system.pages(operation, inode.pages)
    return start >> inode.order << inode.order, -(-end >> inode.order) << inode.order


class Answer:
    """The variables of a run by name, each an array in its declared dimensions, and the coordinates likewise."""

    def __init__(self, system: System, log: Log) -> None:
        self.system = system
        self.log = log
        self._makers: dict[str, Callable[[], object]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        _list_variables(system, log, self._makers.__setitem__)

    @property
    def names(self) -> tuple[str, ...]:
        """Variables that this run has."""
        return tuple(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.coords:
            return self.coords[name]
        if name not in self._arrays:
            self._arrays[name] = np.asarray(self._makers[name]())
        return self._arrays[name]

    @functools.cached_property
    def warnings(self) -> str:
        """What its user should know before anything else, a line each: policies over others, that miss pages or are lost."""
        said = unreached(self.system, self.log.operations, self.log.results)
        said += lost_at_kexec(self.log.results)
        scenario = self.system.scenario
        return "\n".join([*scenario.policies_over_others(), *policies_left_out(scenario), *said])

    @functools.cached_property
    def attrs(self) -> dict[str, str]:
        """What there is to say of the run: its scenario, whose rules it follows, warnings and what was assumed."""
        scenario = self.system.scenario
        said = {
            "scenario": scenario.name,
            "kernel_profile": scenario.kernel.name,
            "kernel_profile_text": scenario.kernel.text,
            "vm_type": scenario.guest.vm_type,
            "vmm_profile": scenario.guest.vmm_profile or "",
            "conversion_mode": scenario.conversion_mode,
        }
        for name, lines in (
            ("comment", [scenario.comment] if scenario.comment else []),
            ("warnings", [self.warnings] if self.warnings else []),
            ("assumed", scenario.host.assumptions()),
        ):
            if lines:
                said[name] = "\n".join(lines)
        return said

    @property
    def node_ids(self) -> np.ndarray:
        """Linux ids of the nodes, int64 (nodes,): what stands along ``node``."""
        return self.system.node_ids

    @functools.cached_property
    def coords(self) -> dict[str, np.ndarray]:
        """What stands along the dimensions that have a coordinate."""
        system = self.system
        out = {
            "node": system.node_ids,
            "node_to": system.node_ids,
            "zone": np.array(system.zone_labels, dtype=str),
            "event": np.arange(len(self.log.results)),
            "file": np.array(list(system.files), dtype=str),
            "vcpu": np.array(system.vcpus, dtype=str),
        }
        if self.log.metadata is not None and system.metadata is not None:
            out["kind"] = np.array(KINDS)
        if self.log.conversions is not None:
            from workbench.tracking import folio_file as conversion

            out |= {"level": np.array(conversion.LEVELS), "part": np.array(conversion.PARTS), "user": np.array(USERS)}
        return out


def _once(make: Callable[[], Made]) -> Callable[[], Made]:
    """What is worked out when it is first asked for (``functools.cache`` takes as long to set up as some answers)."""
    kept: list[Made] = []

    def made() -> Made:
        if not kept:
            kept.append(make())
        return kept[0]

    return made


def _list_variables(system: System, log: Log, put: Put) -> None:
    """Name all variables of a run, each with what works it out."""
    inodes = {name: file.inode for name, file in system.files.items()}
    _put_host(system, put)
    _put_events(system, log, put)
    memory = _put_files(system, inodes, put)
    _put_placement(system, inodes, put)
    _put_observed(log, put)
    _put_ranges(system, inodes, put)
    _put_vcpus(system, memory, put)
    if log.accesses:
        from workbench.cost import access

        _put_group(access.NAMES, lambda: access.variables(system, len(log.results), log.accesses), put)
        _put_group(access.RANGES, lambda: access.ranges(system, len(log.results), log.accesses), put)
    if log.conversions is not None:
        from workbench.tracking import folio_file as conversion

        scenario, counted = system.scenario, log.conversions[: len(log.results)]
        _put_group(
            conversion.NAMES,
            lambda: conversion.variables(
                counted[:, :KVM_PAGES],
                two_stage=scenario.generation == "two-stage",
                largest_leaf=LARGEST_LEAF[scenario.guest.vm_type],
            ),
            put,
        )
        _put_whole(system, log.whole, put)
        assert system.conversions is not None
        users = _once(functools.partial(system.conversions.of_users, counted))
        put("user_invalidations", lambda: users().told)
        put("user_mapped_pages", lambda: users().mapped)
        put("iommu_lost_pages", lambda: users().lost)
        put("content_lost", lambda: np.array([_content_lost(inode) for inode in inodes.values()], dtype=str))
    if log.attributes:
        table = np.array(log.attributes, np.int64)
        for column, name in enumerate(attributes.COUNTERS):
            put(name, functools.partial(lambda column: table[:, column], column))
        put("drifted_pages", lambda: np.array([_drifted(system, inode) for inode in inodes.values()], np.int64))


def _put_whole(system: System, table: np.ndarray, put: Put) -> None:
    """What stays whole along events; what only one type of VM has is there for that type alone."""
    nodes = system.nodes
    by_node = table[:, 4 : 4 + nodes]
    if system.scenario.guest.vm_type == "snp":
        for column, name in enumerate(("rmp_updates", "rmp_smashes", "rmp_entries_2m", "direct_map_splits")):
            put(name, functools.partial(lambda column: table[:, column], column))
        there = np.array([node.memory_bytes >> 30 for node in system.host.nodes], np.int64)
        blocks = table[:, 4 + nodes : 4 + 2 * nodes] // (PAGE_SIZE * DPAMT_PAGES_PER_2M)  # with private memory
        put("rmpopt_regions", lambda: np.maximum(there - by_node, 0))
        put("rmpopt_regions_low", lambda: np.maximum(there - _regions_held(system, by_node, blocks)[1], 0))
        put("rmpopt_regions_high", lambda: np.maximum(there - _regions_held(system, by_node, blocks)[0], 0))
    elif system.scenario.guest.vm_type == "tdx":
        put("dynamic_pamt_bytes", lambda: table[:, 4 + nodes : 4 + 2 * nodes])
    put("device_leaves", lambda: table[:, 4 + 2 * nodes :])


def _regions_held(system: System, held: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewest and most 1 GiB regions that ``blocks`` of 2 MiB with private memory can lie in; 1 GiB pages are where they are."""
    creates = [operation for operation in system.scenario.operations if isinstance(operation, sc.Create)]
    sizes = {system.scenario.guest.page_size, *(each.page_size for each in creates if each.page_size is not None)}
    if sizes == {"1 GiB"}:
        return held, held
    pages = 512 if "4 KiB" in sizes else 1  # of a block that lie apart, of which one at least is private
    return -(-blocks // (512 * pages)), blocks * pages


def _put_group(names: Iterable[str], make: Callable[[], dict[str, Any]], put: Put) -> None:
    """Variables that are worked out together."""
    made = _once(make)
    for name in names:
        put(name, functools.partial(lambda name: made()[name], name))


def _put_host(system: System, put: Put) -> None:
    nodes = system.host.nodes
    put("node_kind", lambda: np.array([node.kind for node in nodes], dtype=str))
    put("node_memory", lambda: np.array([node.memory_bytes for node in nodes], np.int64))
    put("node_cpus", lambda: np.array([len(node.cpus) for node in nodes], np.int64))
    put("distance", lambda: np.asarray(system.host.distance_matrix, np.int64))
    put("fallback_order", lambda: np.where(system.fallback >= 0, system.node_ids[system.fallback], -1))
    put("zone_node", lambda: system.node_ids[system.zone_node])
    put("zone_managed", lambda: system.managed)
    put("zone_page_size", lambda: system.zone_page_size.astype(np.int64))
    put("zone_min", lambda: system.watermarks[0])
    put("zone_low", lambda: system.watermarks[1])
    put("zone_high", lambda: system.watermarks[2])
    put("zone_lowmem_reserve", lambda: system.reserve)


def _put_events(system: System, log: Log, put: Put) -> None:
    first = next(iter(system.tasks))
    put("event_op", lambda: np.array([o.op for o in log.operations], dtype=np.str_))  # type: ignore[attr-defined]
    put("event_task", lambda: np.array([o.task or first for o in log.operations], dtype=str))
    put("event_file", lambda: np.array([getattr(o, "file", None) or "" for o in log.operations], dtype=str))
    put("event_ret", lambda: np.array([result.ret for result in log.results], np.int64))
    put("event_errno", lambda: np.array([result.errno for result in log.results], np.int64))
    put("event_error", lambda: np.array([errno_name(result.errno) for result in log.results], dtype=str))
    put("event_detail", lambda: np.array(_details(log.results), dtype=str))
    huge = system.zone_page_size == PAGE_SIZE << system.order
    put("event_pages", lambda: _by_node(system, log.placed * huge))
    if not huge.all():
        put("event_small_pages", lambda: _by_node(system, log.placed * ~huge))
    put("free_pages", lambda: log.free)
    if log.metadata is not None and system.metadata is not None:
        put("metadata_pages", lambda: log.metadata)


def _details(results: list[Result]) -> list[str]:
    """What calls wrote besides, as JSON; of many alike it is one object."""
    said = {id(result.detail): result.detail for result in results}
    texts = {which: json.dumps(detail) if detail else "{}" for which, detail in said.items()}
    return [texts[id(result.detail)] for result in results]


def _put_files(system: System, inodes: dict[str, Inode], put: Put) -> Callable[[], np.ndarray]:
    """Sizes and places of the files; returns what counts 4 KiB pages on each node, int64 (files, nodes).

    What it returns counts a file of several names once.
    """
    files = list(inodes.values())
    rows: dict[Inode, int] = {}
    of_inode = np.array([rows.setdefault(inode, row) for row, inode in enumerate(files)], np.int64)
    first = of_inode == np.arange(len(files))
    fallback = system.scenario.guest.small_pages
    counts = _once(lambda: _file_counts(system, [inode.map for inode in files]))
    small = _once(lambda: _file_counts(system, [inode.small for inode in files]))

    def memory() -> np.ndarray:
        pages = counts() << np.array([[inode.order] for inode in files], np.int64).reshape(-1, 1)
        pages = pages + small() if fallback else pages
        return pages if first.all() else pages[first]

    put("pages_per_node", counts)
    put("file_pages", lambda: np.array([inode.extent >> inode.order for inode in files], np.int64))
    put("file_page_size", lambda: np.array([PAGE_SIZE << inode.order for inode in files], np.int64))
    if not first.all():
        put("file_inode", lambda: of_inode)
    if fallback:
        put("small_pages_per_node", small)
        _put_runs("small_run", system, {name: i.small for name, i in inodes.items() if i.small is not None}, put)
    put("page_size", lambda: np.int64(PAGE_SIZE << system.order))
    return memory


def _put_placement(system: System, inodes: dict[str, Inode], put: Put) -> None:
    scenario = system.scenario
    maps = {"stretch": {name: inode.map for name, inode in inodes.items()}}
    if scenario.guest.small_pages:
        maps["small_stretch"] = {name: inode.small for name, inode in inodes.items() if inode.small is not None}

    @_once
    def tables() -> tuple[dict[str, np.ndarray], np.ndarray]:
        return _stretch_tables(system, maps)

    for table in maps:
        for column in ("file", *_STRETCH_COLUMNS):
            put(f"{table}_{column}", functools.partial(lambda name: tables()[0][name], f"{table}_{column}"))
    put("tile_node", lambda: tables()[1])
    if scenario.output in ("auto", "runs"):
        _put_runs("run", system, {name: inode.map for name, inode in inodes.items()}, put)
    total = sum(inode.extent >> inode.order for inode in inodes.values())
    if scenario.output == "pages" or (scenario.output == "auto" and total <= AUTO_PAGES):
        put("page_node", lambda: _page_node(system, inodes))
        if scenario.pfns:
            put("page_pfn", lambda: _page_pfn(system, inodes))


_STRETCH_COLUMNS = ("start", "length", "offset", "period", "phase", "step")


def _stretch_tables(system: System, tables: dict[str, dict[str, FileMap]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns of each table of stretches by name, and the nodes of the tiles of all of them."""
    columns: dict[str, np.ndarray] = {}
    tiles: list[np.ndarray] = [np.empty(0, np.int16)]
    for table, maps in tables.items():
        files: list[str] = []
        rows = [np.empty((0, len(_STRETCH_COLUMNS)), np.int64)]
        for name, map_ in maps.items() if system.scenario.output != "counts" else ():
            stretches, tile = _stretches(system, map_, sum(map(len, tiles)))
            files += [name] * len(stretches)
            rows.append(stretches)
            tiles.append(tile)
        columns[f"{table}_file"] = np.array(files, dtype=str)
        columns |= {f"{table}_{n}": c for n, c in zip(_STRETCH_COLUMNS, np.concatenate(rows).T, strict=True)}
    return columns, np.concatenate(tiles)


def _stretches(system: System, map_: FileMap, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Stretches int64 (n, 6) and the nodes of their tiles, of what is present; tiles that nothing uses are dropped."""
    runs = map_.runs
    used, row = np.unique(runs[:, 2], return_inverse=True)
    allocations = map_.allocations[used]
    periods = allocations[:, filemap.PERIOD]
    offsets = np.concatenate(([0], np.cumsum(periods)))
    entries = np.repeat(allocations[:, filemap.OFFSET] - offsets[:-1], periods) + np.arange(offsets[-1])
    kept = map_.tiles[entries]
    mine = allocations[row]
    phase = (runs[:, 0] - mine[:, filemap.FIRST]) * mine[:, filemap.STEP] % mine[:, filemap.PERIOD]
    stretches = np.column_stack(
        (runs[:, 0], runs[:, 1], base + offsets[row], mine[:, filemap.PERIOD], phase, mine[:, filemap.STEP])
    ).astype(np.int64)
    return stretches, system.node_ids[system.zone_node[kept]].astype(np.int16)


def _page_node(system: System, inodes: dict[str, Inode]) -> np.ndarray:
    dtype = np.int8 if system.node_ids.max() < 128 else np.int16
    pages = max((inode.extent >> inode.order for inode in inodes.values()), default=0)
    out = np.empty((len(inodes), pages), dtype)
    values = system.node_ids[system.zone_node].astype(dtype)
    for row, inode in zip(out, inodes.values(), strict=True):
        for start, end in inode.map.absent(0, pages):
            row[start:end] = -1
        filemap.render(inode.map.runs, inode.map.allocations, inode.map.tiles, values, 0, row)
    return out


def _page_pfn(system: System, inodes: dict[str, Inode]) -> np.ndarray:
    pages = max((inode.extent >> inode.order for inode in inodes.values()), default=0)
    out = np.full((len(inodes), pages), -1, np.int64)
    for row, inode in zip(out, inodes.values(), strict=True):
        size = inode.extent >> inode.order
        if system.free_pfns is not None and inode.pfns is not None:
            row[:size] = system.free_pfns.of_file(inode.map, inode.pfns, size)
    return out


def _put_runs(table: str, system: System, maps: dict[str, FileMap], put: Put) -> None:
    """A table of runs, if no map may have too many."""
    if any(_most_runs(map_, map_.runs) > MAX_RUNS for map_ in maps.values()):
        return

    def listed() -> dict[str, np.ndarray]:
        return _run_columns(
            table, [(name, rows) for name, m in maps.items() if (rows := _node_runs(system, m)) is not None]
        )

    _put_group([f"{table}_{column}" for column in _RUN_COLUMNS], listed, put)


_RUN_COLUMNS = ("file", "start", "length", "node")


def _run_columns(table: str, tables: list[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Columns of a table of runs by name."""
    rows = np.concatenate([runs for _, runs in tables]) if tables else np.empty((0, 3), np.int64)
    names = np.array([name for name, _ in tables], dtype=str)
    columns = (np.repeat(names, [len(runs) for _, runs in tables]), *rows.T)
    return {f"{table}_{name}": column for name, column in zip(_RUN_COLUMNS, columns, strict=True)}


def _put_observed(log: Log, put: Put) -> None:
    def events() -> np.ndarray:
        listed = [np.full(len(runs), event) for event, _, runs in log.observed]
        return np.concatenate(listed) if listed else np.empty(0, np.int64)

    def columns() -> dict[str, np.ndarray]:
        return _run_columns("observed_run", [(name, runs) for _, name, runs in log.observed])

    _put_group([f"observed_run_{column}" for column in _RUN_COLUMNS], columns, put)
    put("observed_run_event", events)


def _put_ranges(system: System, inodes: dict[str, Inode], put: Put) -> None:
    ranges = [(name, *extent) for name, inode in inodes.items() for extent in inode.shared_policy]

    def masks() -> np.ndarray:
        rows = [system.mask(policy.nodes) for *_, policy in ranges]
        return np.array(rows, bool).reshape(len(ranges), system.nodes)

    put("range_file", lambda: np.array([name for name, *_ in ranges], dtype=str))
    put("range_start", lambda: np.array([start for _, start, _, _ in ranges], np.int64))
    put("range_end", lambda: np.array([end for _, _, end, _ in ranges], np.int64))
    put("range_mode", lambda: np.array([mp.MODES[policy.mode] for *_, policy in ranges], dtype=str))
    put("range_nodes", masks)


def _put_vcpus(system: System, counts: Callable[[], np.ndarray], put: Put) -> None:
    nids = np.array([system.tasks[name].nid for name in system.vcpus])

    @_once
    def memory() -> tuple[np.ndarray, int]:
        amount = counts().sum(axis=0)
        return amount, max(int(amount.sum()), 1)

    def distance() -> np.ndarray:
        return np.asarray(system.host.distance_matrix, np.float64)[nids] @ memory()[0] / memory()[1]

    put("vcpu_node", lambda: system.node_ids[nids])
    put("local_share", lambda: memory()[0][nids] / memory()[1])
    put("mean_distance", distance)


def _file_counts(system: System, maps: list[FileMap | None]) -> np.ndarray:
    """Folios of each map on each node, int64 (files, nodes)."""
    zones = [np.zeros(len(system.free), np.int64) if map_ is None else map_.counts(len(system.free)) for map_ in maps]
    return _by_node(system, np.array(zones, np.int64).reshape(-1, len(system.free)))


def _by_node(system: System, zones: np.ndarray) -> np.ndarray:
    """Sums over the zones of each node: int64 (n, zones) -> (n, nodes)."""
    return zones @ (system.zone_node[:, None] == np.arange(system.nodes)).astype(np.int64)


def _observed_runs(system: System, inode: Inode, operation: sc.Observe, room: int) -> np.ndarray | None:
    """Maximal runs of a range as :func:`_node_runs` has them; None if they are more than ``room`` or too many to count."""
    start, end = system.pages(operation, inode.pages)
    cut = inode.map.cut(start >> inode.order, end >> inode.order)
    most = _most_runs(inode.map, cut)
    if most > LISTED_PAGES:
        return None
    out = np.empty((min(most, MAX_RUNS), 3), np.int64)
    while True:
        wanted = filemap.node_runs(cut, inode.map.allocations, inode.map.tiles, system.zone_node, out)
        if wanted > room:
            return None
        if wanted <= len(out):
            out = out[:wanted]
            out[:, 2] = system.node_ids[out[:, 2]]
            return out
        out = np.empty((wanted, 3), np.int64)


def _most_runs(map_: FileMap, runs: np.ndarray) -> int:
    """Runs of one node that these runs of a map can be at most."""
    constant = map_.allocations[runs[:, 2], filemap.PERIOD] == 1
    return int(np.where(constant, 1, runs[:, 1]).sum())


def _node_runs(system: System, map_: FileMap, start: int = 0, end: int = np.iinfo(np.int64).max) -> np.ndarray | None:
    """Maximal runs of one node, int64 (n, 3): first folio, folios, node id; None if there may be more than MAX_RUNS."""
    runs = map_.cut(start, end)
    most = _most_runs(map_, runs)
    if most > MAX_RUNS:
        return None
    out = np.empty((most, 3), np.int64)
    listed = filemap.node_runs(runs, map_.allocations, map_.tiles, system.zone_node, out)
    out = out[:listed]
    out[:, 2] = system.node_ids[out[:, 2]]
    return out


def _attribute_row(system: System, inode: Inode, row: Int64s) -> bool:
    """Counters of conversions out of place (:data:`workbench.engine.attributes.COUNTERS`) of a file, if it converts."""
    states = inode.attributes
    if states is None or inode.backend is None or inode not in system.attributed:
        return False
    if system.bulk is not None and system.bulk.inode is inode:
        row[:] = list(system.bulk.row().values())
        return True
    row[:] = list(states.counts.values())  # in the order of COUNTERS
    row[_SHARED], row[_PRIVATE_BACKEND] = states.shared.pages, inode.map.folios
    row[_SHARED_BACKEND] = inode.backend.map.folios
    return True


def _content_lost(inode: Inode) -> str:
    return "" if inode.tracked is None else ranges_text(inode.tracked.content_lost())


def _drifted(system: System, inode: Inode) -> int:
    return 0 if inode.attributes is None else inode.attributes.drifted(inode.map, system.zone_node) << inode.order
