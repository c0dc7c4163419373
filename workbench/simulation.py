"""Run a scenario: operations on a :class:`workbench.engine.system.System`, then one Dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from workbench import policy as mp
from workbench import profiles, results
from workbench import scenario as sc
from workbench.design import DESIGNS, choose
from workbench.engine import attributes, conversions
from workbench.engine.calls import apply
from workbench.engine.filemap import FileMap
from workbench.engine.generators import expand
from workbench.engine.objects import Inode, Result
from workbench.engine.system import System
from workbench.engine.unreached import unreached
from workbench.errnos import errno_name
from workbench.errors import Cancelled, WorkbenchError
from workbench.kernels import filemap
from workbench.kernels.compile import prepare
from workbench.tracking.confidential import LARGEST_LEAF
from workbench.units import PAGE_SIZE
from workbench.variables import Simulation

AUTO_PAGES = 1 << 22
"""``output: auto`` lists the node of every folio up to so many folios in all."""
MAX_RUNS = 1 << 16
"""Runs of one node are listed if there can be no more than so many; stretches always are."""

Progress = Callable[[int, int], None]


@dataclass
class _Log:
    """What is kept of each event while a scenario runs."""

    operations: list[sc.Operation] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    placed: list[np.ndarray] = field(default_factory=list)
    free: list[np.ndarray] = field(default_factory=list)
    observed: list[tuple[int, str, np.ndarray]] = field(default_factory=list)
    accesses: dict[int, Any] = field(default_factory=dict)
    conversions: list[np.ndarray] = field(default_factory=list)
    attributes: list[list[int]] = field(default_factory=list)


def simulate(
    scenario: sc.Scenario,
    *,
    designs: Sequence[str] | None = None,
    kernel_profiles: Sequence[str] | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> xr.Dataset:
    """Simulate a scenario and return its Dataset (see :mod:`workbench.results` for the variables).

    Parameters
    ----------
    scenario : the scenario
    designs : run it under each of these designs instead of its own; every variable that has the same shape under all of
        them then has a dimension ``design`` (tables of zones, whose pools differ, are left out)
    kernel_profiles : run it under the rules of each of these kernels (:data:`workbench.profiles.KERNEL_PROFILES`), along
        ``kernel`` in the same way
    progress : called with (operations done, operations in all)
    cancelled : asked now and then; when it returns True the run ends with :class:`workbench.errors.Cancelled`

    Raises
    ------
    WorkbenchError
        The scenario asks for something that is no operation of its host. A call that the kernel refuses is not an
        error: its event carries the errno, and the run goes on.
    Cancelled
        ``cancelled`` returned True.
    """
    if designs is not None and kernel_profiles is not None:
        raise WorkbenchError("designs and kernel profiles: one of the two can be compared in a run")
    if designs is not None:
        choose(designs)
        return _along(scenario, "design", "guest.design", designs, progress, cancelled)
    if kernel_profiles is not None:
        _choose_kernels(kernel_profiles)
        return _along(scenario, "kernel", "kernel_profile", kernel_profiles, progress, cancelled)
    prepare(kernels_needed(scenario))
    system = System(scenario, cancelled)
    operations = expand(scenario)
    out_of_place = attributes.wanted(scenario)
    log = _Log()
    for number, operation in enumerate(operations):
        system.placed[:] = 0
        result = apply(system, operation)
        log.operations.append(operation)
        log.results.append(result)
        log.tasks.append(operation.task or next(iter(system.tasks)))
        log.placed.append(system.placed.copy())
        log.free.append(system.free.copy())
        if isinstance(operation, sc.Observe) and not result.errno:
            file = system.files[operation.file]
            log.observed.append((number, operation.file, _observed_runs(system, file.inode, operation)))
        if system.conversions is not None:
            log.conversions.append(system.conversions.row())
        if out_of_place:
            log.attributes.append(_attribute_row(system))
        if isinstance(operation, sc.Access) and not result.errno:
            from workbench.cost import access

            inode = system.files[operation.file].inode
            log.accesses[number] = access.record(system, operation, inode, inode.tracked)
        if progress is not None:
            progress(number + 1, len(operations))
        if cancelled():
            raise Cancelled
    return _dataset(system, log)


def kernels_needed(scenario: sc.Scenario) -> list[str]:
    """Modules of :mod:`workbench.kernels` whose entry points a run calls, in the order of their first call."""
    modules = ["zonelist", "placement", "fault_order", "filemap"]
    if conversions.wanted(scenario):
        if DESIGNS[scenario.guest.design].store == "pfn map":
            modules += ["maps.maple", "pfn_range", "light_map"]
        else:
            modules += ["folios.run"]
    return modules


def _choose_kernels(names: Sequence[str]) -> None:
    for name in names:
        profiles.look_up(profiles.KERNEL_PROFILES, name, "kernel_profile")
    if not names or len(set(names)) != len(names):
        raise WorkbenchError(f"kernel profiles: {', '.join(names) or 'none'}; each of them once")


def _along(
    scenario: sc.Scenario,
    name: str,
    field: str,
    values: Sequence[str],
    progress: Progress | None,
    cancelled: Callable[[], bool],
) -> xr.Dataset:
    """The same scenario with each of ``values`` in ``field``, along the dimension ``name``."""
    runs = [scenario.replace(**{field: value}) for value in values]
    prepare(module for run in runs for module in kernels_needed(run))
    parts: list[xr.Dataset] = []
    for number, run in enumerate(runs):

        def step(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                progress(before * total + done, len(values) * total)

        parts.append(simulate(run, progress=step, cancelled=cancelled))
    parts = _with_all_files(parts)
    shapes = [{name: variable.shape for name, variable in part.data_vars.items()} for part in parts]
    common = [name for name in shapes[0] if all(shape.get(name) == shapes[0][name] for shape in shapes)]
    kept = [name for name in common if "zone" not in parts[0][name].dims]
    kept_parts = [part[kept].drop_vars("zone", errors="ignore") for part in parts]
    return results.stack(Simulation, kept_parts, name, list(values), provenance=results.provenance(scenario))


def _with_all_files(parts: list[xr.Dataset]) -> list[xr.Dataset]:
    """Files that only some of the runs have (a second backend) are there with no pages in the others."""
    names = list(dict.fromkeys(str(name) for part in parts for name in part["file"].values))
    nothing: dict[str, object] = {"page_node": -1, "page_pfn": -1}
    out = []
    for part in parts:
        fill = {str(name): nothing.get(str(name), 0) for name, made in part.data_vars.items() if "file" in made.dims}
        out.append(part if part.sizes["file"] == len(names) else part.reindex(file=names, fill_value=fill))
    return out


def _attribute_row(system: System) -> list[int]:
    """Counters of conversions out of place (:data:`workbench.engine.attributes.COUNTERS`), of all files together."""
    row = dict.fromkeys(attributes.COUNTERS, 0)
    for inode in system.inodes():
        if inode.attributes is not None and inode.backend is not None:
            shared = inode.attributes.shared
            now = {
                "shared_pages": int((shared[:, 1] - shared[:, 0]).sum()),
                "private_backend_pages": int(inode.map.counts(len(system.free)).sum()),
                "shared_backend_pages": int(inode.backend.map.counts(len(system.free)).sum()),
            }
            for name, value in (inode.attributes.counts | now).items():
                row[name] += value
    return list(row.values())


def _observed_runs(system: System, inode: Inode, operation: sc.Observe) -> np.ndarray:
    start, end = system.pages(operation, inode.pages)
    runs = _node_runs(system, inode.map, start >> inode.order, end >> inode.order)
    if runs is None:
        raise WorkbenchError(f"observe: {end - start} pages may be more than {MAX_RUNS} runs; observe a shorter range")
    return runs


def _node_runs(system: System, map_: FileMap, start: int = 0, end: int = np.iinfo(np.int64).max) -> np.ndarray | None:
    """Maximal runs of one node, int64 (n, 3): first folio, folios, node id; None if there may be more than MAX_RUNS."""
    runs = map_.cut(start, end)
    constant = map_.allocations[runs[:, 2], filemap.PERIOD] == 1
    most = int(np.where(constant, 1, runs[:, 1]).sum())
    if most > MAX_RUNS:
        return None
    out = np.empty((most, 3), np.int64)
    listed = filemap.node_runs(runs, map_.allocations, map_.tiles, system.zone_node, out)
    out = out[:listed]
    out[:, 2] = system.node_ids[out[:, 2]]
    return out


def _dataset(system: System, log: _Log) -> xr.Dataset:
    scenario = system.scenario
    variables: dict[str, object] = {}
    put = variables.__setitem__
    inodes = {name: file.inode for name, file in system.files.items()}
    _put_host(system, put)
    _put_events(system, log, put)
    counts = _file_counts(system, [inode.map for inode in inodes.values()])
    put("pages_per_node", counts)
    put("file_pages", np.array([inode.extent >> inode.order for inode in inodes.values()], np.int64))
    put("file_page_size", np.array([PAGE_SIZE << inode.order for inode in inodes.values()], np.int64))
    memory = counts << np.array([[inode.order] for inode in inodes.values()], np.int64).reshape(-1, 1)
    if scenario.guest.small_page_fallback:
        small = _file_counts(system, [inode.small for inode in inodes.values()])
        put("small_pages_per_node", small)
        memory += small
        runs = [(n, _node_runs(system, i.small)) for n, i in inodes.items() if i.small is not None]
        if all(rows is not None for _, rows in runs):
            _put_runs("small_run", [(name, rows) for name, rows in runs if rows is not None], put)
    put("page_size", np.int64(PAGE_SIZE << system.order))
    _put_placement(system, inodes, put)
    _put_observed(log, put)
    _put_ranges(system, inodes, put)
    _put_vcpus(system, memory, put)
    if log.accesses:
        from workbench.cost import access

        access.put_variables(system, len(log.results), log.accesses, put)
    if log.conversions:
        from workbench.tracking import folio_file as conversion

        variables.update(
            conversion.variables(
                np.array(log.conversions),
                two_stage=scenario.generation == "two-stage",
                largest_leaf=LARGEST_LEAF[scenario.guest.vm_type],
            )
        )
    if log.attributes:
        for name, column in zip(attributes.COUNTERS, np.array(log.attributes, np.int64).T, strict=True):
            put(name, column)
        put("drifted_pages", np.array([_drifted(system, inode) for inode in inodes.values()], np.int64))
    coordinates = {
        "node": system.node_ids,
        "node_to": system.node_ids,
        "zone": np.array(system.zone_labels, dtype=str),
        "event": np.arange(len(log.results)),
        "file": np.array(list(inodes), dtype=str),
        "vcpu": np.array(system.vcpus, dtype=str),
    }
    if log.conversions:
        coordinates |= {"level": np.array(conversion.LEVELS), "part": np.array(conversion.PARTS)}
    said = {"scenario": scenario.name, **_rules(scenario)} | ({"comment": scenario.comment} if scenario.comment else {})
    for name, lines in (
        ("warnings", unreached(system, log.operations, log.results)),
        ("assumed", scenario.host.assumptions()),
    ):
        if lines:
            said[name] = "\n".join(lines)
    return results.make(Simulation, variables, coordinates, provenance=results.provenance(scenario), attributes=said)


def _drifted(system: System, inode: Inode) -> int:
    return 0 if inode.attributes is None else inode.attributes.drifted(inode.zones_of, system.zone_node)


def _rules(scenario: sc.Scenario) -> dict[str, str]:
    """Whose rules the answer follows, for the attributes of the Dataset."""
    guest = scenario.guest
    return {
        "kernel_profile": scenario.kernel.name,
        "kernel_profile_text": scenario.kernel.text,
        "vm_type": guest.vm_type,
        "vmm_profile": guest.vmm_profile or "",
        "conversion_mode": scenario.conversion_mode,
    }


def _file_counts(system: System, maps: list[FileMap | None]) -> np.ndarray:
    """Folios of each map on each node, int64 (files, nodes)."""
    zones = [np.zeros(len(system.free), np.int64) if map_ is None else map_.counts(len(system.free)) for map_ in maps]
    return _by_node(system, np.array(zones, np.int64).reshape(-1, len(system.free)))


def _by_node(system: System, zones: np.ndarray) -> np.ndarray:
    """Sums over the zones of each node: int64 (n, zones) -> (n, nodes)."""
    return zones @ (system.zone_node[:, None] == np.arange(system.nodes)).astype(np.int64)


Put = Callable[[str, object], None]


def _put_host(system: System, put: Put) -> None:
    nodes = system.host.nodes
    put("node_kind", np.array([node.kind for node in nodes], dtype=str))
    put("node_memory", np.array([node.memory_bytes for node in nodes], np.int64))
    put("node_cpus", np.array([len(node.cpus) for node in nodes], np.int64))
    put("distance", np.asarray(system.host.distance_matrix, np.int64))
    order = system.fallback
    put("fallback_order", np.where(order >= 0, system.node_ids[order], -1))
    put("zone_node", system.node_ids[system.zone_node])
    put("zone_managed", system.managed)
    put("zone_page_size", system.zone_page_size.astype(np.int64))
    for row, mark in enumerate(("min", "low", "high")):
        put(f"zone_{mark}", system.watermarks[row])
    put("zone_lowmem_reserve", system.reserve)


def _put_events(system: System, log: _Log, put: Put) -> None:
    put("event_op", np.array([operation.op for operation in log.operations], dtype=str))  # type: ignore[attr-defined]
    put("event_task", np.array(log.tasks, dtype=str))
    put("event_file", np.array([getattr(operation, "file", None) or "" for operation in log.operations], dtype=str))
    put("event_ret", np.array([result.ret for result in log.results], np.int64))
    put("event_errno", np.array([result.errno for result in log.results], np.int64))
    put("event_error", np.array([errno_name(result.errno) for result in log.results], dtype=str))
    put("event_detail", np.array([json.dumps(result.detail) for result in log.results], dtype=str))
    placed = np.array(log.placed, np.int64).reshape(-1, len(system.free))
    huge = system.zone_page_size == PAGE_SIZE << system.order
    put("event_pages", _by_node(system, placed * huge))
    if not huge.all():
        put("event_small_pages", _by_node(system, placed * ~huge))
    put("free_pages", np.array(log.free, np.int64).reshape(-1, len(system.free)))


def _put_placement(system: System, inodes: dict[str, Inode], put: Put) -> None:
    scenario = system.scenario
    tiles: list[np.ndarray] = [np.empty(0, np.int16)]
    _put_stretches("stretch", system, {name: inode.map for name, inode in inodes.items()}, tiles, put)
    if scenario.guest.small_page_fallback:
        small = {name: inode.small for name, inode in inodes.items() if inode.small is not None}
        _put_stretches("small_stretch", system, small, tiles, put)
    put("tile_node", np.concatenate(tiles))

    total = sum(inode.extent >> inode.order for inode in inodes.values())
    if scenario.output in ("auto", "runs"):
        listed = [(name, _node_runs(system, inode.map)) for name, inode in inodes.items()]
        if all(runs is not None for _, runs in listed):
            _put_runs("run", [(name, runs) for name, runs in listed if runs is not None], put)
    if scenario.output == "pages" or (scenario.output == "auto" and total <= AUTO_PAGES):
        put("page_node", _page_node(system, inodes))
        if scenario.pfns:
            put("page_pfn", _page_pfn(system, inodes))


def _put_stretches(table: str, system: System, maps: dict[str, FileMap], tiles: list[np.ndarray], put: Put) -> None:
    """A table of stretches; the nodes of its tiles are appended to ``tiles``."""
    files: list[str] = []
    rows = [np.empty((0, 6), np.int64)]
    for name, map_ in maps.items() if system.scenario.output != "counts" else ():
        stretches, tile = _stretches(system, map_, sum(map(len, tiles)))
        files += [name] * len(stretches)
        rows.append(stretches)
        tiles.append(tile)
    put(f"{table}_file", np.array(files, dtype=str))
    columns = np.concatenate(rows).T
    for name, column in zip(("start", "length", "offset", "period", "phase", "step"), columns, strict=True):
        put(f"{table}_{name}", column)


def _stretches(system: System, map_: FileMap, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Stretches int64 (n, 6) and the nodes of their tiles, of what is present; tiles that nothing uses are dropped."""
    runs = map_.runs
    used, row = np.unique(runs[:, 2], return_inverse=True)
    allocations = map_.allocations[used]
    periods = allocations[:, filemap.PERIOD]
    offsets = np.concatenate(([0], np.cumsum(periods)))
    kept = (
        np.concatenate([map_.tiles[a[filemap.OFFSET] : a[filemap.OFFSET] + a[filemap.PERIOD]] for a in allocations])
        if len(allocations)
        else np.empty(0, np.int16)
    )
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


def _put_runs(table: str, tables: list[tuple[str, np.ndarray]], put: Put) -> None:
    rows = np.concatenate([runs for _, runs in tables]) if tables else np.empty((0, 3), np.int64)
    names = np.array([name for name, _ in tables], dtype=str)
    put(f"{table}_file", np.repeat(names, [len(runs) for _, runs in tables]))
    for column, name in enumerate(("start", "length", "node")):
        put(f"{table}_{name}", rows[:, column])


def _put_observed(log: _Log, put: Put) -> None:
    _put_runs("observed_run", [(name, runs) for _, name, runs in log.observed], put)
    events = [np.full(len(runs), event) for event, _, runs in log.observed]
    put("observed_run_event", np.concatenate(events) if events else np.empty(0, np.int64))


def _put_ranges(system: System, inodes: dict[str, Inode], put: Put) -> None:
    ranges = [(name, *extent) for name, inode in inodes.items() for extent in inode.shared_policy]
    put("range_file", np.array([name for name, *_ in ranges], dtype=str))
    put("range_start", np.array([start for _, start, _, _ in ranges], np.int64))
    put("range_end", np.array([end for _, _, end, _ in ranges], np.int64))
    put("range_mode", np.array([mp.MODES[policy.mode] for *_, policy in ranges], dtype=str))
    masks = [system.mask(policy.nodes) for *_, policy in ranges]
    put("range_nodes", np.array(masks, bool).reshape(len(ranges), system.nodes))


def _put_vcpus(system: System, counts: np.ndarray, put: Put) -> None:
    nids = np.array([system.tasks[name].nid for name in system.vcpus])
    memory = counts.sum(axis=0)
    total = max(int(memory.sum()), 1)
    distance = np.asarray(system.host.distance_matrix, np.float64)
    put("vcpu_node", system.node_ids[nids])
    put("local_share", memory[nids] / total)
    put("mean_distance", distance[nids] @ memory / total)
