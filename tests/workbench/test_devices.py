"""Devices and kexec in scenarios: pins block conversions today, asking does not; what cannot be handed over says why."""

from __future__ import annotations

import errno
import json

import pytest

import workbench as wb

SCENARIO = """
name: devices
host: {{name: h, nodes: [{{id: 0, memory_bytes: 8589934592, cpus: [0, 1]}}], distances: [[10]]}}
guest: {{memory: 64 MiB, page_size: "{page}", design: {design}, policy_interface: none}}
operations:
  - {{op: create}}
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
    dataset = wb.simulate(wb.Scenario.from_yaml(SCENARIO.format(design=design, page=page)))
    assert list(dataset["event_errno"].values) == errors
    last = json.loads(str(dataset["event_detail"].values[-1]))
    assert ("reason" in last) == (errors[-1] != 0)
    if not errors[-1]:
        assert last["files"] == 1
        assert last["metadata_bytes"] > 0
