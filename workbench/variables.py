"""Every variable and coordinate of every Dataset, declared once.

A :class:`Schema` is one kind of Dataset: what :func:`workbench.simulate` returns (:class:`Simulation`), what a study or
a comparison returns. Its attributes are the variables as objects, so that a name can be looked up, completed and
checked: ``Simulation.event_errno.units``. :func:`workbench.results.make` builds Datasets from them; nothing else does.

Basis is what a number rests on:

``exact``     checked against recordings of the real kernel
``counted``   follows from exact ones by counting
``modelled``  comes from a model with parameters; ``source`` names it
``measured``  read off a clock, a counter or a publication; ``source`` says where
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from workbench.costs import ROTH_2025

Basis = Literal["exact", "counted", "modelled", "measured"]


@dataclass(eq=False)
class Variable:
    """One variable of a Dataset. Its name is that of the attribute which holds it.

    dims : in order; any variable may have ``sample`` (draws over the ranges of parameters) in front of them
    units : "1" for a number without unit, "" for texts
    source : where the numbers come from; needed for what is modelled or measured
    ends : whether there are also ``NAME_low`` and ``NAME_high``, which hold the value and nine in ten draws
    """

    dims: tuple[str, ...]
    units: str
    long_name: str
    basis: Basis
    source: str = ""
    name: str = ""
    ends: bool = False

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        for end, side in (("low", "below"), ("high", "above")) if self.ends else ():
            text = f"{self.long_name}, 5 % of draws {side}"
            setattr(
                owner, f"{name}_{end}", Variable(self.dims, self.units, text, self.basis, self.source, f"{name}_{end}")
            )


@dataclass(eq=False)
class Coordinate:
    """One coordinate of a Dataset: its unit and what its values are."""

    units: str
    long_name: str
    name: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name


class Schema:
    """One kind of Dataset. ``variables`` and ``coordinates`` are its own and those of the kinds that it extends."""

    variables: ClassVar[dict[str, Variable]] = {}
    coordinates: ClassVar[dict[str, Coordinate]] = {}

    def __init_subclass__(cls) -> None:
        found = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        cls.variables = {name: value for name, value in found.items() if isinstance(value, Variable)}
        cls.coordinates = {name: value for name, value in found.items() if isinstance(value, Coordinate)}


def exact(dims: str, units: str, long_name: str) -> Variable:
    """A variable that is checked against recordings; ``dims`` are separated by spaces."""
    return Variable(tuple(dims.split()), units, long_name, "exact")


def counted(dims: str, units: str, long_name: str) -> Variable:
    """A variable that follows from exact ones by counting."""
    return Variable(tuple(dims.split()), units, long_name, "counted")


def modelled(dims: str, units: str, long_name: str, source: str, *, ends: bool = False) -> Variable:
    """A variable of a model; ``source`` names the model, ``ends`` declares those of its range, too."""
    return Variable(tuple(dims.split()), units, long_name, "modelled", source, ends=ends)


def measured(dims: str, units: str, long_name: str, source: str) -> Variable:
    """A variable that somebody measured; ``source`` says where and how."""
    return Variable(tuple(dims.split()), units, long_name, "measured", source)


# ------------------------------------------------------------------------------------------------------- sources

TRAFFIC = "workbench/cost/traffic.py: max-min fair sharing with measured bandwidth-latency curves (Mess, BSC)"
TRANSLATION = (
    "workbench/cost/translation.py: uniform accesses, TLB of given entries, leaf entries from memory (vMitosis)"
)
KERNEL_TIMES = "workbench/cost/kernel_times.py: published times of one thread, capped by the memory's bandwidth"
PFNS = "ascending from the start of each zone, freed folios last in, first out (mm/page_alloc.c); see kernels/pfns.py"
CONVERSION = f"{ROTH_2025}; invalidation, zeroing and collapse: workbench/costs.py"
DESIGN_CYCLES = "workbench/costs.py: conversion_fixed, split_merge_per_page, invalidation, struct_page_init"
REGIONS = (
    "exact for 1 GiB pages; others as if they filled regions in the order of the file: workbench/tracking/whole.py"
)
STALL = (
    f"{ROTH_2025} for split and merge; other steps: estimates with ranges in workbench/costs.py; RMPUPDATE and PSMASH: none "
    "published, counted only"
)
HVO_RECORDING = "datasets/recordings/hvo.json.gz: nr_memmap_boot_pages and nr_memmap_pages of Linux 7.3.4"
REPRODUCED = "workbench/truth/published.py"
CLOCK = "CPU time on the machine that ran it, compiled code warm; look at ratios only"


# ---------------------------------------------------------------------------------------------------- a scenario


class HostNodes(Schema):
    """The nodes and zones of a host (:func:`workbench.plots.topology.host_dataset`)."""

    node = Coordinate("1", "NUMA node id")
    node_to = Coordinate("1", "NUMA node id")
    zone = Coordinate("", "zone (node/type)")
    node_kind = exact("node", "", "kind of memory")
    node_memory = exact("node", "B", "memory of the node")
    node_cpus = exact("node", "1", "CPUs of the node")
    distance = exact("node node_to", "1", "SLIT distance (10 = local)")
    zone_node = exact("zone", "1", "node of the zone")


class ConversionCounts(Schema):
    """Conversions of huge folios along ``event``; what is not "now" is a sum since the start."""

    level = Coordinate("", "size of the mapping")
    part = Coordinate("", "part of a conversion")
    user = Coordinate("", "who maps pages and is told of invalidations")
    splits_1g = counted("event", "folios", "1 GiB folios split")
    splits_2m = counted("event", "folios", "2 MiB folios split")
    merges_1g = counted("event", "folios", "1 GiB folios merged")
    merges_2m = counted("event", "folios", "2 MiB folios merged")
    collapsed_2m = counted("event", "folios", "2 MiB folios that khugepaged copied small ones into")
    copied_pages = counted("event", "4 KiB pages", "pages that khugepaged copied")
    mapped_1g = counted("event", "folios", "1 GiB folios private and whole now")
    mapped_2m = counted("event", "folios", "2 MiB folios private and whole now")
    lost_1g = counted("event", "mappings", "1 GiB mappings lost")
    lost_2m = counted("event", "mappings", "2 MiB mappings lost")
    regained_1g = counted("event", "mappings", "1 GiB mappings regained by a guest fault after a merge")
    regained_2m = counted("event", "mappings", "2 MiB mappings regained by a guest fault after a merge")
    returned_1g = counted("event", "mappings", "1 GiB folios whole again and not yet faulted by the guest")
    returned_2m = counted("event", "mappings", "2 MiB folios whole again and not yet faulted by the guest")
    conversions = counted("event", "calls", "conversions asked for")
    failed_conversions = counted("event", "calls", "conversions refused")
    rollbacks = counted("event", "calls", "conversions rolled back")
    converted_pages = counted("event", "4 KiB pages", "pages converted")
    shared_pages = counted("event", "4 KiB pages", "pages shared now")
    invalidations = counted("event", "calls", "invalidations sent by the file")
    user_invalidations = counted("event user", "calls", "invalidations that the user was told of")
    user_mapped_pages = counted("event user", "4 KiB pages", "pages that the user maps now")
    iommu_lost_pages = counted("event", "4 KiB pages", "pages that a device lost because they went away")
    invalidated_bytes = counted("event", "B", "memory named by invalidations")
    vmemmap_taken = counted("event", "4 KiB pages", "vmemmap pages restored by splits")
    vmemmap_freed = counted("event", "4 KiB pages", "vmemmap pages given back by merges")
    content_lost_pages = counted("event", "4 KiB pages", "pages whose content merges gave up")
    content_stale_pages = counted(
        "event", "4 KiB pages", "pages that merges count as zeroed though nothing zeroed them"
    )
    content_lost = exact("file", "", "pages of the file whose content merges gave up, as ranges")
    spins = counted("event", "references", "transient references waited for")
    mapping_share = counted("event level", "1", "share of present memory by largest mapping possible")
    stage2_tables = counted("event", "4 KiB pages", "second-stage tables, mapped as large as possible")
    vmemmap_pages = counted("event node", "4 KiB pages", "vmemmap pages held by splits")
    rmp_updates = counted("event", "entries", "RMPUPDATE of the guest's memory")
    rmp_smashes = counted("event", "entries", "2 MiB RMP entries smashed (PSMASH)")
    rmp_entries_2m = counted("event", "entries", "2 MiB RMP entries now")
    direct_map_splits = counted("event", "2 MiB", "2 MiB of the direct map split for entries of 4 KiB")
    rmpopt_regions = modelled("event node", "GiB", "1 GiB regions of the node without SNP guest memory", REGIONS)
    rmpopt_regions_low = counted(
        "event node", "GiB", "1 GiB regions without SNP guest memory at least, wherever folios lie"
    )
    rmpopt_regions_high = counted(
        "event node", "GiB", "1 GiB regions without SNP guest memory at most, if folios are packed"
    )
    dynamic_pamt_bytes = counted("event node", "B", "pairs of PAMT pages for private memory on the node")
    device_leaves = counted("event level", "mappings", "IOMMU mappings of what is mapped for devices, by size")
    conversion_cycles = modelled(
        "event part", "cycles", "time spent by conversions and khugepaged so far", CONVERSION, ends=True
    )


class Stalls(Schema):
    """How long conversions hold their file under each design (:func:`workbench.designs.stalls.stalls`)."""

    design = Coordinate("", "how memory is tracked")
    draw = Coordinate("1", "draw of the parameters (0: as given)")
    conversion = Coordinate("1", "conversion, in order")
    step = Coordinate("", "step of a conversion")
    node = Coordinate("1", "NUMA node")
    steps = counted("design conversion step", "1", "how often a conversion takes the step")
    to_shared = exact("conversion", "1", "1: to shared, 0: to private")
    stall = modelled("draw design conversion", "ns", "time for which a conversion holds its file", STALL)
    boot_stall = modelled("draw design", "ns", "time for which all conversions of a boot hold the file", STALL)
    headroom = counted("design node", "4 KiB pages", "free memory that restored struct pages need at their peak")
    part = Coordinate("", "what a split holds besides pages")
    inside = counted("design conversion part", "1", "what splits and merges of a conversion make and free")
    waiting = modelled("draw design conversion", "vCPUs", "vCPUs that fault while a conversion holds the file", STALL)
    boot_wait = modelled("draw design", "ns", "time that vCPUs wait in all conversions of a boot, summed", STALL)


class BootStalls(Schema):
    """Stalls of the boots of many guests (:func:`workbench.studies.boot_stalls.boot_stalls`)."""

    design = Coordinate("", "how memory is tracked")
    draw = Coordinate("1", "draw of the parameters (0: as given)")
    guest = Coordinate("1", "guest, the smallest first")
    guest_gib = counted("guest", "GiB", "memory of the guest, drawn from a published mix")
    boot_stall = modelled("draw guest design", "ns", "time for which all conversions of a boot hold the file", STALL)
    longest_stall = modelled("draw guest design", "ns", "time for which the longest conversion holds the file", STALL)
    boot_wait = modelled("draw guest design", "ns", "time that vCPUs wait in all conversions of a boot, summed", STALL)
    boot_headroom = counted("guest design", "4 KiB pages", "free memory that restored struct pages need at their peak")


class OutOfPlace(Schema):
    """Conversions between two backends along ``event`` (kernels before conversion in place); sums, or "now"."""

    punched_pages = counted("event", "4 KiB pages", "private pages freed by holes")
    discarded_pages = counted("event", "4 KiB pages", "pages of the shared backend discarded")
    refaulted_pages = counted("event", "4 KiB pages", "private pages allocated again after a hole")
    private_backend_pages = counted("event", "4 KiB pages", "pages of the guest_memfd now")
    shared_backend_pages = counted("event", "4 KiB pages", "pages of the shared backend now")
    drifted_pages = counted("file", "4 KiB pages", "pages now on another node than the first that backed them")


class Simulation(HostNodes, ConversionCounts, OutOfPlace):
    """A scenario that was run (:func:`workbench.simulate`)."""

    file = Coordinate("", "file")
    event = Coordinate("1", "event number")
    vcpu = Coordinate("", "vCPU")
    design = Coordinate("", "how memory is tracked")
    kernel = Coordinate("", "kernel whose rules hold")

    fallback_order = exact("node rank", "1", "fallback order of nodes (-1: none)")
    zone_managed = counted("zone", "pages", "pages managed by the zone")
    zone_min = counted("zone", "pages", "min watermark")
    zone_low = counted("zone", "pages", "low watermark")
    zone_high = counted("zone", "pages", "high watermark")
    zone_lowmem_reserve = counted("zone", "pages", "pages kept from requests that could use a higher zone")
    zone_page_size = exact("zone", "B", "bytes of one folio of the zone")

    event_op = exact("event", "", "operation")
    event_task = exact("event", "", "task that made the call")
    event_file = exact("event", "", "file")
    event_ret = exact("event", "1", "return value")
    event_errno = exact("event", "1", "errno (0: success)")
    event_error = exact("event", "", "errno by name (empty: success)")
    event_detail = exact("event", "", "what the call wrote besides, as JSON")
    event_pages = exact("event node", "folios", "folios placed by the event")
    event_small_pages = exact("event node", "4 KiB pages", "4 KiB pages placed beside huge folios")
    free_pages = counted("event zone", "folios", "free folios of the zone after the event")
    kind = Coordinate("", "kind of metadata")
    metadata_pages = counted(
        "event kind node", "4 KiB pages", "metadata of the guest now (pamt, state_tree, light_map: modelled)"
    )

    pages_per_node = exact("file node", "folios", "folios of the file on the node")
    small_pages_per_node = exact("file node", "4 KiB pages", "4 KiB pages where no huge page was left")
    file_pages = exact("file", "folios", "size of the file")
    file_page_size = exact("file", "B", "bytes of one folio of the file")
    file_inode = exact("file", "1", "place of the first name of the same file, if one has several")
    page_size = exact("", "B", "bytes of one folio of the guest")

    run_file = exact("run", "", "file")
    run_start = exact("run", "folios", "first folio of the run")
    run_length = exact("run", "folios", "folios in the run")
    run_node = exact("run", "1", "node that backs the run")
    observed_run_file = exact("observed_run", "", "file")
    observed_run_start = exact("observed_run", "folios", "first folio of the run")
    observed_run_length = exact("observed_run", "folios", "folios in the run")
    observed_run_node = exact("observed_run", "1", "node that backs the run")
    observed_run_event = exact("observed_run", "1", "event that observed the run")
    small_run_file = exact("small_run", "", "file")
    small_run_start = exact("small_run", "4 KiB pages", "first 4 KiB page of the run")
    small_run_length = exact("small_run", "4 KiB pages", "4 KiB pages in the run")
    small_run_node = exact("small_run", "1", "node that backs the run")

    stretch_file = exact("stretch", "", "file")
    stretch_start = exact("stretch", "1", "first folio of the stretch")
    stretch_length = exact("stretch", "1", "folios of the stretch")
    stretch_offset = exact("stretch", "1", "first entry of its tile")
    stretch_period = exact("stretch", "1", "entries of its tile")
    stretch_phase = exact("stretch", "1", "entry of the tile for its first folio")
    stretch_step = exact("stretch", "1", "direction in which the tile is read")
    small_stretch_file = exact("small_stretch", "", "file")
    small_stretch_start = exact("small_stretch", "1", "first 4 KiB page of the stretch")
    small_stretch_length = exact("small_stretch", "1", "4 KiB pages of the stretch")
    small_stretch_offset = exact("small_stretch", "1", "first entry of its tile")
    small_stretch_period = exact("small_stretch", "1", "entries of its tile")
    small_stretch_phase = exact("small_stretch", "1", "entry of the tile for its first 4 KiB page")
    small_stretch_step = exact("small_stretch", "1", "direction in which the tile is read")
    tile_node = exact("tile_entry", "1", "node")
    page_node = exact("file page", "1", "node that backs the folio (-1: absent, or 4 KiB pages)")
    page_pfn = modelled("file page", "folios", "pfn of the folio, counted in folios (-1: absent)", PFNS)

    range_file = exact("range", "", "file")
    range_start = exact("range", "4 KiB pages", "first page of the shared policy range")
    range_end = exact("range", "4 KiB pages", "end of the shared policy range")
    range_mode = exact("range", "", "mode of the policy")
    range_nodes = exact("range node", "1", "nodes of the policy")
    vcpu_node = exact("vcpu", "1", "node that the vCPU runs on")
    local_share = counted("vcpu", "1", "share of the guest's memory on the vCPU's node")
    mean_distance = counted("vcpu", "1", "mean SLIT distance from the vCPU to the guest's memory")

    stream_event = exact("stream", "1", "access operation of the stream")
    stream_node = exact("stream", "1", "node whose vCPUs access")
    stream_vcpus = exact("stream", "1", "vCPUs of the stream")
    stream_bandwidth = modelled("stream", "MB/s", "memory bandwidth of the stream", TRAFFIC, ends=True)
    stream_latency = modelled("stream", "ns", "loaded latency of an access to memory", TRAFFIC, ends=True)
    stream_idle_latency = modelled("stream", "ns", "latency of an access to memory on an idle host", TRAFFIC, ends=True)
    stream_walk = modelled("stream", "ns", "part of the latency spent in page walks", TRAFFIC, ends=True)
    stream_walk_traffic = modelled(
        "stream", "MB/s", "memory bandwidth taken by page-table references", TRAFFIC, ends=True
    )
    stream_memory_fraction = modelled(
        "stream", "1", "part of the accesses that the caches do not serve", TRAFFIC, ends=True
    )
    stream_share = counted("stream node", "1", "share of the accesses served by the node")
    access_used = modelled("event node", "MB/s", "memory bandwidth used by accesses", TRAFFIC, ends=True)


class ConversionRun(ConversionCounts):
    """A stream of conversions on one file (:func:`workbench.studies.conversion_studies.run`)."""

    event = Coordinate("1", "operations done")
    node = Coordinate("1", "NUMA node id")
    operation_errno = counted("operation", "1", "errno (-7: SIGBUS)")


class Sweep(Schema):
    """The store of a sweep, beside its axes and metrics (:func:`workbench.sweeps.store.read_store`)."""

    node = Coordinate("1", "Linux node id")
    error = exact("", "", "why the cell failed; empty when it did not")
    warnings = exact(
        "",
        "",
        "policies of the cell that do not reach pages or that a kexec loses, a line each; empty where there are none",
    )
    status = exact("", "1", "state of the cell")


# --------------------------------------------------------------------------------------------------------- costs


class AccessCost(Schema):
    """What vCPUs get from a placement (:func:`workbench.cost.traffic.access_cost`)."""

    initiator = Coordinate("1", "node whose vCPUs access")
    node = Coordinate("1", "NUMA node id")
    bandwidth = modelled("initiator", "MB/s", "memory bandwidth the vCPUs of the node get", TRAFFIC, ends=True)
    latency = modelled("initiator", "ns", "loaded latency of a memory access from the node", TRAFFIC, ends=True)
    idle_latency = modelled("initiator", "ns", "latency of a memory access on an idle host", TRAFFIC, ends=True)
    node_share = modelled("node", "1", "share of the accesses that the node serves", TRAFFIC, ends=True)
    node_used = modelled("node", "MB/s", "bandwidth taken from the node's memory", TRAFFIC, ends=True)
    node_load = modelled("node", "1", "used part of the node's memory bandwidth", TRAFFIC, ends=True)
    memory_fraction = modelled("", "1", "part of the accesses that the caches do not serve", TRAFFIC, ends=True)


class Weights(Schema):
    """Interleave weights side by side (:func:`workbench.cost.weights.best_weights`)."""

    policy = Coordinate("", "where the weights come from")
    node = Coordinate("1", "NUMA node id")
    weight = modelled("policy node", "1", "interleave weight", TRAFFIC, ends=True)
    share = modelled("policy node", "1", "share of the pages that weights of its own give a node", TRAFFIC, ends=True)
    bandwidth = modelled("policy", "MB/s", "bandwidth of all vCPUs", TRAFFIC, ends=True)
    latency = modelled("policy", "ns", "loaded latency", TRAFFIC, ends=True)
    wins = modelled("policy", "1", "part of the draws in which the policy is the best of these", TRAFFIC)


class WalkReferences(Schema):
    """References of a nested walk (:func:`workbench.cost.translation.walk_references`)."""

    guest_page = Coordinate("", "page size of the guest's own mappings")
    host_page = Coordinate("", "page size of the host's mappings")
    references = exact("guest_page host_page", "1", "memory references of a walk without caches")


class WalkCost(Schema):
    """What page walks cost (:func:`workbench.cost.translation.walk_cost` and ``split_loss``)."""

    host_page = Coordinate("", "page size of the host's mappings")
    state = Coordinate("", "huge mappings before and after some became small ones")
    references = exact("host_page", "1", "references of a walk without caches")
    miss = modelled("host_page", "1", "part of the accesses that miss the TLB", TRANSLATION, ends=True)
    misses_per_access = modelled("", "1", "TLB misses of an access", TRANSLATION, ends=True)
    memory_references = modelled(
        "", "1", "page-table references of an access that reach memory", TRANSLATION, ends=True
    )
    guest_references = modelled("", "1", "of these, to the guest's own page table", TRANSLATION, ends=True)
    host_references = modelled("", "1", "of these, to the second-stage table", TRANSLATION, ends=True)
    remote_references = modelled("", "1", "of these, to a remote node", TRANSLATION, ends=True)
    cached = modelled(
        "", "ns", "time an access spends in page-table references that a cache serves", TRANSLATION, ends=True
    )
    walk = modelled("", "ns", "time an access spends in page walks", TRANSLATION, ends=True)


# ------------------------------------------------------------------------------------------------------- designs


class DesignCosts(Schema):
    """One run under several designs (:func:`workbench.designs.compare.compare` and ``sweep``)."""

    design = Coordinate("", "how memory is tracked")
    draw = Coordinate("1", "draw of the modelled costs (0: the values as given)")
    sample = Coordinate("1", "operations done")
    structure = Coordinate("", "structure of the light map")
    page_size = Coordinate("", "page size of the guest's memory")
    conversions = Coordinate("1", "conversions in the run")

    struct_page_bytes = counted("design", "B", "struct pages of the guest's memory at the end")
    struct_page_peak_bytes = counted("design", "B", "most struct pages at any sample")
    vmemmap_table_bytes = counted("design", "B", "page tables of a vmemmap not mapped by 2 MiB")
    page_cache_bytes = counted("design", "B", "XArray nodes of the page cache")
    private_map_bytes = counted("design", "B", "light offset -> pfn map")
    state_tree_bytes = counted("design", "B", "maple tree of private and shared ranges")
    stage2_table_bytes = counted("design", "B", "stage-2 page tables of the fully mapped guest")
    splits = counted("design", "1", "huge folios split")
    merges = counted("design", "1", "huge folios merged")
    pages_restructured = counted("design", "4 KiB pages", "pages of the folios split and merged")
    struct_pages_written = counted("design", "1", "struct pages initialised by conversions")
    vmemmap_taken_pages = counted("design", "4 KiB pages", "vmemmap pages allocated by conversions")
    vmemmap_freed_pages = counted("design", "4 KiB pages", "vmemmap pages given back")
    invalidations = counted("design", "1", "invalidations sent to the users of the memory")
    invalidated_bytes = counted("design", "B", "memory named in invalidations")
    map_operations = counted("design", "1", "changes of the offset -> pfn structure")
    failed_operations = exact("design", "1", "operations that returned an errno")
    lookup_nodes = counted("design", "1", "nodes a look-up of a private page touches")
    gup_reachable_bytes = counted("design", "B", "memory that get_user_pages can reach")
    handover_bytes = counted("design", "B", "metadata of a kexec handover")
    largest_leaf_bytes = counted("design", "B", "memory mapped by leaves of 2 MiB or more")
    referenced_private_pages = counted("design", "4 KiB pages", "private pages with a reference count")
    metadata_bytes = counted("design", "B", "all metadata at the end")
    conversion_cycles = modelled("design draw", "cycles", "cycles of all conversions", DESIGN_CYCLES)
    struct_page_bytes_over_run = counted("design sample", "B", "struct pages")
    splits_over_run = counted("design sample", "1", "huge folios split so far")
    event_errno = exact("design operation", "1", "errno (0: success; -7: SIGBUS)")
    event_error_offset = exact("design operation", "B", "offset the error names (-1: none)")
    unit_node = exact(
        "design unit", "1", "node index of the unit (-1: absent; with 4 KiB pages 0 where a 2 MiB block has any)"
    )
    content_order = exact("design", "", "digest of every page's state")
    poisoned_pages = exact("design", "", "poisoned pages")
    map_bytes = counted("structure", "B", "light map as each structure")
    map_depth = counted("structure", "1", "nodes a look-up of the middle extent touches")
    extents = counted("", "1", "extents of the light map")


class DesignSharing(Schema):
    """Where the comparison of designs turns (:func:`workbench.designs.sweeps.sharing`)."""

    case = Coordinate("", "page size and free ranges")
    run = Coordinate("B", "length of the runs shared")
    share = Coordinate("1", "share of the memory that is shared")
    design = Coordinate("", "how memory is tracked")
    page_size = Coordinate("", "page size of the guest's memory")
    metadata_bytes = counted("case run share design", "B/GiB", "all metadata for each GiB of guest")
    struct_page_bytes = counted("case run share design", "B/GiB", "struct pages for each GiB of guest")
    private_map_bytes = counted("case run share design", "B/GiB", "light offset -> pfn map for each GiB of guest")
    page_cache_bytes = counted("case run share design", "B/GiB", "XArray nodes of the page cache for each GiB of guest")
    stage2_table_bytes = counted("case run share design", "B/GiB", "stage-2 page tables for each GiB of guest")
    extents = counted("case run share", "1/GiB", "extents of the light map for each GiB of guest")


class MapStructures(Schema):
    """Structures of the light map, filled and timed (:func:`workbench.designs.sweeps.structures`)."""

    extents = Coordinate("1", "extents of the map")
    structure = Coordinate("", "structure of the map")
    map_bytes = counted("extents structure", "B", "size of the map")
    map_depth = counted("extents structure", "nodes", "nodes that a look-up touches")
    lookup_time = measured("extents structure", "ns", "time of a look-up", CLOCK)


# ------------------------------------------------------------------------------------------------------- studies


class PolicyCosts(Schema):
    """One guest under every policy (:func:`workbench.studies.placement_cost.policy_costs`)."""

    policy = Coordinate("", "how the guest is placed")
    node = Coordinate("1", "NUMA node id")
    bandwidth = modelled("policy", "MB/s", "bandwidth of all vCPUs", TRAFFIC, ends=True)
    latency = modelled("policy", "ns", "loaded latency of an access", TRAFFIC, ends=True)
    local_share = counted("policy", "1", "share of the accesses on the vCPU's own node")
    node_share = counted("policy node", "1", "share of the accesses each node serves")
    node_load = modelled("policy node", "1", "used part of the node's bandwidth", TRAFFIC, ends=True)
    parameter = Coordinate("", "cost parameter")
    draw = modelled("parameter", "as parameter", "value of the parameter in the draw", TRAFFIC)


class Verdict(Schema):
    """Which policy wins over the draws (:func:`workbench.studies.placement_cost.verdict`)."""

    policy = Coordinate("", "how the guest is placed")
    wins = modelled("policy", "1", "part of the draws in which the policy is the best", TRAFFIC)
    close = modelled("policy", "1", "part of the draws in which it is nearly the best", TRAFFIC)
    median = modelled("policy", "1", "median ratio to the best policy that is not alike", TRAFFIC)
    decides = modelled("policy", "", "parameter whose rank correlates most with that ratio", TRAFFIC)
    correlation = modelled("policy", "1", "rank correlation of that ratio with the parameter that decides", TRAFFIC)
    alike = modelled("policy", "", "first of the policies that cost the same in every draw", TRAFFIC)


class Capacity(Schema):
    """The largest guest of a host under each policy (:func:`workbench.studies.capacity.capacity`)."""

    policy = Coordinate("", "how the guest is placed")
    node = Coordinate("1", "NUMA node id")
    loss = Coordinate("", "what free memory went to instead")
    capacity = counted("policy", "B", "largest guest that can be created and populated")
    capacity_per_node = counted("policy node", "B", "its memory on each node")
    free_at_start = counted("policy node", "B", "free memory before")
    lost = counted("policy loss", "B", "free memory that the guest does not get")
    ends_with = exact("policy", "", "what meets a guest that is larger")


class KernelTimes(Schema):
    """Times of kernel work on memory (:func:`workbench.cost.kernel_times.kernel_times`)."""

    clear = modelled("", "s", "time to clear the memory", KERNEL_TIMES)
    struct_pages = modelled("", "s", "time to initialise its struct pages", KERNEL_TIMES)


class VirtualNodes(Schema):
    """A guest under several views of NUMA (:func:`workbench.studies.vnuma.cost`)."""

    view = Coordinate("", "what the guest is told")
    cell = Coordinate("1", "virtual node")
    bandwidth = modelled("view cell", "MB/s", "bandwidth of the virtual node's vCPUs", TRAFFIC, ends=True)
    latency = modelled("view cell", "ns", "loaded latency of an access", TRAFFIC, ends=True)
    local_share = counted("view cell", "1", "share of the accesses that stay on the vCPUs' host node")
    slowdown = modelled("view", "1", "total bandwidth of the first view over this view's", TRAFFIC, ends=True)


_RANGES = "cost model of the workbench; ranges: workbench.costs"


class Sensitivity(Schema):
    """What modelled outputs depend on (:func:`workbench.studies.sensitivity.sensitivity`)."""

    output = Coordinate("", "output of the model")
    output_unit = Coordinate("", "unit of the output")
    parameter = Coordinate("", "parameter of the model")
    end = Coordinate("", "end of the parameter's range")
    unit = Coordinate("", "unit of the parameter")
    base = modelled("output", "as output_unit", "output with every parameter at its value", _RANGES)
    one_at_a_time = modelled(
        "output parameter end", "as output_unit", "output with one parameter at an end of its range", _RANGES
    )
    first_order = modelled("output parameter", "1", "share of the variance from the parameter alone", _RANGES)
    total = modelled("output parameter", "1", "share of the variance from the parameter and what it acts with", _RANGES)
    value = modelled("parameter", "as unit", "value of the parameter", _RANGES)
    low = modelled("parameter", "as unit", "low end of its range", _RANGES)
    high = modelled("parameter", "as unit", "high end of its range", _RANGES)


class MachineChurn(Schema):
    """Machines that come and go (:func:`workbench.studies.vm_churn.serve`)."""

    allocator = Coordinate("", "who hands out memory")
    sample = Coordinate("1", "event of the stream")
    block = Coordinate("", "size of the block")
    day = Coordinate("d", "days")
    free_pages = counted("allocator sample", "4 KiB pages", "free memory")
    largest_free_pages = counted("allocator sample", "4 KiB pages", "largest block that can be handed out")
    free_blocks = counted("allocator sample", "1", "free ranges or blocks")
    free_areas_1gib_pages = counted("allocator sample", "4 KiB pages", "memory in 1 GiB areas that are wholly free")
    machines = counted("allocator sample", "1", "machines on the host")
    extents = counted("allocator sample", "1", "contiguous extents the machines hold")
    held_pages = counted("allocator sample", "4 KiB pages", "memory the machines hold")
    refused_so_far = counted("allocator sample", "1", "machines turned away so far")
    mappable_2mib = counted("allocator sample", "1", "machines' memory that mappings of 2 MiB or more can cover")
    mappable_1gib = counted("allocator sample", "1", "machines' memory that mappings of 1 GiB can cover")
    local = counted("allocator sample", "1", "machines' memory on the node they started at")
    extents_per_machine = counted("allocator sample", "1", "contiguous extents per machine")
    unusable_2mib = counted("allocator sample", "1", "free memory that cannot serve a request for 2 MiB")
    unusable_1gib = counted("allocator sample", "1", "free memory that cannot serve a request for 1 GiB")
    allocator_bytes = counted(
        "allocator sample", "B", "bytes that free ranges and the machines' extents take beside struct pages"
    )
    arrivals = counted("allocator", "1", "machines that came")
    refused = counted("allocator", "1", "machines turned away")
    extents_given = counted("allocator", "1", "contiguous extents handed out")
    refused_1gib = counted("allocator", "1", "machines turned away if all their whole GiB must be 1 GiB pages")
    asked_pages = counted(
        "allocator block", "4 KiB pages", "memory the page allocator handed out in blocks of this size"
    )
    blocks_missing = counted("allocator block", "1", "blocks of this size that were asked for and no node had")
    struct_page_bytes = exact("allocator", "B", "struct pages of the host's memory")
    struct_page_bytes_hvo = exact("allocator", "B", "struct pages of the host's memory, huge pages optimised (HVO)")
    seconds = measured("allocator", "s", "CPU time to carry out the stream", CLOCK)


class DeviceUsers(Schema):
    """A device that maps guest memory under each design (:func:`workbench.studies.device_users.device_users`)."""

    design = Coordinate("", "how memory is tracked")
    way = Coordinate("", "what the device maps")
    user = Coordinate("", "who maps pages and is told of invalidations")
    conversions = counted("design way", "calls", "conversions asked for")
    refused = counted("design way", "calls", "conversions refused")
    device_mapped_pages = counted("design way", "4 KiB pages", "most pages that the device had mapped")
    device_lost_pages = counted("design way", "4 KiB pages", "pages that the device lost because they went away")
    device_calls = counted("design way", "calls", "calls that map and unmap memory for the device")
    told = counted("design way user", "calls", "invalidations that the user was told of")


class Migration(Schema):
    """Pages that are asked to move (:func:`workbench.studies.migratable.migration`)."""

    backing = Coordinate("", "what the memory is")
    touched = Coordinate("", "who touched it first")
    call = Coordinate("", "what asks for the pages")
    local_before = exact("backing touched call", "1", "memory on the guest's own node before")
    local_share = exact("backing touched call", "1", "memory on the guest's own node after the call")
    returned = exact("backing touched call", "1", "what the call returned")


class SnpRegions(Schema):
    """SNP and other machines on one host (:func:`workbench.studies.snp_regions.snp_regions`)."""

    allocator = Coordinate("", "who hands out memory")
    way = Coordinate("", "where SNP machines start")
    sample = Coordinate("1", "event of the stream")
    node = Coordinate("1", "NUMA node")
    day = Coordinate("d", "days")
    regions_without_snp = counted("allocator way sample node", "GiB", "1 GiB regions without SNP guest memory")
    regions_needed = counted("allocator way sample node", "GiB", "1 GiB regions that SNP memory would take if packed")
    refused = counted("allocator way", "1", "machines turned away")


class Fragmentation(Schema):
    """Guests on 2 MiB folios beside the kernel's own allocations (:func:`workbench.studies.fragmentation.fragmentation`)."""

    background = Coordinate("1", "memory that small unmovable allocations of the kernel hold")
    sample = Coordinate("1", "moment")
    day = Coordinate("d", "days")
    mappable_2mib = counted("background sample", "1", "guests' memory in folios of 2 MiB or more")
    mappable_collapsed = counted(
        "background sample", "1", "guests' memory in 2 MiB after a pass of khugepaged, if guests move"
    )
    areas_free = counted("background sample", "GiB", "1 GiB areas that are free")
    areas_compacted = counted("background sample", "GiB", "1 GiB areas that are free after compaction, if guests move")
    areas_packed = counted("background sample", "GiB", "1 GiB areas that would be free if everything moved")
    areas_scanned = counted(
        "background sample", "GiB", "1 GiB areas that are free after compact_memory, if guests move"
    )
    blocks_free = counted("background sample", "2 MiB", "2 MiB blocks that are free")
    blocks_scanned = counted(
        "background sample", "2 MiB", "2 MiB blocks that are free after compact_memory, if guests move"
    )
    scanned_pages = counted("background sample", "4 KiB pages", "pages that compact_memory copies")
    moved_pages = counted("background sample", "4 KiB pages", "pages that compaction copies for them, at least")
    refused = counted("background", "1", "guests and allocations turned away")


class BootSplits(Schema):
    """Who splits huge pages during boot (:func:`workbench.studies.conversion_studies.boot_sources`)."""

    backing = Coordinate("", "page size of the guest's memory")
    source = Coordinate("", "part of the boot")
    boot_splits = counted("backing source", "folios", "huge pages split during boot")
    boot_pages = counted("backing", "folios", "huge pages of the guest")


class BootProfile(Schema):
    """A published profile beside the model (:func:`workbench.studies.conversion_studies.boot_against_published`)."""

    quantity = Coordinate("", "quantity with its unit")
    profile_published = measured(
        "quantity", "as quantity", "published", "datasets/published/gmem_conversion_profile.yaml"
    )
    profile_model = modelled("quantity", "as quantity", "model", "workbench/costs.py")


class ScatteredPages(Schema):
    """Shared pages in one huge page (:func:`workbench.studies.conversion_studies.scattered_pages`)."""

    design = Coordinate("", "how memory is tracked")
    shared = Coordinate("4 KiB pages", "shared pages at random places")
    added_vmemmap = counted("design shared", "4 KiB pages", "vmemmap pages added")
    added_tables = counted("design shared", "4 KiB pages", "second-stage page-table pages added")


class ConversionModes(Schema):
    """One guest that converts in both modes (:func:`workbench.studies.conversion_studies.conversion_modes`)."""

    mode = Coordinate("", "how memory is converted")
    node = Coordinate("1", "NUMA node id")
    node_to = Coordinate("1", "NUMA node id")
    node_cpus = exact("node", "1", "CPUs of the node")
    distance = exact("node node_to", "1", "SLIT distance (10 = local)")
    before = counted("mode node", "4 KiB pages", "the guest's pages before the conversions")
    after = counted("mode node", "4 KiB pages", "the guest's pages after the last touch")
    drifted_pages = counted("mode", "4 KiB pages", "pages now on another node than before")
    peak_bytes = counted("mode", "B", "most memory of both backends at one time")
    allocated_pages = counted("mode", "4 KiB pages", "pages allocated while converting and touched again")
    refaulted_pages = counted("mode", "4 KiB pages", "pages of the guest_memfd allocated again")
    rotation_steps = counted("mode", "1", "steps of the threads' rotation, if they interleave")
    interleaved_drifted_pages = counted(
        "mode", "4 KiB pages", "pages on another node than before, if threads interleave"
    )
    invalidations = counted("mode", "calls", "ranges that KVM zaps")
    modelled_time = modelled("draw mode", "ns", "time in conversions and in clearing pages", "workbench/costs.py")


class PinnedPages(Schema):
    """Pins while a guest takes memory back (:func:`workbench.studies.conversion_studies.pinned_pages`)."""

    generation = Coordinate("", "B: all or nothing; C: block by block")
    pins = Coordinate("4 KiB pages", "pages pinned")
    kept_shared = counted("generation pins", "4 KiB pages", "pages still shared after one call")
    broken_pages = counted("generation pins", "folios", "1 GiB pages not whole after one call")
    calls_needed = counted("generation pins", "calls", "calls until all but the pinned is private")


class RecordedHvo(Schema):
    """vmemmap of recorded boots (:func:`workbench.studies.conversion_studies.recorded_hvo`)."""

    state = Coordinate("", "huge pages in the pool, with or without HVO")
    vmemmap_recorded = measured("state", "4 KiB pages", "vmemmap pages, recorded", HVO_RECORDING)
    vmemmap_model = counted("state", "4 KiB pages", "vmemmap pages, model")
    huge_pages = measured("state", "folios", "huge pages in the pool", HVO_RECORDING)


# --------------------------------------------------------------------------------------------------------- truth


class SideBySide(Schema):
    """A recorded script beside the simulation (:func:`workbench.truth.verify.side_by_side`)."""

    observation = Coordinate("1", "number of the operation")
    text = Coordinate("", "what it was")
    page = Coordinate("4 KiB pages", "page of the file")
    recorded_node = measured("observation page", "1", "node, real kernel", "recording of the script on Linux 7.3.4")
    simulated_node = exact("observation page", "1", "node, simulated")
    touch_order = exact("observation page", "1", "order of first touch")


class Published(Schema):
    """Published tables beside the model (:func:`workbench.truth.published.reproduce`)."""

    table = exact("row", "", "id of the table")
    label = exact("row", "", "row of the table")
    quantity = exact("row", "", "column of the table")
    unit = exact("row", "", "unit of the values")
    published = measured("row", "as unit", "published value", "the table's own source, named in datasets/published")
    modelled = Variable(("row",), "as unit", "value of the model", "modelled", REPRODUCED)
    deviation = Variable(("row",), "%", "deviation of the model in per cent", "modelled", REPRODUCED)
    low = Variable(("row",), "as unit", "low end of the modelled range, 5 % of the draws", "modelled", REPRODUCED)
    high = Variable(("row",), "as unit", "high end of the modelled range, 95 % of the draws", "modelled", REPRODUCED)
    role = exact("row", "", "what agreement proves: derived, formula, predicted, calibrated, set or unmodelled")
    note = exact("row", "", "remark")
