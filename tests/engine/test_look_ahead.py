"""Lists look ahead at no more than a few operations for each one there is, however often something ends them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from reference import one_after_another
from workbench.engine.lists import faults, look_ahead
from workbench.engine.system import System
from workbench.scenario import Scenario
from workbench.simulation import run

LISTS = [made for name, made in vars(look_ahead).items() if name.startswith("Bulk")]
PAGE, PAGES = 4096, 4096
GUESTS: dict[str, dict[str, Any]] = {
    "7.3": {"vm_type": "sw_protected", "memory": PAGE * PAGES},
    "7.4": {"vm_type": "sw_protected", "memory": PAGE * PAGES, "conversion": {"mode": "in-place"}},
    "snp": {"vm_type": "snp", "memory": PAGE * PAGES, "conversion": {"mode": "in-place"}},
    "pfn-range": {"vm_type": "sw_protected", "memory": PAGE * PAGES, "design": "pfn-range"},
}
MIXES = {
    "conversions": ["fault", "convert"],
    "pins": ["fault", "convert", "pin", "unpin"],
    "pins beside long conversions": ["fault", "convert", "convert", "pin"],
    "holes": ["fault", "fallocate", "punch_hole", "pin"],
    "devices": ["fault", "iommu_map", "iommu_unmap"],
    "attributes": ["fault", "set_memory_attributes", "convert"],
}


class Seen(list[Any]):
    """Operations that count how many of their slices' elements are looked at."""

    looks = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return Seen(found) if isinstance(at, slice) else found

    def __iter__(self) -> Iterator[Any]:
        for one in super().__iter__():
            Seen.looks += 1
            yield one


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("guest", GUESTS)
def test_what_is_looked_at_ahead(guest: str, mix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single pages in no order, many of them refused; that a list was cut short once cost its whole length each time."""
    drawn = random.Random(7)
    calls = [
        {"op": drawn.choice(MIXES[mix]), "offset": PAGE * drawn.randrange(PAGES), "length": PAGE} for _ in range(1500)
    ]
    for call in calls:
        if call["op"] == "fault":
            call["by"] = drawn.choice(["guest", "host"])
        elif call["op"] == "convert":
            call["to"] = drawn.choice(["shared", "private"])
            if mix.endswith("long conversions"):  # what becomes of their pages is not certain beforehand
                call |= {"offset": 0, "length": PAGE * PAGES // 4}
        elif call["op"] == "set_memory_attributes":
            call["private"] = drawn.choice([True, False])
    scenario = Scenario.from_mapping({
        "host": {"name": "h", "nodes": [{"id": node, "memory_bytes": 1 << 30, "cpus": [node], "kind": "dram"} for node in (0, 1)],
                 "distances": [[10, 20], [20, 10]]},
        "guest": GUESTS[guest], "kernel_profile": "7.3" if guest == "7.3" else "7.4",
        "operations": [{"op": "create"}, *({"file": "guest", **call} for call in calls)],
    })  # fmt: skip
    Seen.looks = 0

    for made in LISTS:

        def looking(system: System, operations: list[Any], *more: Any, made: Any = made) -> Any:
            return made(system, Seen(operations), *more)

        monkeypatch.setattr(look_ahead, made.__name__, looking)
    run(scenario)
    assert Seen.looks < 12 * len(calls)
    assert Seen.looks or mix != "conversions"


@pytest.mark.parametrize(
    ("names", "ends"),
    [
        (["a", "a", None, "b", "b"], [2, 2, 3, 5, 5]), ([None, "a"], [1, 2]), ([None, None], [1, 2]), ([], []),
        (["a", "b", "a", None], [1, 2, 3, 4]), (["a", None, None, "a", "b"], [1, 2, 3, 4, 5]),
    ],
)  # fmt: skip
def test_where_another_file_begins(names: list[str | None], ends: list[int]) -> None:
    assert look_ahead._ends_of_equal(names).tolist() == ends


def test_no_list_is_asked_where_files_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for made in LISTS:
        monkeypatch.setattr(made, "run", lambda bulk, place, *more: asked.append(place))
    guest, calls_of_a = {"memory": PAGE * PAGES, "vm_type": "sw_protected"}, look_ahead.LEAST + 4
    calls = [{"op": "fault", "by": "guest", "file": "ab"[number % 2], "length": PAGE} for number in range(60)]
    calls += [{"op": "fault", "by": "guest", "file": "a", "length": PAGE}] * calls_of_a
    operations = [*({"op": "create", "file": name} for name in "ab"), *calls]
    run(Scenario.from_mapping({"host": "xeon-e5-2680-2s", "guest": guest, "operations": operations}))
    assert set(asked) == set(range(62, 62 + calls_of_a - look_ahead.LEAST + 1))


@pytest.mark.parametrize(
    "between",
    [
        {"op": "fault", "file": "b"},
        {"op": "observe", "file": "a"},
        {"op": "get_mempolicy"},
        {"op": "fstat", "file": "b"},
    ],
)
@pytest.mark.parametrize(
    "ends",
    [
        {"op": "munmap", "file": "a"},
        {"op": "close", "file": "a"},
        {"op": "create_vm"},
        {"op": "kexec"},
        {"op": "pass_fd", "of": "a", "file": "a", "process": "p"},
        {"op": "memfd", "file": "a", "size": PAGE},
        {"op": "alias", "file": "a", "of": "b"},
    ],
)
def test_what_ends_what_went_well_is_known_whatever_follows(ends: dict[str, Any], between: dict[str, Any]) -> None:
    """A mapping or a descriptor goes, something is asked that begins no list, and then come touches that went well before."""
    page = {"file": "a", "length": PAGE}
    touches = [{"op": "fault", "offset": PAGE * number, **page} for number in range(40)]
    guest = [{"op": "fault", "by": "guest", "offset": PAGE * number, **page} for number in range(40, 80)]
    operations = [
        *({"op": "create", "file": name, "flags": ["mmap", "init_shared"]} for name in "ab"), touches[0], guest[0], ends, between,
        *touches, *guest,
    ]  # fmt: skip
    given = Scenario.from_mapping(
        {"host": "xeon-e5-2680-2s", "guest": {"memory": PAGE * PAGES}, "operations": operations}
    )
    one_after_another.assert_equal(faults, given)
