"""How far apart boots of one host are where a node fills up: the same script, the same kernel, three boots.

What the page allocator took from its per-CPU lists, or put there, is all that the counters of the zones do not say of a fill:
how full those lists are when a script begins no file tells by type, and they are emptied by the clock (mm/vmstat.c:
refresh_cpu_vm_stats). So no rule can be closer to every boot than half of what lies between two of them.
"""

from __future__ import annotations

import numpy as np
import pytest

from workbench.data import datasets_path
from workbench.running import run
from workbench.truth.recording import read, to_scenario
from workbench.truth.verify import verify_scenario

BESIDE = 128
"""Pages that the kernel took for itself in one fill of a few thousand pages: tables, slabs and what else ran."""


def boots(host):
    found = [read(path) for path in sorted(datasets_path("recordings", "repeated").glob(f"{host}-?.json.gz"))]
    assert len(found) == 3
    return found


def script(recording, name):
    return next(one for one in recording.scenarios if one.name == name)


def looks(recorded):
    """The zones before and after a fill, and the pages of its file on each node."""
    before, after = (entry.seen["zones"] for entry in recorded.operations if "zones" in entry.seen)
    counts = next(entry.seen["counts"] for entry in recorded.operations if "counts" in entry.seen)
    return before, after, {int(node): pages for node, pages in counts.items()}


def fall(before, after, node, of):
    """By how much the zones of a node fell."""
    return sum(of(before[label]) - of(after[label]) for label in before if label.split("/")[0] == str(node))


@pytest.mark.parametrize("host", ["tuneq", "m5defaults"])
def test_pages_that_no_counter_lost_came_from_the_lists_of_a_cpu(host):
    for recording in boots(host):
        for recorded in recording.scenarios:
            if not recorded.name.startswith("full_"):
                continue
            before, after, counts = looks(recorded)
            for node, pages in counts.items():
                unexplained = pages - fall(before, after, node, lambda zone: zone["free"])
                lists = fall(before, after, node, lambda zone: sum(zone["lists"]))
                assert abs(unexplained - lists) <= BESIDE, (recording.path.name, recorded.name, node)


@pytest.mark.parametrize(("host", "name", "node", "bound"), [
    ("tuneq", "full_prefmany", 1, 32), ("m5defaults", "full_wil", 0, 256),
])  # fmt: skip
def test_boots_are_further_apart_than_twice_the_bound_that_a_rule_should_keep(host, name, node, bound):
    errors = []
    for recording in boots(host):
        recorded = script(recording, name)
        report = verify_scenario(recording, recorded)
        assert not report.mismatches
        errors.append(looks(recorded)[2][node] - simulated(recording, recorded, node))
    assert max(errors) - min(errors) > 2 * bound, errors


def simulated(recording, recorded, node):
    """Pages of the file on a node in the simulation of a boot, which begins with that boot's own counters."""
    answer = run(to_scenario(recording, recorded)[0])
    events, nodes, lengths = (np.asarray(answer[f"observed_run_{name}"]) for name in ("event", "node", "length"))
    return int(lengths[(events == events.max()) & (nodes == node)].sum())
