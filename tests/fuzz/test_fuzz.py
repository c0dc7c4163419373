"""Fuzz targets, one per entry: the answer is a value or one line; few examples here, hours by ``make fuzz``."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from fuzz.damage import EXAMPLES, answers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workbench import safe_yaml
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.scenario import Scenario
from workbench.simulation import simulate
from workbench.topology.host import Host
from workbench.truth import recording

NUMBERS = st.sampled_from([0, 1, 4095, 4096, 8192, 1 << 21, 1 << 31, 1 << 50, 1 << 63, (1 << 64) - 1, 1 << 64, -1])
SCALARS = st.one_of(NUMBERS, st.none(), st.booleans(), st.floats(), st.text(max_size=8), st.just([]), st.just({}))
NODES = [{"id": node, "memory_bytes": "64 MiB", "cpus": str(node)} for node in (0, 1)]
OPS = ["fault", "fallocate", "punch_hole", "mbind", "move_pages", "convert", "observe", "pin", "hwpoison", "hog", "close",
       "collapse", "mmap", "munmap", "alias", "memfd", "madvise", "kexec", "get_mempolicy", "check_extension",
       "preserve", "retrieve", "finish", "close_session"]  # fmt: skip
FIELDS = {
    "offset": NUMBERS, "length": NUMBERS, "node": NUMBERS, "nodes": SCALARS, "size": NUMBERS, "to": st.just("shared"),
    "mode": st.sampled_from(["bind", "interleave", 3, 999]), "advice": NUMBERS, "order": st.sampled_from(["reverse", "random"]),
    "of": st.just("guest"), "file": st.sampled_from(["guest", "t"]), "by": st.sampled_from(["host", "guest", "prefault"]),
    "stride": NUMBERS, "raw_flags": NUMBERS, "token": st.sampled_from([0, 1, 1 << 63]), "inode": NUMBERS,
}  # fmt: skip
RECORDING = json.loads(gzip.decompress((datasets_path("recordings") / "facts-X_corner.json.gz").read_bytes()))


@st.composite
def operations(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=5, unique=True))
    return {"op": draw(st.sampled_from(OPS)), **{name: draw(FIELDS[name]) for name in names}}


@settings(max_examples=EXAMPLES)
@given(st.lists(operations(), max_size=6), st.sampled_from(["none", "snp"]), st.booleans())
def test_scenarios(listed: list[dict[str, Any]], vm_type: str, pfns: bool) -> None:
    made = []
    for operation in listed:  # what the schema refuses is left out, so that the rest is run
        try:
            Scenario.from_mapping({"host": {"name": "h", "nodes": NODES, "distances": [[10, 20], [20, 10]]},
                                   "strict": False, "operations": [operation]})  # fmt: skip
            made.append(operation)
        except WorkbenchError as error:
            assert "\n" not in str(error)  # noqa: PT017
    scenario = {
        "host": {"name": "h", "nodes": NODES, "distances": [[10, 20], [20, 10]]},
        "guest": {"memory": "16 KiB", "vm_type": vm_type}, "strict": False, "pfns": pfns,
        "operations": [{"op": "create"}, {"op": "memfd", "file": "t", "size": "6 KiB"}, *made],
    }  # fmt: skip
    dataset = answers(lambda: simulate(Scenario.from_mapping(scenario)), scenario)
    if dataset is None:
        return
    assert (dataset["free_pages"] >= 0).all() and (dataset["range_start"] < dataset["range_end"]).all()
    assert (dataset["pages_per_node"].sum("node") <= dataset["file_pages"]).all()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value has something, up to five levels and twenty entries deep."""
    if len(path) == 5 or not isinstance(value, (dict, list)):
        return [path]
    items = list(value.items() if isinstance(value, dict) else enumerate(value))[:20]
    return [path, *(place for key, part in items for place in places(part, (*path, key)))]


PLACES = [place for place in places(RECORDING) if place]


DISTANCE = ("files", "/sys/devices/system/node/node0/distance", 0)


@settings(max_examples=EXAMPLES)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), SCALARS), min_size=1, max_size=2))
@example(changes=[(DISTANCE, "00")])
@example(changes=[(DISTANCE, "10 x")])
@example(changes=[(("files", "/sys/kernel/mm/mempolicy/weighted_interleave/node0"), ["0x"])])
@example(changes=[(("files", f"/sys/devices/system/node/node{'9' * 5000}/distance"), ["10 20"])])
def test_recordings(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    data = copy.deepcopy(RECORDING)
    for place, value in changes:
        target = data
        try:
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = copy.deepcopy(value)
        except (TypeError, KeyError, IndexError):
            continue  # the first change took this place away
    path = Path(tmp_path_factory.getbasetemp()) / "fuzzed.json"
    path.write_text(json.dumps(data))

    def read() -> None:
        whole = recording.read(path)
        for script in whole.scenarios:
            recording.to_scenario(whole, script)

    answers(read, changes)


@settings(max_examples=4 * EXAMPLES)
@given(st.text(alphabet="ab01: -[]{}&*!<>\"'\n\t#|?,.\x00\x1b", max_size=60))
def test_yaml(text: str) -> None:
    answers(lambda: safe_yaml.load(text + "\n", "fuzzed"), text)


NUMACTL = "available: 2 nodes (0-1)\nnode 0 cpus: 0 1\nnode 0 size: 10 MB\nnode 1 cpus: 2 3\nnode 1 size: 10 MB\n" \
          "node distances:\nnode   0   1\n  0:  10  20\n  1:  20  10\n"  # fmt: skip


@settings(max_examples=4 * EXAMPLES)
@given(st.integers(0, len(NUMACTL)), st.integers(0, 8), st.text(alphabet="0123456789 :-,\nxMB", max_size=40))
def test_numactl(at: int, cut: int, put: str) -> None:
    answers(lambda: Host.from_numactl(NUMACTL[:at] + put + NUMACTL[at + cut :]), put)
