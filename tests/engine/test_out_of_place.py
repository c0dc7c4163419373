"""Conversion between two backends, as every VMM does it on Linux 7.3: drift, peak, refaults, rotation."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench import amounts
from workbench.data import datasets_path
from workbench.engine import calls
from workbench.engine.filemap import FileMap
from workbench.engine.generators import expand
from workbench.engine.kernel_pages import ATTRIBUTES, KINDS, PAGE_CACHE, SLAB_PAGES
from workbench.engine.slabs import MIN_PARTIAL
from workbench.engine.system import System
from workbench.units import PAGE_SIZE

PAGES = 64
HOST = {
    "name": "h",
    "nodes": [{"id": n, "memory_bytes": 4 << 30, "cpus": [n]} for n in range(2)],
    "distances": [[10, 20], [20, 10]],
}


def run(operations: Sequence[dict[str, object]], *, flags: list[str] | None = None, **scenario: object) -> xr.Dataset:
    guest = {
        "memory": PAGES * PAGE_SIZE,
        "vm_type": "snp",
        "vcpus": [{"node": 1}, {"node": 0}],
        "conversion": {"mode": "out-of-place"},
    }
    values = {
        "host": HOST,
        "guest": guest,
        "operations": [{"op": "create", "flags": flags}, *operations],
        "output": "pages",
    }
    return wb.simulate(wb.Scenario.from_mapping(values | scenario))


def pages(count: int, first: int = 0) -> dict[str, int]:
    return {"offset": first * PAGE_SIZE, "length": count * PAGE_SIZE}


def nodes(dataset: xr.Dataset, file: str = "guest") -> list[int]:
    return dataset["pages_per_node"].sel(file=file).values.tolist()


def test_what_leaves_the_file_is_mapped_and_poisoned_no_more() -> None:
    """Where pages are looked at one by one: KVM loses them with the attribute, and a fresh page is a good one."""
    page = pages(1)
    calls_ = [
        {"op": "fault", "by": "guest", **page}, {"op": "convert", "to": "shared", **page},
        {"op": "convert", "to": "private", **page}, {"op": "fault", "by": "guest", **page},
        {"op": "hwpoison", **page}, {"op": "fault", "by": "guest", **page}, {"op": "convert", "to": "shared", **page},
        {"op": "fallocate", **page}, {"op": "fault", "by": "guest", **page}, {"op": "convert", "to": "private", **page},
        {"op": "fault", "by": "guest", **page}, {"op": "set_memory_attributes", "private": True, **page},
        {"op": "set_memory_attributes", "private": False, **pages(PAGES)},
    ]  # fmt: skip
    dataset = run(calls_, kernel_profile="7.3")
    assert dataset["user_mapped_pages"].sel(user="kvm").values.tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    assert dataset["user_invalidations"].sel(user="kvm").values.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3]
    assert dataset["event_error"].values.tolist() == [""] * 6 + ["EHWPOISON"] + [""] * 7
    assert dataset["punched_pages"].values[-1] == 2


def test_changes_are_kept_for_who_looks_at_them() -> None:
    """Without metadata nobody does."""
    calls_ = [{"op": "convert", "to": to, **pages(1)} for to in ("shared", "private")]
    calls_ += [{"op": "set_memory_attributes", "private": private, **pages(1)} for private in (False, True)]
    for metadata in ("off", "counted"):
        values = {"host": HOST, "guest": {"memory": "1 MiB", "vm_type": "snp"}, "kernel_profile": "7.3"}
        given_ = wb.Scenario.from_mapping({**values, "operations": [{"op": "create"}, *calls_], "metadata": metadata})
        system = System(given_)
        for operation in expand(given_):
            calls.apply(system, operation)
        attributes = system.files["guest"].inode.attributes
        assert attributes is not None
        assert attributes.changed == []


def test_a_quarter_of_the_guest_drifts_in_one_round_trip() -> None:
    """Recorded on 7.3.4 (SW_PROTECTED_VM, two nodes, 64 MiB): 0 / 16384 pages, then 4096 / 12288."""
    dataset = wb.simulate(wb.Scenario.from_yaml(datasets_path("scenarios", "conversion-drifts.yaml")))
    seen = [
        [int(length) for node, length in zip(nodes_, lengths, strict=True) if node == 0]
        for nodes_, lengths in (
            (group["observed_run_node"].values, group["observed_run_length"].values)
            for _, group in dataset[["observed_run_node", "observed_run_length"]]
            .assign_coords(event=("observed_run", dataset["observed_run_event"].values))
            .groupby("event")
        )
    ]
    assert seen == [[], [4096]]
    assert nodes(dataset) == [4096, 12288]
    assert int(dataset["drifted_pages"].sel(file="guest")) == 4096
    assert dataset["shared_backend_pages"].values.tolist() == [0, 0, 0, 0, 4096, 0, 0, 0]
    assert dataset["private_backend_pages"].values.tolist() == [0, 0, 16384, 16384, 12288, 12288, 16384, 16384]
    assert dataset["refaulted_pages"].values[-1] == 4096
    assert dataset.attrs["kernel_profile"] == "7.3"


def test_in_place_nothing_moves() -> None:
    scenario = wb.Scenario.from_yaml(datasets_path("scenarios", "conversion-drifts.yaml"))
    kept = [o for o in scenario.operations if getattr(o, "file", "") != "guest.shared"]
    in_place = scenario.replace(**{"kernel_profile": "7.4", "guest.conversion.mode": "in-place"}).model_copy(
        update={"operations": tuple(kept)}
    )
    dataset = wb.simulate(in_place)
    assert nodes(dataset) == [0, 16384]
    assert not dataset["event_errno"].any()


def test_a_policy_on_the_file_holds_where_it_can_be_set() -> None:
    """mbind on the mapped guest_memfd itself: recorded 16384 / 0 before and after."""
    bind = {"op": "mbind", "mode": "bind", "nodes": 0}
    trip = [{"op": "convert", **pages(16), "to": "shared"}, {"op": "convert", **pages(16), "to": "private"}]
    touch = {"op": "fault", "by": "guest", "task": "vcpu0"}
    dataset = run([bind, touch, *trip, {"op": "fault", "by": "guest", "task": "vcpu0"}], flags=["mmap"])
    assert nodes(dataset) == [PAGES, 0]
    assert int(dataset["drifted_pages"].sum()) == 0


def test_what_is_shared_follows_the_policy_of_its_own_mapping() -> None:
    bind = {"op": "mbind", "file": "guest.shared", "mode": "bind", "nodes": 1}
    touch = {"op": "fault", "by": "guest", "task": "vcpu1"}
    dataset = run([bind, touch, {"op": "convert", **pages(16), "to": "shared"}])
    assert nodes(dataset) == [PAGES - 16, 0]
    assert nodes(dataset, "guest.shared") == [0, 16]


def test_the_rotation_goes_on_with_every_round_trip() -> None:
    """Three pages there and back advance an interleave over two nodes by three, so that they change places."""
    touch = {"op": "fault", "by": "guest", "task": "vcpu0"}
    trip = [{"op": "convert", **pages(3), "to": "shared"}, {"op": "convert", **pages(3), "to": "private"}]
    spread = {"op": "set_mempolicy", "task": "vcpu0", "mode": "interleave", "nodes": "0-1"}
    once = run([spread, touch])["page_node"].sel(file="guest").values[:3].tolist()
    # 64 pages end on node 1; the next three lie on 0, 1, 0 again, and after them on 1, 0, 1
    twice = run([spread, touch, *trip, touch])["page_node"].sel(file="guest").values[:3].tolist()
    thrice = run([spread, touch, *trip, touch, *trip, touch])["page_node"].sel(file="guest").values[:3].tolist()
    assert (once, twice, thrice) == ([0, 1, 0], [0, 1, 0], [1, 0, 1])


@pytest.mark.parametrize(
    ("where", "error"),
    [({"offset": 100, "length": 4096}, errno.EINVAL), ({"length": 0}, errno.EINVAL), ({"length": 4097}, errno.EINVAL),
     ({"offset": 1 << 30, "length": 4096}, 0)],
)  # fmt: skip
def test_arguments_of_the_attributes_ioctl(where: dict[str, int], error: int) -> None:
    """It works on gfns, so what lies past the memory is taken as well."""
    dataset = run([{"op": "convert", **where, "to": "shared"}])
    assert dataset["event_errno"].values.tolist() == [0, error]


def test_a_vm_type_without_private_memory_has_no_such_attribute() -> None:
    guest = {"memory": PAGES * PAGE_SIZE, "conversion": {"mode": "out-of-place"}}
    for kernel in ("7.3", "7.4"):
        dataset = run([{"op": "convert", "to": "private"}], guest=guest, kernel_profile=kernel)
        assert dataset["event_errno"].values.tolist() == [0, errno.EINVAL]
    with_parameter = run([{"op": "convert", "to": "private"}], kernel_profile="proposal-hugetlb")
    assert with_parameter["event_errno"].values.tolist() == [0, errno.ENOTTY]


def test_converting_what_is_so_already_changes_nothing() -> None:
    touch = {"op": "fault", "by": "guest", "task": "vcpu0"}
    dataset = run([touch, {"op": "convert", **pages(8), "to": "private"}, {"op": "convert", **pages(8), "to": "shared"},
                   {"op": "convert", **pages(8), "to": "shared"}])  # fmt: skip
    assert dataset["punched_pages"].values.tolist() == [0, 0, 0, 8, 8]
    assert dataset["converted_pages"].values.tolist() == [0, 0, 0, 8, 8]
    assert dataset["conversions"].values.tolist() == [0, 0, 1, 2, 3]


steps = st.tuples(
    st.sampled_from(("shared", "private", "touch", "hole")), st.integers(0, PAGES - 1), st.integers(1, PAGES)
)


@given(st.lists(steps, max_size=12))
def test_no_page_is_lost_or_owned_twice_over_both_backends(taken: list[tuple[str, int, int]]) -> None:
    """Against sets in plain Python: which file has which page after every step, and the zones' free pages."""
    operations: list[dict[str, object]] = []
    private: set[int] = set()
    shared_backend: set[int] = set()
    is_shared: set[int] = set()
    for kind, first, count in taken:
        span = set(range(first, min(PAGES, first + count)))
        if kind == "touch":
            operations.append({"op": "fault", "by": "guest", "task": "vcpu0", **pages(len(span), first)})
            private |= span - is_shared
            shared_backend |= span & is_shared
        elif kind == "hole":
            operations.append({"op": "punch_hole", **pages(len(span), first)})
            private -= span
        else:
            operations.append({"op": "convert", **pages(len(span), first), "to": kind})
            if kind == "shared":
                private -= span - is_shared
                shared_backend |= span - is_shared
                is_shared |= span
            else:
                shared_backend -= span & is_shared
                is_shared -= span
    dataset = run([*operations, {"op": "convert", **pages(1), "to": "private"}])
    shared_backend -= {0} & is_shared
    is_shared -= {0}
    by_file = {str(file): set(np.flatnonzero(dataset["page_node"].sel(file=file).values >= 0).tolist())
               for file in dataset["file"].values}  # fmt: skip
    assert by_file == {"guest": private, "guest.shared": shared_backend}
    assert int(dataset["shared_pages"].values[-1]) == len(is_shared)
    free = dataset["free_pages"].sum("zone").values
    assert free[0] - free[-1] == len(private) + len(shared_backend)


def test_kernels_are_an_axis_of_a_run() -> None:
    scenario = wb.Scenario.from_yaml(datasets_path("scenarios", "conversion-drifts.yaml"))
    dataset = wb.simulate(scenario, kernel_profiles=["7.3", "7.4"])
    assert dataset["kernel"].values.tolist() == ["7.3", "7.4"]
    assert dataset["pages_per_node"].sel(file="guest").values.tolist() == [[4096, 12288], [0, 16384]]
    assert dataset["pages_per_node"].sel(file="guest.shared").values.tolist() == [[0, 0], [0, 0]]
    with pytest.raises(wb.WorkbenchError, match=r"'7.5' is unknown; did you mean '7.\d'"):
        wb.simulate(scenario, kernel_profiles=["7.5"])
    with pytest.raises(wb.WorkbenchError, match="each of them once"):
        wb.simulate(scenario, kernel_profiles=["7.3", "7.3"])


def test_a_file_that_can_be_mapped_serves_its_memslot_alone() -> None:
    """Recorded: KVM_MEMSLOT_GMEM_ONLY. The guest's shared pages come from the guest_memfd, the other backend gets none."""
    share = {"op": "convert", **pages(16), "to": "shared"}
    touch = {"op": "fault", "by": "guest", "task": "vcpu0"}
    mapped = run([touch, share, {"op": "punch_hole", "file": "guest.shared"}, touch], flags=["mmap"])
    assert nodes(mapped) == [0, PAGES]
    assert nodes(mapped, "guest.shared") == [0, 0]
    unmapped = run([touch, share, {"op": "punch_hole", "file": "guest.shared"}, touch])
    assert nodes(unmapped) == [0, PAGES - 16]
    assert nodes(unmapped, "guest.shared") == [0, 16]


def stream_run(stream: str, count: int, every: int | None, seed: int, policy: str) -> xr.Dataset:
    """Two streams with a touch of everything between and after them, `every` conversions an event."""
    many = {"op": "convert_stream", "stream": stream, "count": count, "every": every}
    set_up: list[dict[str, object]] = []
    if policy == "task":
        set_up = [{"op": "set_mempolicy", "mode": "weighted_interleave", "nodes": "0-1", "task": "vcpu0"}]
    elif policy == "shared backend":
        set_up = [{"op": "mbind", "file": "guest.shared", "length": 8 << 20, "mode": "interleave", "nodes": "0-1"}]
    guest = {
        "memory": "32 MiB",
        "vm_type": "snp",
        "vcpus": [{"node": 1}, {"node": 0}],
        "conversion": {"mode": "out-of-place"},
    }
    operations = [
        {"op": "create"},
        *set_up,
        {"op": "fault", "by": "guest", "length": 20 << 20},
        {**many, "seed": seed},
        {"op": "fault", "by": "guest", "task": "vcpu1"},
        {**many, "seed": seed + 1},
        {"op": "convert", "offset": 1, "length": PAGE_SIZE, "to": "shared"},
        {"op": "fault", "by": "guest", "task": "vcpu0", "order": "reverse"},
    ]
    weights = {"weights": {0: 3, 1: 2}}
    scenario = {"host": HOST, "boot": weights, "guest": guest, "operations": operations, "output": "pages"}
    return wb.simulate(wb.Scenario.from_mapping(scenario))


COUNTED = (
    "conversions", "failed_conversions", "converted_pages", "shared_pages", "invalidations", "punched_pages",
    "discarded_pages", "refaulted_pages", "private_backend_pages", "shared_backend_pages", "free_pages",
)  # fmt: skip


@pytest.mark.parametrize("policy", ["none", "task", "shared backend"])
@pytest.mark.parametrize("stream", ["uniform_random", "bounce_buffers", "bad_guest"])
def test_many_at_once_are_what_they_are_one_by_one(stream: str, policy: str) -> None:
    """Counters, every page's node, drift, free memory and what was placed: the stream in the kernel and call by call."""
    for seed in (0, 7):
        single, many = (stream_run(stream, 150, every, seed, policy) for every in (1, 40))
        assert single.sizes["event"] > 3 * many.sizes["event"]
        for name in COUNTED:
            np.testing.assert_array_equal(single[name].values[-1], many[name].values[-1], name)
        np.testing.assert_array_equal(single["page_node"].values, many["page_node"].values)
        np.testing.assert_array_equal(single["drifted_pages"].values, many["drifted_pages"].values)
        np.testing.assert_array_equal(
            single["event_pages"].sum("event").values, many["event_pages"].sum("event").values
        )


@pytest.mark.parametrize("stream", ["uniform_random", "bounce_buffers", "bad_guest"])
def test_metadata_of_many_at_once(stream: str) -> None:
    """xarray nodes are those that conversions one by one leave; slabs are the same but for the empty ones that a node keeps."""
    systems = []
    for every in (1, 40):
        guest = {"memory": "64 MiB", "vm_type": "snp", "conversion": {"mode": "out-of-place"}}
        guest["vcpus"] = [{"node": 0}, {"node": 1}]
        many = {"op": "convert_stream", "stream": stream, "count": 150, "every": every, "seed": 5}
        again = {**many, "seed": 6}
        operations = [{"op": "create"}, {"op": "fault", "by": "guest", "task": "vcpu1"}, many,
                      {"op": "fault", "by": "guest", "length": 8 << 20}, again]  # fmt: skip
        scenario = wb.Scenario.from_mapping({"host": HOST, "guest": guest, "operations": operations})
        system = System(scenario)
        for operation in expand(scenario):
            calls.apply(system, operation)
            assert system.metadata is not None
            system.metadata.settle(system.task(operation), None)
        system.settle()
        systems.append(system)
    single, bulk = (system.metadata for system in systems)
    assert single is not None and bulk is not None
    np.testing.assert_array_equal(single.xarray.live, bulk.xarray.live)
    np.testing.assert_array_equal(single.xarray.parts, bulk.xarray.parts)
    for one, other in zip(systems[0].inodes(), systems[1].inodes(), strict=True):
        for trees, others in ((single.caches, bulk.caches), (single.attribute_nodes, bulk.attribute_nodes)):
            pairs = zip_longest(trees.get(one, ()), others.get(other, ()), fillvalue=FileMap())
            for level, (left, right) in enumerate(pairs):
                last = max(left.end, right.end)
                nodes = np.arange(last, dtype=np.int64)
                np.testing.assert_array_equal(left.zone_of(nodes), right.zone_of(nodes), f"{one.kind} level {level}")
    empty = MIN_PARTIAL * SLAB_PAGES
    assert (np.abs(single.held - bulk.held) <= empty).all()
    assert bulk.held[PAGE_CACHE].sum() > 0 and bulk.held[ATTRIBUTES].sum() > 0
    for kind in range(len(KINDS)):
        if kind not in (PAGE_CACHE, ATTRIBUTES):
            np.testing.assert_array_equal(single.held[kind], bulk.held[kind])


def test_a_million_conversions_are_events_of_many() -> None:
    """The speed is measured in the benches; here, that a long stream is neither a million events nor refused."""
    guest = {"memory": "64 GiB", "vm_type": "snp", "conversion": {"mode": "out-of-place"}}
    host = {**HOST, "nodes": [{"id": n, "memory_bytes": 64 << 30, "cpus": [n]} for n in range(2)]}
    stream = {"op": "convert_stream", "stream": "uniform_random", "count": 20_000}
    operations = [{"op": "create"}, {"op": "fault", "by": "guest"}, stream, {"op": "fault", "by": "guest"}]
    values = {"host": host, "guest": guest, "operations": operations}
    dataset = wb.simulate(wb.Scenario.from_mapping(values))
    assert dataset.sizes["event"] == 253
    assert int(dataset["conversions"].values[-1]) == 20_000
    shared, private = dataset["shared_pages"].values[-1], dataset["private_backend_pages"].values[-1]
    assert shared + private == (64 << 30) // PAGE_SIZE
    assert dataset["shared_backend_pages"].values[-1] == shared
    nodes = dataset["metadata_pages"].sum("node").sel(kind=["page_cache", "attributes"]).values
    assert (np.diff(nodes[1:], axis=0) != 0).any(axis=1).sum() > 200  # counted at every event


def test_a_stream_that_finds_no_memory_ends_the_guest() -> None:
    """The shared backend has no room: the guest dies at the same conversion, with the same pages placed before."""
    host = {
        "name": "h",
        "nodes": [{"id": 0, "memory_bytes": 300 << 20, "cpus": [0]}],
        "distances": [[10]],
    }
    both = []
    for every in (1, 64):
        guest = {"memory": "256 MiB", "vm_type": "snp", "conversion": {"mode": "out-of-place"}}
        operations = [
            {"op": "create"},
            {"op": "fault", "by": "guest", "length": 128 << 20},
            {"op": "hog", "node": 0, "leave_free": 24 << 20},
            {"op": "convert_stream", "stream": "uniform_random", "count": 2000, "every": every, "seed": 3},
        ]
        both.append(wb.simulate(wb.Scenario.from_mapping({"host": host, "guest": guest, "operations": operations})))
    single, many = both
    assert (
        (single["event_errno"].values == errno.ENOMEM).sum() == (many["event_errno"].values == errno.ENOMEM).sum() == 1
    )
    died = int(np.flatnonzero(single["event_errno"].values == errno.ENOMEM)[0])
    assert int(single["conversions"].values[died]) == int(many["conversions"].values.max())
    assert int(single["event_pages"].sum()) == int(many["event_pages"].sum())


def test_kernels_of_which_one_makes_a_second_backend_have_their_files_in_one_order() -> None:
    """Under 7.3 a conversion makes ``guest.shared`` before the next file is there; names of one file stay names of one."""
    operations = [
        {"op": "create", "flags": []},
        {"op": "convert", **pages(4), "to": "shared"},
        {"op": "memfd", "file": "ram", "size": 8 * PAGE_SIZE},
        {"op": "alias", "file": "again", "of": "ram"},
        {"op": "fault", "file": "ram", "by": "host"},
    ]
    guest = {"memory": PAGES * PAGE_SIZE, "vm_type": "snp", "vcpus": [{"node": 1}]}
    scenario = wb.Scenario.from_mapping({"host": HOST, "guest": guest, "operations": operations})
    for kernels in (["7.3", "7.4"], ["7.4", "7.3"]):
        found = wb.simulate(scenario, kernel_profiles=kernels)
        names = found["file"].values.tolist()
        for number, kernel in enumerate(kernels):
            alone = wb.simulate(scenario.replace(kernel_profile=kernel))
            for file in alone["file"].values:
                of = {"file": file}
                assert (
                    found["pages_per_node"]
                    .sel(of)[number]
                    .equals(alone["pages_per_node"].sel(of).assign_coords(kernel=kernel))
                )
            first = found["file_inode"].values[number].tolist()
            assert [names[at] for at in first] == [name if name != "again" else "ram" for name in names]
        backend = [PAGES * PAGE_SIZE if kernel == "7.3" else 0 for kernel in kernels]
        assert amounts.size_of_all_files(found).tolist() == [(PAGES + 8) * PAGE_SIZE + more for more in backend]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["convert", "fault", "fault"]), st.integers(0, PAGES - 1), st.integers(1, 20), st.booleans()
        ),
        max_size=12,
    )
)
def test_faults_across_both_backends_are_the_same_page_by_page(calls_: list[tuple[str, int, int, bool]]) -> None:
    whole: list[dict[str, object]] = [{"op": "convert", "to": "shared", **pages(5, 20)}]
    parts = whole.copy()
    for op, first, count, shared in calls_:
        call = (
            {"op": "convert", "to": "shared" if shared else "private"} if op == "convert" else {"op": op, "by": "guest"}
        )
        end = min(PAGES, first + count)
        whole.append({**call, **pages(end - first, first)})
        parts += [{**call, **pages(1, page)} for page in range(first, end)]
    last = [run(operations).isel(event=-1) for operations in (whole, parts)]
    for name in ("refaulted_pages", "punched_pages", "converted_pages", "private_backend_pages", "shared_backend_pages",
                 "metadata_pages"):  # fmt: skip
        assert last[0][name].values.tolist() == last[1][name].values.tolist(), name
