"""What an operation costs does not grow with the operations before it: 10^5 of them cost no square."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reference.growth import costs_less, seconds
from workbench.engine.system import Descriptors
from workbench.scenario import Scenario
from workbench.simulation import run

PAGE = 4096
NODES = [{"id": node, "memory_bytes": 8 << 30, "cpus": [node], "kind": "dram"} for node in (0, 1)]
FEW, MANY = 800, 4800
KINDS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "fault in order": lambda i, n: {"op": "fault", "offset": PAGE * i, "length": PAGE},
    "fault in no order": lambda i, n: {"op": "fault", "offset": 2 * PAGE * (i * 7919 % n), "length": PAGE},
    "fault by the guest": lambda i, n: {"op": "fault", "offset": PAGE * i, "length": PAGE, "by": "guest"},
    "punch_hole": lambda i, n: {"op": "punch_hole", "offset": 2 * PAGE * i, "length": PAGE},
    "mbind": lambda i, n: {"op": "mbind", "mode": "bind", "nodes": str(i % 2), "offset": PAGE * i, "length": PAGE},
    "alias": lambda i, n: {"op": "alias", "file": f"a{i}", "of": "guest"},
    "memfd and close": lambda i, n: {"op": "memfd", "file": f"a{i}", "size": PAGE} if i % 2 == 0
    else {"op": "close", "file": f"a{i - 1}"},
    "convert": lambda i, n: {"op": "convert", "to": ("private", "shared")[i % 2], "offset": PAGE * i, "length": PAGE},
    "convert out of place": lambda i, n: {"op": "convert", "to": ("shared", "private", "shared")[i % 3],
                                          "offset": 2 * PAGE * (i // 3 * 2 + i % 3 // 2), "length": PAGE},
    "punch_hole with pfns": lambda i, n: {"op": "punch_hole", "offset": 2 * PAGE * i, "length": PAGE},
    "alias beside attributes": lambda i, n: {"op": "alias", "file": f"a{i}", "of": "guest"},
    "memfd beside huge pages": lambda i, n: {"op": "memfd", "file": f"a{i}", "size": PAGE},
    "unpin of what left the file": lambda i, n: {"op": "unpin", "offset": PAGE * i, "length": PAGE},
    "unpin of what left a file without struct pages": lambda i, n: {"op": "unpin", "offset": PAGE * i, "length": PAGE},
    "observe": lambda i, n: {"op": "observe", "offset": PAGE * i, "length": PAGE},
}  # fmt: skip
SHARED: list[dict[str, Any]] = [{"op": "convert", "to": "shared"}, {"op": "pin"}, {"op": "punch_hole"}]
BEFORE: dict[str, list[dict[str, Any]]] = {
    "punch_hole": [{"op": "fallocate"}],
    "punch_hole with pfns": [{"op": "fallocate"}],
    "unpin of what left the file": SHARED,
    "unpin of what left a file without struct pages": SHARED,
}
GUESTS: dict[str, dict[str, Any]] = {
    "unpin of what left the file": {"vm_type": "sw_protected", "conversion": {"mode": "in-place"}},
    "unpin of what left a file without struct pages": {"vm_type": "sw_protected", "design": "pfn-range"},
    "convert": {"vm_type": "sw_protected", "conversion": {"mode": "in-place"}},
    "convert out of place": {"vm_type": "snp", "conversion": {"mode": "out-of-place"}},
    "alias beside attributes": {"vm_type": "snp", "conversion": {"mode": "out-of-place"}},
    "memfd beside huge pages": {
        "design": "hugetlb",
        "page_size": "2 MiB",
        "memory": "64 MiB",
        "vm_type": "snp",
        "conversion": {"mode": "in-place"},
    },
}


def scenario(kind: str, count: int) -> Scenario:
    return Scenario.from_mapping(
        {
            "host": {"name": "h", "nodes": NODES, "distances": [[10, 20], [20, 10]]},
            "guest": {"memory": 2 * count * PAGE, **GUESTS.get(kind, {})},
            "pfns": kind.endswith("with pfns"),
            "output": "counts",
            "operations": [
                {"op": "create"},
                *BEFORE.get(kind, []),
                *(KINDS[kind](i, count) for i in range(count)),
            ],
        }
    )


def seconds_each(kind: str, count: int) -> float:
    given = scenario(kind, count)
    answers = []
    passed = seconds(lambda: answers.append(run(given)))
    assert not answers[0]["event_errno"].any()
    return passed / count


@pytest.mark.parametrize("kind", KINDS)
def test_six_times_the_operations_cost_six_times(kind: str) -> None:
    """In CPU time: six times as much each would be a square."""
    run(scenario(kind, 10))
    assert costs_less(lambda: seconds_each(kind, MANY), lambda: seconds_each(kind, FEW), 2.5)


def test_the_lowest_free_descriptor_is_taken() -> None:
    descriptors = Descriptors()
    assert [descriptors.take() for _ in range(4)] == [3, 4, 5, 6]
    descriptors.give_back(5)
    descriptors.give_back(3)
    assert [descriptors.take() for _ in range(3)] == [3, 5, 7]
