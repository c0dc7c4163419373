"""Devices and kexec in scenarios: pins block conversions today, asking does not; what cannot be handed over says why."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest

import workbench as wb

SCENARIO = """
name: devices
kernel_profile: {kernel}
host: {{name: h, nodes: [{{id: 0, memory_bytes: 8589934592, cpus: [0, 1]}}], distances: [[10]]}}
guest: {{memory: 64 MiB, page_size: "{page}", design: {design}, policy_interface: none, vm_type: sw_protected}}
operations:
  - {{op: create, flags: [mmap, init_shared]}}
  - {{op: fault, by: host}}
  - {{op: iommu_map, offset: 4 MiB, length: 8 KiB}}
  - {{op: convert, offset: 4 MiB, length: 2 MiB, to: private}}
  - {{op: kexec}}
  - {{op: iommu_unmap, offset: 4 MiB, length: 8 KiB}}
  - {{op: iommu_unmap, offset: 4 MiB, length: 8 KiB}}
  - {{op: convert, offset: 4 MiB, length: 2 MiB, to: private}}
  - {{op: kexec}}
"""


@pytest.mark.parametrize(
    ("design", "page", "errors"),
    [
        ("filemap", "4 KiB", [0, 0, 0, errno.EAGAIN, errno.EBUSY, 0, errno.ENOENT, 0, 0]),
        ("pfn-range", "4 KiB", [0, 0, 0, 0, errno.EBUSY, 0, errno.ENOENT, 0, 0]),
        ("hugetlb", "2 MiB", [0, 0, 0, errno.EAGAIN, errno.EBUSY, 0, errno.ENOENT, 0, errno.EOPNOTSUPP]),
    ],
)
def test_devices_and_kexec(design: str, page: str, errors: list[int]) -> None:
    # RFC v2 is the one whose files of huge pages may start shared
    kernel = {"hugetlb": "proposal-hugetlb-rfc2", "pfn-range": "proposal-no-struct-page"}.get(design, "7.4")
    dataset = wb.simulate(wb.Scenario.from_yaml(SCENARIO.format(design=design, page=page, kernel=kernel)))
    assert list(dataset["event_errno"].values) == errors
    last = json.loads(str(dataset["event_detail"].values[-1]))
    assert ("reason" in last) == (errors[-1] != 0)
    if not errors[-1]:
        assert last["files"] == 1
        assert last["metadata_bytes"] > 0


CREATE = {"op": "create", "flags": ["mmap", "init_shared"]}
"""A file of a VM with private memory that starts all shared."""


def events(design: str, page: str, *operations: dict[str, object], **scenario: object) -> object:
    """A scenario on one node of 8 GiB, or on two."""
    nodes = [{"id": n, "memory_bytes": 8 << 30, "cpus": [n]} for n in range(2)]
    host = {"name": "h", "nodes": nodes, "distances": [[10, 20], [20, 10]]}
    guest = {"memory": 64 << 20, "page_size": page, "design": design, "vcpus": [{"node": 0}], "vm_type": "sw_protected"}
    values = {"host": host, "guest": guest, "operations": [CREATE, *operations], "output": "pages"} | scenario
    # those with INIT_SHARED for such a VM
    values |= {
        "kernel_profile": {"filemap": "7.4", "pfn-range": "proposal-no-struct-page"}.get(
            design, "proposal-hugetlb-rfc2"
        )
    }
    return wb.simulate(wb.Scenario.model_validate(values))


def details(dataset: object) -> list[dict[str, object]]:
    return [json.loads(str(text)) for text in dataset["event_detail"].values]  # type: ignore[index]


def test_iommu_areas_are_mapped_once_and_unmapped_whole() -> None:
    both = []
    for design, page in (("filemap", "4 KiB"), ("pfn-range", "2 MiB")):
        dataset = events(
            design,
            page,
            {"op": "fallocate"},
            {"op": "iommu_map", "offset": 0, "length": 8192},
            {"op": "iommu_map", "offset": 4096, "length": 8192},
            {"op": "iommu_map", "offset": 8192, "length": 4096},
            {"op": "iommu_unmap", "offset": 4096, "length": 8192},
            {"op": "iommu_unmap", "offset": 0, "length": 12288},
            {"op": "iommu_unmap", "offset": 0, "length": 12288},
            {"op": "iommu_map", "offset": 4096, "length": 8191},
        )
        both.append(dataset["event_errno"].values.tolist())
    assert both[0] == [0, 0, 0, errno.EEXIST, 0, errno.ENOENT, 0, errno.ENOENT, errno.EINVAL]
    assert both[1] == both[0]


def test_a_pfn_range_guest_never_splits_and_pays_for_what_it_shares() -> None:
    operations = [
        {"op": "fault", "by": "host"},
        {"op": "convert", "to": "private"},
        {"op": "convert", "offset": 4096, "length": 4096, "to": "shared"},
        {"op": "convert", "offset": 1 << 20, "length": 4096, "to": "shared"},
        {"op": "convert", "to": "private"},
    ]
    light = events("pfn-range", "2 MiB", *operations)
    heavy = events("hugetlb-hvo", "2 MiB", *operations)
    assert (light["splits_2m"] == 0).all()
    assert heavy["splits_2m"].values[-1] == 33  # all 32 while the file was shared, one again
    # A vmemmap page has 64 struct pages: 32 blocks of 2 MiB need 8 each while all is shared, then 2 for two pages.
    assert light["vmemmap_pages"].sum("node").values.tolist() == [0, 256, 0, 1, 2, 0]
    assert heavy["vmemmap_pages"].sum("node").values.tolist() == [0, 224, 0, 7, 7, 0]
    assert light["mapped_2m"].values.tolist() == [0, 0, 32, 31, 31, 32] == heavy["mapped_2m"].values.tolist()
    np.testing.assert_array_equal(light["page_node"], heavy["page_node"])


def test_one_scenario_under_all_designs_is_one_dataset() -> None:
    """Placement is the same whatever tracks it; what conversions cost is along ``design``."""
    operations = [
        CREATE,
        {"op": "fault", "by": "host"},
        {"op": "convert", "to": "private"},
        {"op": "convert", "offset": 4096, "length": 4096, "to": "shared"},
    ]
    nodes = [{"id": n, "memory_bytes": 8 << 30, "cpus": [n]} for n in range(2)]
    host = {"name": "h", "nodes": nodes, "distances": [[10, 20], [20, 10]]}
    guest = {"memory": 64 << 20, "page_size": "2 MiB", "design": "hugetlb", "vcpus": [{"node": 0}],
             "vm_type": "sw_protected", "conversion": {"generation": "B"}}  # fmt: skip
    scenario = wb.Scenario.model_validate({"host": host, "guest": guest, "operations": operations, "output": "pages"})
    steps: list[tuple[int, int]] = []
    names = ["hugetlb", "hugetlb-hvo", "pfn-range"]
    dataset = wb.simulate(scenario, designs=names, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(number + 1, 12) for number in range(12)]
    assert dataset["design"].values.tolist() == names
    assert (dataset["page_node"] == dataset["page_node"].isel(design=0)).all()
    assert dataset["splits_2m"].isel(event=-1).values.tolist() == [33, 33, 0]
    assert dataset["vmemmap_pages"].isel(event=-1).sum("node").values.tolist() == [0, 7, 1]
    assert dataset["splits_2m"].attrs["basis"] == "counted"
    small = scenario.replace(**{"guest.page_size": "4 KiB"})
    assert wb.simulate(small, designs=["filemap", *names]).sizes["design"] == 4
    with pytest.raises(wb.WorkbenchError, match="designs: 'paper' is unknown; there are filemap"):
        wb.simulate(scenario, designs=["hugetlb", "paper"])
    with pytest.raises(wb.WorkbenchError, match="4 KiB pages only"):
        wb.simulate(scenario, designs=["filemap"])


@pytest.mark.parametrize("stream", ["boot", "bounce_buffers", "ballooning", "bad_guest", "uniform_random"])
def test_a_generated_stream_of_conversions_is_part_of_a_scenario(stream: str) -> None:
    """Same seed, same conversions; the same answers whether huge folios split or a light map is cut."""
    made = {"op": "convert_stream", "stream": stream, "count": 40}
    guest = {"memory": 512 << 20, "page_size": "2 MiB", "design": "hugetlb-hvo", "vcpus": [{"node": 0}] * 4,
             "conversion": {"generation": "B"}, "vm_type": "sw_protected"}  # fmt: skip
    setup = [{"op": "fault", "by": "host"}, {"op": "convert", "to": "private"}]
    heavy = events("hugetlb-hvo", "2 MiB", *setup, made, guest=guest, seed=3)
    again = events("hugetlb-hvo", "2 MiB", *setup, {**made, "seed": 3}, guest=guest)
    light = events("pfn-range", "2 MiB", *setup, made, guest={**guest, "design": "pfn-range"}, seed=3)
    assert heavy.sizes["event"] > 20
    assert set(heavy["event_op"].values[3:]) <= {"convert", "punch_hole", "fault"}
    assert heavy["event_detail"].equals(again["event_detail"])
    for name in ("event_errno", "shared_pages", "converted_pages", "page_node"):
        np.testing.assert_array_equal(heavy[name], light[name])
    assert (heavy["event_errno"] == 0).all()


def test_kexec_hands_over_policy_only_where_a_design_does() -> None:
    """The posted series and memfd_luo keep none: DEFAULT afterwards; the format of the light map has flags and home node."""
    policy = [
        {"op": "mbind", "length": 8 << 20, "mode": "interleave", "mode_flags": ["static"], "nodes": [0, 1]},
        {"op": "mbind", "offset": 8 << 20, "length": 8 << 20, "mode": "bind", "nodes": [0, 1]},
        {"op": "set_mempolicy_home_node", "offset": 8 << 20, "length": 8 << 20, "home_node": 1},
        {"op": "fault", "by": "host", "length": 4 << 20},
    ]
    reports = [
        {"op": "get_mempolicy", "file": "guest", "offset": 0},
        {"op": "get_mempolicy", "file": "guest", "offset": 8 << 20},
        {"op": "fault", "by": "host", "offset": 8 << 20, "length": 1 << 20},
        {"op": "observe", "length": 16 << 20},
    ]
    for design, page in (("filemap", "4 KiB"), ("pfn-range", "2 MiB")):
        with_kexec = events(design, page, *policy, {"op": "kexec"}, *reports)
        without = events(design, page, *policy, *reports)
        assert (with_kexec["event_errno"] == 0).all()
        assert details(with_kexec)[5]["verified"] is True
        reported = details(with_kexec)[-4:-2]
        if design == "pfn-range":
            assert details(with_kexec)[-4:] == details(without)[-4:]
            np.testing.assert_array_equal(with_kexec["page_node"], without["page_node"])
            assert set(with_kexec["observed_run_node"].values) >= {0, 1}
        else:
            assert [report["mode"] for report in reported] == [0, 0]
            assert with_kexec["page_node"].values[0, 2048 : 2048 + 256].tolist() == [0] * 256
            assert without["page_node"].values[0, 2048 : 2048 + 256].tolist() == [1] * 256


def test_kexec_ends_the_processes_and_what_was_not_handed_over() -> None:
    dataset = events(
        "filemap",
        "4 KiB",
        {"op": "memfd", "file": "shm", "size": 1 << 20},
        {"op": "fault", "by": "host", "file": "shm"},
        {"op": "set_mempolicy", "mode": "bind", "nodes": [1]},
        {"op": "hog", "node": 0, "size": 1 << 30},
        {"op": "fault", "by": "host", "length": 1 << 20},
        {"op": "kexec"},
        {"op": "fault", "by": "host", "offset": 1 << 20, "length": 1 << 20},
        {"op": "observe", "file": "shm"},
    )
    assert dataset["event_errno"].values.tolist() == [0] * 8 + [errno.EBADF]
    assert dataset["page_node"].values[0, 255:257].tolist() == [1, 0]
    free = dataset["free_pages"].values.sum(axis=1)
    assert free[6] == free[0] - 256  # only the guest's megabyte is still taken
    assert details(dataset)[6]["metadata_bytes"] > 0


def test_weights_of_interleaving_are_those_of_boot_after_kexec() -> None:
    """A host without HMAT boots with 1:1; 3:1, written to sysfs before, is gone with the kernel that it was written to."""
    dataset = events(
        "filemap",
        "4 KiB",
        {"op": "set_weights", "weights": {0: 3, 1: 1}},
        {"op": "mbind", "length": 32 * 4096, "mode": "weighted_interleave", "nodes": [0, 1]},
        {"op": "fault", "by": "host", "length": 16 * 4096},
        {"op": "kexec"},
        {"op": "mbind", "length": 32 * 4096, "mode": "weighted_interleave", "nodes": [0, 1]},
        {"op": "fault", "by": "host", "offset": 16 * 4096, "length": 16 * 4096},
    )
    assert dataset["event_errno"].values.tolist() == [0] * 7
    nodes = dataset["page_node"].values[0]
    assert [int((nodes[:16] == n).sum()) for n in (0, 1)] == [12, 4]
    assert [int((nodes[16:32] == n).sum()) for n in (0, 1)] == [8, 8]


def test_a_hog_leaves_the_watermark_and_the_reserve_of_each_zone() -> None:
    """mm/page_alloc.c: zone_watermark_ok: free - pages > mark + lowmem_reserve[highest zone that the request may use]."""
    zones = {"name": "h", "distances": [[10]], "nodes": [{"id": 0, "memory_bytes": 8 << 30, "cpus": [0]}]}
    dataset = events("filemap", "4 KiB", {"op": "hog", "node": 0, "size": 8 << 30}, {"op": "zones"}, host=zones)
    labels = dataset["zone"].values.tolist()
    kept = (dataset["zone_low"] + dataset["zone_lowmem_reserve"]).values
    before, free = dataset["free_pages"].values[:2]
    reserve = dict(zip(labels, dataset["zone_lowmem_reserve"].values.tolist(), strict=True))
    low = next(label for label in labels if "DMA32" in label)
    assert reserve[low] > 0  # otherwise nothing is tested
    assert before[labels.index(low)] > kept[labels.index(low)]
    assert free.tolist() == np.minimum(before, kept).tolist()


def test_kexec_waits_for_pages_that_left_a_file_while_pinned() -> None:
    operations: list[dict[str, object]] = [
        {"op": "fault", "by": "host"},
        {"op": "pin", "offset": 4096, "length": 4096},
        {"op": "punch_hole", "offset": 4096, "length": 4096},
        {"op": "kexec"},
        {"op": "unpin", "offset": 4096, "length": 4096},
        {"op": "kexec"},
    ]
    for design in ("filemap", "pfn-range"):
        dataset = events(design, "4 KiB", *operations)
        assert dataset["event_errno"].values.tolist() == [0, 0, 0, 0, errno.EBUSY, 0, 0]
        assert "still pinned" in str(details(dataset)[4]["reason"])


def test_kexec_of_more_folios_than_are_listed_says_so() -> None:
    dataset = events("filemap", "4 KiB", {"op": "fault", "by": "host"}, {"op": "kexec"},
                     guest={"memory": 5 << 30, "design": "filemap"}, output="counts")  # fmt: skip
    detail = details(dataset)[-1]
    assert detail["verified"] is False
    assert detail["metadata_bytes"] >= 16 * (5 << 18)
