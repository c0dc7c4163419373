"""Random mixes of the recorded operations: the replay agrees in everything with a kernel of one object per page.

The recordings' own generator is a mix like this one; here seeds are free, and operations that recordings have seldom (prefault,
reads, slots that go away, several files of two sizes under one pool) come often.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from reference.misses import misses
from reference.recorded_kernel import RecordedKernel
from workbench.truth.verify import verify

HOSTS = {
    1: ([32], [[10]]),
    2: ([6, 5], [[10, 20], [20, 10]]),
    4: ([3, 4, 2, 3], [[10, 20, 30, 40], [20, 10, 25, 30], [30, 25, 10, 20], [40, 30, 20, 10]]),
}
HEAD = {
    "format": "guest_memfd conversion recording 1", "kernel": "Linux 7.3.0-rc7 (own build)", "base": "none",
    "emulated": "none", "cmdline": "kvm.gmem_in_place_conversion=1 hugetlb_free_vmemmap=on",
}  # fmt: skip


def script(seed: int, nodes: int) -> list[str]:
    """Up to three files, then as many operations as a recorded scenario has; all is given back at the end."""
    rng = random.Random(seed)
    lines: list[str] = []
    files: dict[str, tuple[int, int]] = {}
    pins: list[str] = []
    numbers = 0

    def span(name: str, aligned: bool = False) -> tuple[int, int]:
        pages, order = files[name]
        unit = 1 << order if aligned else 1
        longest = rng.choice([1, 1, 2, 3, 8, 40, pages // unit]) if not aligned else pages // unit
        count = rng.randint(1, max(1, min(longest, pages // unit)))
        first = rng.randint(0, pages // unit - count)
        return first * unit * 4096, count * unit * 4096

    def policy() -> str:
        mode = rng.choice(["default", "bind", "interleave", "preferred", "preferred_many"])
        chosen = sorted(rng.sample(range(nodes), rng.randint(1, nodes)))
        if mode == "default":
            return mode
        return f"{mode} {chosen[0] if mode == 'preferred' else ','.join(map(str, chosen))}"

    for name in "abc"[: rng.randint(1, 3)]:
        order = rng.choice([0, 9, 9])
        pages = rng.choice([16, 64, 256]) if not order else 512 * rng.randint(1, 3)
        flags = 5 if order else rng.choice([1, 3])
        lines.append(f"create {name} size={pages * 4096} flags={flags}" + (" order=9" if order else ""))
        lines.append(f"map {name}")
        if rng.random() < 0.8:
            lines.append(f"slot {name} gpa={1 + len(files)}G")
        files[name] = (pages, order)
    for _ in range(45):
        name = rng.choice(sorted(files))
        offset, length = span(name)
        kind = rng.choices(
            ["conv", "touch", "falloc", "vtouch", "punch", "pin", "unpin", "cpu", "mbind", "setpol", "prefault",
             "write", "read", "slotdel", "odd", "whole", "hwpoison"],
            [26, 12, 10, 10, 6, 8, 6, 5, 5, 3, 3, 4, 4, 1, 3, 5, 1],
        )[0]  # fmt: skip
        to = rng.choice(["private", "shared"])
        if kind == "conv":
            lines.append(f"conv {name} {offset} {length} {to}")
        elif kind == "whole":
            lines.append(f"conv {name} 0 {files[name][0] * 4096} {to}")
        elif kind in ("touch", "vtouch"):
            count, step = rng.choice([(length // 4096, 4096), (3, 8192), (2, 2097152)])
            lines.append(f"{kind} {name} {offset} {min(count, 700)} {step}")
        elif kind in ("falloc", "punch"):
            offset, length = span(name, aligned=True)
            lines.append(f"{kind} {name} {offset} {length}")
        elif kind == "odd":
            lines.append(f"{rng.choice(['falloc', 'punch'])} {name} {offset} {length}")
        elif kind == "pin":
            numbers += 1
            length = min(length, 40 * 4096)
            lines += [f"conv {name} {offset} {length} shared"] * (rng.random() < 0.8)
            lines.append(f"touch {name} {offset} {length // 4096}")
            lines.append(f"pin {name} p{numbers} {rng.choice(['uring', 'splice'])} {offset} {length}")
            pins.append(f"p{numbers}")
        elif kind == "unpin" and pins:
            lines.append(f"unpin {pins.pop(rng.randrange(len(pins)))}")
        elif kind == "cpu":
            lines.append(f"cpu {rng.randrange(nodes)}")
        elif kind == "mbind":
            lines.append(f"mbind {name} {offset} {length} {policy()}")
        elif kind == "setpol":
            lines.append(f"setpol {policy()}")
        elif kind == "prefault":
            lines.append(f"prefault {name} {offset} {min(length, 700 * 4096)}")
        elif kind == "write":
            lines.append(f"write {name} {offset} {rng.randint(2, 200)}")
        elif kind == "read":
            lines.append(f"read {name} {offset}")
        elif kind == "slotdel":
            lines.append(f"slotdel {name}")
        elif kind == "hwpoison":
            lines.append(f"hwpoison {name} {offset}")
    for name in files:
        lines += [f"unmap {name}", f"close {name}"]
    return lines + [f"unpin {number}" for number in pins]


def recording(seeds: Iterable[int], generation: str, nodes: int) -> dict[str, object]:
    """What the slow kernel answers to the scripts of these seeds, each on a host of its own, as a recording has it."""
    pool, distances = HOSTS[nodes]
    scenarios = []
    for seed in seeds:
        kernel = RecordedKernel(generation, pool, distances)
        start, ops = kernel.state(), list(kernel.run(script(seed, nodes)))
        scenarios.append({"name": f"mix-{seed}", "start": start, "ops": ops, "exit_status": 0, "end": kernel.state()})
    topology = {
        "nodes": [{"id": node, "memory_mib": 4096, "cpus": str(node)} for node in range(nodes)], "distances": distances
    }  # fmt: skip
    return {**HEAD, "series": generation, "generation": generation, "topology": topology, "scenarios": scenarios}


SEEDS = {("B", 2): [1, 16], ("B", 4): [3], ("C", 1): [40], ("C", 2): [3], ("C", 4): [44]}
"""Small mixes, those that had found something among them: a stale leaf (40), pages after a poisoned one (44)."""


@pytest.mark.parametrize(("generation", "nodes"), SEEDS)
def test_replay_agrees_with_a_kernel_of_pages(tmp_path: Path, generation: str, nodes: int) -> None:
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(recording(SEEDS[generation, nodes], generation, nodes)))
    (report,) = verify([path])
    assert not misses(report), "\n".join(misses(report)[:10])
    assert all(s.judged == s.operations for s in report.scenarios)
