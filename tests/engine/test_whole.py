"""What stays whole along the calls of a scenario: RMP, regions, PAMT pairs, mappings of devices."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench import answer
from workbench.errors import WorkbenchError
from workbench.plots import designs as plots_designs
from workbench.running import run
from workbench.tracking.whole import Whole


def simulated(
    vm_type: str, page_size: str = "2 MiB", designs: tuple[str, ...] = ("hugetlb", "pfn-range", "contiguous-4k"), **more
):
    nodes = [{"id": i, "memory_bytes": "8 GiB", "cpus": [i]} for i in range(2)]
    operations = [
        {"op": "create", "flags": ["mmap"]},
        {"op": "mbind", "mode": "interleave", "nodes": "0-1"},
        {"op": "fault", "by": "guest"},
        {"op": "convert", "offset": "2 MiB", "length": "4 KiB", "to": "shared"},
        {"op": "convert", "offset": "2 MiB", "length": "4 KiB", "to": "private"},
        {"op": "convert", "offset": "4 MiB", "length": "4 MiB", "to": "shared"},
        {"op": "iommu_map", "offset": "4 MiB", "length": "3 MiB"},
    ]
    guest = {"memory": "4 GiB", "page_size": page_size, "design": "hugetlb", "vm_type": vm_type} | more
    host = {"name": "two", "nodes": nodes, "distances": [[10, 20], [20, 10]]}
    scenario = wb.Scenario.from_mapping({"host": host, "guest": guest, "operations": operations})
    return wb.simulate(scenario, designs=designs)


def test_an_snp_guest() -> None:
    """2048 entries of 2 MiB; one is smashed for good, two are shared whole; regions only ever hold more."""
    found = simulated("snp")
    assert not found["event_errno"].values.any()
    for row in range(3):
        one = found.isel(design=row)
        assert one["rmp_updates"].values.tolist() == [0, 0, 2048, 2049, 2050, 2052, 2052]
        assert one["rmp_smashes"].values.tolist() == [0, 0, 0, 1, 1, 1, 1]
        assert one["rmp_entries_2m"].values.tolist() == [0, 0, 2048, 2047, 2047, 2045, 2045]
        assert one["direct_map_splits"].values.tolist() == [0, 0, 0, 1, 1, 1, 1]
        assert one["rmpopt_regions"].values.tolist() == [[8, 8], [8, 8], *[[6, 6]] * 5]
        # 1024 blocks of a node fill two regions at least, and could be in every one.
        assert one["rmpopt_regions_high"].values.tolist() == one["rmpopt_regions"].values.tolist()
        assert one["rmpopt_regions_low"].values.tolist() == [[8, 8], [8, 8], *[[0, 0]] * 5]
    assert "dynamic_pamt_bytes" not in found
    assert not found["metadata_pages"].sel(kind="pamt").values.any(), "an RMP is made at boot"
    assert found["device_leaves"].values[:, -1].tolist() == [[256, 1, 0]] * 3
    assert len(plots_designs.whole(found).axes) == 4


def test_regions_of_1_gib_pages_are_free_once_all_of_one_is_shared() -> None:
    found = simulated("snp", "1 GiB", ("hugetlb-hvo", "pfn-range"))
    assert found["rmpopt_regions"].values[:, -1].tolist() == [[6, 6]] * 2
    for end in ("low", "high"):  # 1 GiB pages are where they are
        assert found[f"rmpopt_regions_{end}"].values.tolist() == found["rmpopt_regions"].values.tolist()
    assert found["rmp_smashes"].values[:, -1].tolist() == [1, 1]


def test_what_a_closed_file_has_done_to_the_rmp_stays_done() -> None:
    """Its 1022 private pages change hands one by one, or 2 MiB with one entry; the direct map is not put together again."""
    nodes = [{"id": 0, "memory_bytes": "1 GiB", "cpus": [0]}]
    operations = [
        {"op": "create", "flags": ["mmap"]},
        {"op": "fault", "by": "guest"},
        {"op": "convert", "length": "8 KiB", "to": "shared"},
        {"op": "fault", "length": "4 KiB"},
        {"op": "pin", "length": "4 KiB"},
        {"op": "close"},
        {"op": "unpin", "length": "4 KiB"},
        {"op": "create", "file": "next", "size": "2 MiB"},
        {"op": "fault", "by": "guest", "file": "next"},
        {"op": "close", "file": "next"},
    ]
    wanted = {  # of 4 KiB pages; of 2 MiB, one of which is smashed by the conversion
        "4 KiB": ([0, 1024, 1026, 1026, 1026, 2048, 2048, 2048, 2560, 3072], [0] * 10, [0, *[2] * 7, 3, 3]),
        "2 MiB": ([0, 2, 4, 4, 4, 515, 515, 515, 516, 517], [0, 0, *[1] * 8], [0, 0, *[1] * 8]),
    }
    for page_size, (updates, smashes, splits) in wanted.items():
        guest = {"memory": "4 MiB", "page_size": page_size, "design": "filemap" if page_size == "4 KiB" else "hugetlb"}
        scenario = wb.Scenario.from_mapping({
            "host": {"name": "one", "nodes": nodes, "distances": [[10]]}, "guest": guest | {"vm_type": "snp"},
            "operations": operations, "kernel_profile": "proposal-hugetlb" if page_size == "2 MiB" else "7.4",
            "boot": {"hugetlb_pages": {0: 8}} if page_size == "2 MiB" else {},
        })  # fmt: skip
        found = wb.simulate(scenario)
        assert found["rmp_updates"].values.tolist() == updates, page_size
        assert found["rmp_smashes"].values.tolist() == smashes, page_size
        assert found["direct_map_splits"].values.tolist() == splits, page_size
        assert found["rmp_entries_2m"].values.tolist()[5:8] == [0, 0, 0]


def test_a_td_needs_a_pair_of_pages_for_each_2_mib() -> None:
    found = simulated("tdx", designs=("hugetlb", "thp"))
    assert (found["dynamic_pamt_bytes"].values[:, 2] == 1024 * 8192).all()
    assert found["dynamic_pamt_bytes"].values[:, -1].tolist() == [[1023 * 8192] * 2] * 2
    counted = found["metadata_pages"].sel(kind="pamt").values * 4096
    assert (counted == found["dynamic_pamt_bytes"].values).all(), "a kind of what the guest costs"
    assert "rmp_updates" not in found and "rmpopt_regions" not in found
    with pytest.raises(WorkbenchError, match="SNP guest"):
        plots_designs.whole(found)
    drawn = {ax.get_title(loc="left"): ax.get_lines() for ax in plots_designs.mappings(found, found).axes}
    assert len(drawn) == 6
    pamt, device = drawn["dynamic PAMT on node 1, TDX (MiB)"], drawn["the IOMMU maps by 2 MiB (% of memory)"]
    assert [line.get_ydata()[-1] for line in pamt] == (found["dynamic_pamt_bytes"].values[:, -1, 1] / 2**20).tolist()
    assert [line.get_ydata()[-1] for line in device] == [100 / 2048] * 2, "of 3 MiB one lies whole"
    with pytest.raises(WorkbenchError, match="TDX guest"):
        plots_designs.mappings(found, found.drop_vars("dynamic_pamt_bytes"))


CALL = st.builds(
    lambda op, first, pages, more: {"op": op, "offset": first * 4096, "length": pages * 4096, **more},
    st.just("fault"), st.integers(0, 2100), st.sampled_from([1, 1, 3, 64, 512, 700]),
    st.fixed_dictionaries({"by": st.sampled_from(["guest", "host"]), "task": st.sampled_from(["vcpu0", "vcpu1"])}),
) | st.builds(
    lambda op, first, pages, more: {"op": op, "offset": first * 4096, "length": pages * 4096, **more},
    st.just("convert"), st.integers(0, 2100), st.sampled_from([1, 1, 3, 512, 1024]),
    st.fixed_dictionaries({"to": st.sampled_from(["shared", "private"])}),
) | st.builds(
    lambda op, first, pages: {"op": op, "offset": first * 4096, "length": pages * 4096},
    st.sampled_from(["pin", "unpin", "punch_hole", "fallocate"]), st.integers(0, 2100), st.sampled_from([1, 64, 512]),
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    st.lists(CALL, max_size=25), st.sampled_from(["snp", "tdx"]),
    st.sampled_from([("4 KiB", "filemap"), ("2 MiB", "hugetlb"), ("2 MiB", "thp"), ("2 MiB", "pfn-range"),
                     ("1 GiB", "hugetlb-hvo")]),
)  # fmt: skip
def test_a_look_at_the_part_that_a_call_names_is_a_look_at_all(
    calls: list[dict[str, object]], vm_type: str, pages: tuple[str, str]
) -> None:
    """After each call, of two files; what is looked at in part is counted up, and in the end counted anew it is the same."""
    memory = "2 GiB" if pages[0] == "1 GiB" else "10 MiB"
    nodes = [{"id": i, "memory_bytes": "8 GiB", "cpus": [i]} for i in range(2)]
    guest = {"memory": memory, "page_size": pages[0], "design": pages[1], "vm_type": vm_type}
    given_ = wb.Scenario.from_mapping({
        "host": {"name": "two", "nodes": nodes, "distances": [[10, 20], [20, 10]]},
        "guest": guest | {"vcpus": [{"node": 0}, {"node": 1}]}, **({"kernel_profile": "7.4"} if pages[0] == "4 KiB" else {}),
        "operations": [{"op": "create"}, *calls, {"op": "convert", "offset": 0, "length": 0, "to": "shared"}],
    })  # fmt: skip
    parts = run(given_)
    with mock.patch.object(answer, "_OF_A_RANGE", ()):
        all_ = run(given_)
    np.testing.assert_array_equal(parts.log.whole, all_.log.whole)
    conversions = parts.system.conversions
    assert conversions is not None
    for inode in conversions.inodes:
        state = conversions.whole(inode).state
        held = state.private > 0
        assert state.row[2:4].tolist() == [state.large.sum(), state.direct_split.sum()]
        regions = [len(np.unique(state.region[held & (state.node == node)])) for node in range(2)]
        assert state.row[4:].tolist() == [*regions, *np.bincount(state.node[held], minlength=2).tolist()]


@pytest.mark.parametrize("vm_type", ["snp", "tdx"])
def test_a_call_on_a_page_is_followed_by_a_look_at_its_block(vm_type: str) -> None:
    """And of a kind that says nothing of where, by a look at all: the cost of a call is not that of the file."""
    one = {"offset": "6 MiB", "length": 4096}
    calls = [{"op": "fault", "by": "guest", **one}, {"op": "punch_hole", **one}, {"op": "fallocate", **one},
             {"op": "convert", "to": "shared", **one}, {"op": "pin", **one}, {"op": "unpin", **one},
             {"op": "hwpoison", **one}, {"op": "fault", "by": "guest", "length": 4096}, {"op": "create_vm"}]  # fmt: skip
    nodes = [{"id": 0, "memory_bytes": "8 GiB", "cpus": [0]}]
    given_ = wb.Scenario.from_mapping({
        "host": {"name": "one", "nodes": nodes, "distances": [[10]]}, "kernel_profile": "7.4",
        "guest": {"memory": "4 GiB", "vm_type": vm_type}, "operations": [{"op": "create"}, *calls],
    })  # fmt: skip
    looked: list[tuple[int, int]] = []
    look = Whole.look

    def noted(self: Whole, first: int, end: int) -> None:
        looked.append((first, end))
        look(self, first, end)

    with mock.patch.object(Whole, "look", noted):
        assert not run(given_)["event_errno"].any()
    sizes = [end - first for first, end in looked]  # unpin changes no counter
    assert sizes == [1 << 20, *[1] * 7, 1 << 20]
