"""Pages of a task that interleaves, with the tables they need between them: as pieces they lie where one by one they do."""

from __future__ import annotations

import errno
import random
from typing import Any

import numpy as np
import pytest

from reference.scale import examples
from workbench.answer import Answer
from workbench.engine.host_state import HostState
from workbench.running import run
from workbench.scenario import Scenario


def scenario(rng: random.Random) -> Scenario:
    nodes, size = rng.choice([1, 2, 2, 3, 4]), rng.choice([1, 3, 9, 30, 50])
    every = f"0-{nodes - 1}"
    private = rng.random() < 0.5
    mode = rng.choice(["interleave", "weighted_interleave"])
    operations: list[dict[str, Any]] = [
        {"op": "create", "file": "g", "flags": [] if private else ["mmap", "init_shared"]},
        {"op": "set_mempolicy", "task": "t0", "mode": mode, "nodes": every},
    ]
    if private:
        operations += [{"op": "memslot", "file": "g"}, {"op": "set_memory_attributes", "file": "g"}]
    elif rng.random() < 0.4:
        operations.append(
            {"op": "mbind", "file": "g", "mode": rng.choice(["interleave", "bind"]), "nodes": every,
             "offset": rng.randrange(100) * 4096, "length": rng.randrange(1, 300) * 4096}
        )  # fmt: skip
    for _ in range(rng.randrange(1, 5)):
        first = rng.randrange(size * 256)
        part = {"file": "g", "offset": first * 4096, "length": rng.randint(1, size * 256 - first) * 4096}
        by = "guest" if private else rng.choice(["guest", "host"])
        order = rng.choice(["sequential", "reverse"])
        operations.append(rng.choice([
            {"op": "fault", "by": by, "task": "t0", "order": order, **part}, {"op": "punch_hole", **part},
        ]))  # fmt: skip
    memory = [(rng.choice([20, 24, 48, 96]) + rng.randrange(9)) << 20 for _ in range(nodes)]
    distances = [[10 if a == b else 20 for b in range(nodes)] for a in range(nodes)]
    host = {"name": "h", "nodes": [{"id": i, "memory_bytes": n, "cpus": [i]} for i, n in enumerate(memory)]}
    weights = {"weights": {i: rng.randint(1, 4) for i in range(nodes)}} if mode != "interleave" else {}
    return Scenario.from_mapping(
        {"host": host | {"distances": distances}, "boot": weights, "tasks": [{"name": "t0", "cpu": 0}],
         "guest": {"memory": f"{size} MiB", "vm_type": "snp" if private else "none"}, "operations": operations,
         "metadata": "taken", "output": "pages", "strict": False, "pfns": rng.random() < 0.5}
    )  # fmt: skip


def seen(answer: Answer) -> dict[str, Any]:
    """What a run answers, but for how its rows are written; where a task was killed nobody has its rotation any more."""
    answers = {name: np.asarray(answer[name]).tolist() for name in ("page_node", "pages_per_node", "metadata_pages")}
    if answer.system.scenario.pfns:
        answers["page_pfn"] = np.asarray(answer["page_pfn"]).tolist()
    errors = [result.errno for result in answer.log.results]
    rotations = None if errno.ENOMEM in errors else answer.system.rotations.tolist()
    return answers | {"errno": errors, "free": answer.system.free.tolist(), "rotations": rotations}


@pytest.mark.parametrize("seed", range(examples(24, without_jit=2)))
def test_pieces_of_pages_and_tables_are_the_list_of_them(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scenario(random.Random(seed))
    pieces = seen(run(one))

    def listed(self: HostState, metadata: Any, task: Any, inode: Any, walk: Any, pages: range) -> None:
        self._list_between(metadata, task, inode, walk, np.array(pages))

    monkeypatch.setattr(HostState, "_place_between", listed)
    assert seen(run(one)) == pieces


def test_frames_of_pages_touched_in_no_order_are_known() -> None:
    """Tables come between the pages there, too: what was listed so had no frames."""
    nodes = [{"id": i, "memory_bytes": 64 << 20, "cpus": [i]} for i in range(2)]
    answer = run(
        Scenario.from_mapping(
            {"host": {"name": "h", "nodes": nodes, "distances": [[10, 20], [20, 10]]}, "guest": {"memory": "4 MiB"},
             "tasks": [{"name": "t0", "cpu": 0}], "metadata": "taken", "output": "pages", "pfns": True,
             "operations": [{"op": "create", "file": "g", "flags": ["mmap", "init_shared"]},
                            {"op": "set_mempolicy", "task": "t0", "mode": "interleave", "nodes": "0-1"},
                            {"op": "fault", "file": "g", "by": "host", "task": "t0", "order": "random"}]}
        )
    )  # fmt: skip
    pfns, node = np.asarray(answer["page_pfn"]).ravel(), np.asarray(answer["page_node"]).ravel()
    assert len(np.unique(pfns)) == 1024 and pfns.min() >= 0
    ends = answer.system.host.nodes[0].memory_bytes // 4096
    assert ((pfns >= ends) == (node == 1)).all()
