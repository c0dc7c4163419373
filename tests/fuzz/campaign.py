"""Scenarios by the hundred thousand: each is a value or one line, and what it answers agrees with itself.

``python tests/fuzz/campaign.py COUNT [FIRST]`` runs the scenarios numbered FIRST on, each made from its number alone, and
prints those that ended otherwise. Many small calls with numbers from the edges find more than few large ones.
"""

from __future__ import annotations

import functools
import random
import sys
import traceback
from typing import Any, get_args

import numpy as np

from workbench import scenario as sc
from workbench.errors import WorkbenchError
from workbench.profiles import KERNEL_PROFILES
from workbench.running import run
from workbench.topology.host import Host

OPERATIONS = get_args(get_args(sc.AnyOperation)[0])
FIELDS = {kind.model_fields["op"].default: list(kind.model_fields) for kind in OPERATIONS}
PROFILES = list(KERNEL_PROFILES)
PAGE = 4096
EDGES = [0, 1, PAGE - 1, 1 << 21, 1 << 30, 1 << 50, (1 << 62) - PAGE, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 1]
MODES = ["default", "preferred", "bind", "interleave", "local", "preferred_many", "weighted_interleave"]
GUESTS: list[dict[str, Any]] = [
    {"memory": "16 KiB"},
    {"memory": "64 KiB", "vm_type": "snp", "conversion": {"mode": "in-place"}},
    {"memory": "64 KiB", "vm_type": "sw_protected", "conversion": {"mode": "out-of-place"}},
    {"memory": "16 KiB", "policy_interface": "fbind"},
    {"memory": "16 KiB", "policy_interface": "create"},
    {"memory": "8 MiB", "page_size": "2 MiB", "design": "hugetlb"},
    {"memory": "8 MiB", "page_size": "2 MiB", "design": "hugetlb", "conversion": {"mode": "in-place"}, "vm_type": "tdx"},
    {"memory": "8 MiB", "page_size": "2 MiB", "design": "pfn-range", "conversion": {"mode": "in-place"}},
    {"memory": "64 KiB", "design": "pfn-range"},
]  # fmt: skip


@functools.cache
def host(kind: int) -> Host:
    """Three small hosts: two nodes, one of them without CPUs, and three that are nearly full."""
    sizes = ([64, 64], [64, 32, 64], [16, 16, 16])[kind]
    nodes = [{"id": node * (1 + kind), "memory_bytes": size << 20, "cpus": [] if node == 1 and kind == 1 else [node]}
             for node, size in enumerate(sizes)]  # fmt: skip
    rows = [[10 if a == b else 20 + a + b for b in range(len(sizes))] for a in range(len(sizes))]
    return Host.model_validate({"name": "h", "nodes": nodes, "distances": rows})


def _value(name: str, draw: random.Random) -> Any:
    """A value for a field of an operation: mostly one that means something, now and then one that does not."""
    if draw.random() < 0.02:
        return draw.choice([None, -1, 1.5, "x", [], {}, 1 << 64, True, "\x1b", float("nan")])
    if name in ("offset", "length", "size", "leave_free"):
        return draw.choice(EDGES) if draw.random() < 0.15 else PAGE * draw.randrange(0, 20)
    if name in ("file", "of", "backend"):
        return draw.choice(["guest", "guest", "guest", "t", "u"])
    known: dict[str, Any] = {
        "mode": draw.choice(MODES), "nodes": draw.choice(["", "0", "0-1", [0], "1"]), "node": draw.choice([0, 1, 2, 7]),
        "to": draw.choice(["shared", "private"]), "by": draw.choice(["host", "guest", "prefault"]),
        "order": draw.choice(["sequential", "reverse", "strided", "random"]), "kind": draw.choice(["transient", "long_term"]),
        "advice": draw.choice([4, 8, 9, 22, 23, 99]), "count": draw.randrange(1, 60), "cpu": draw.choice([-1, 0, 1, 9]),
        "flags": draw.choice([[], ["mmap"], ["move"], ["strict"]]), "mode_flags": draw.choice([[], ["static"], ["relative"]]),
        "stream": draw.choice(["bounce_buffers", "ballooning", "bad_guest", "uniform_random", "boot"]),
        "mems": draw.choice([None, "0", "0-1"]), "weights": draw.choice([None, {0: 3, 1: 1}, {9: 300}]),
        "private": draw.random() < 0.5, "process": draw.choice(["a", "b"]), "seed": draw.randrange(4),
    }  # fmt: skip
    if name in known:
        return known[name]
    return draw.choice([0, 1, 2, 3, -1, 512, True, False, None, *EDGES])


def make(number: int) -> dict[str, Any]:
    """The scenario of a number, as a mapping; its host by :func:`host`."""
    draw = random.Random(number)
    operations: list[dict[str, Any]] = [{"op": "create"}] if draw.random() < 0.9 else []
    if draw.random() < 0.5:
        operations.append({"op": "memfd", "file": "t", "size": draw.choice([0, 1, 6 << 10, 40 << 10])})
    for _ in range(draw.randrange(1, 12)):
        kind = draw.choice(OPERATIONS)
        op = kind.model_fields["op"].default
        given = {"op": op}
        for name, field in kind.model_fields.items():
            if name not in ("op", "task") and (field.is_required() or draw.random() < 0.4):
                given[name] = _value(name, draw)
        operations.append(given)
    return {
        "guest": draw.choice(GUESTS), "strict": draw.random() < 0.2, "pfns": draw.random() < 0.3,
        "metadata": draw.choice(["off", "off", "counted", "taken"]), "seed": number % 5,
        "kernel_profile": draw.choice([None, "7.3", *PROFILES]), "operations": operations,
    }  # fmt: skip


def one_line(error: Exception) -> bool:
    """Whether an error is one line of a length that is read."""
    return "\n" not in str(error) and len(str(error)) < 2000


def attempt(number: int) -> str:
    """Run the scenario of a number: "ran", "refused", or what was wrong. What the schema refuses alone is left out."""
    mapping = make(number)
    mapping["host"] = host(number % 3)
    kept = []
    for operation in mapping["operations"]:
        try:
            sc.Scenario.from_mapping({"host": mapping["host"], "strict": False, "operations": [operation]})
            kept.append(operation)
        except WorkbenchError as error:
            if not one_line(error):
                return f"more than one line: {error}"
    mapping["operations"] = kept
    try:
        answer = run(sc.Scenario.from_mapping(mapping))
    except WorkbenchError as error:
        return "refused" if one_line(error) else f"more than one line: {error}"
    free = np.asarray(answer["free_pages"])
    placed, pages = np.asarray(answer["pages_per_node"]), np.asarray(answer["file_pages"])
    if (free < 0).any():
        return "free pages below 0"
    if placed.size and (placed.sum(axis=tuple(range(1, placed.ndim))) > pages).any():
        return "more pages than the file has"
    return "ran"


def main(arguments: list[str]) -> int:
    """Run COUNT scenarios from FIRST on; exit code 1 if one ended with anything but an answer or one line."""
    count, first = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    found: dict[str, int] = {}
    wrong = 0
    for number in range(first, first + count):
        try:
            ended = attempt(number)
        except KeyboardInterrupt:
            break
        except BaseException:
            ended = traceback.format_exc()
        if ended not in ("ran", "refused"):
            wrong += 1
            print(f"--- scenario {number}\n{ended}", flush=True)
            ended = "wrong"
        found[ended] = found.get(ended, 0) + 1
        if (number - first + 1) % 10_000 == 0:
            print(f"{number - first + 1} scenarios: {found}", flush=True)
    print(f"{sum(found.values())} scenarios: {found}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
