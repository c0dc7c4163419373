"""What is said twice, or in two ways that differ, is an error that names both: nobody chooses without a word."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.commands import cli
from workbench.errors import WorkbenchError
from workbench.safe_yaml import load
from workbench.scenario import Scenario
from workbench.sweeps.grid import Grid
from workbench.topology import readers
from workbench.topology.host import Host
from workbench.tracking import traces

NODE = "{id: 0, memory_bytes: 1 GiB, cpus: [0, 1]}"
BASE = f"host: {{name: h, nodes: [{NODE}], distances: [[10]]}}\nguest: {{memory: 8 MiB}}\n"
HOST = "{{name: h, distances: {}, nodes: [{}]}}"
TWO = "[[10, 20], [20, 10]]"
SWEEP = "base: {host: epyc1-naples-2s, guest: {memory: 1 MiB}, operations: [{op: create}]}\n"
NUMACTL = (
    "available: 2 nodes (0-1)\nnode 0 cpus: 0 1\nnode 0 size: 10 MB\nnode 0 free: 5 MB\nnode 1 cpus: 2 3\nnode 1 size: 10 MB\n"
    "node 1 free: 5 MB\nnode distances:\nnode   0   1\n  0:  10  20\n  1:  20  10\n"
)
CELL = (
    "<cell id='0'><memory unit='KiB'>4194304</memory><distances><sibling id='0' value='10'/></distances>"
    "<cpus num='1'><cpu id='0'/></cpus></cell>"
)
CELLS = "<capabilities><host><topology><cells num='{}'>{}</cells></topology></host></capabilities>"
SRAT = "ACPI: SRAT: Node 0 PXM 0 [mem 0x00000000-0x7fffffff]\nACPI: SRAT: Node 1 PXM 1 [mem 0x80000000-0xffffffff]\n"
SLIT = "ACPI: SLIT: distances:\n 10 20\n 20 10\n"

SAID_TWICE = {
    "YAML key": ("scenario", BASE + "strict: true\nstrict: false", r"'strict' is there twice, in lines 3 and 4"),
    "YAML number and text": (
        "scenario", BASE + "operations: [{op: set_weights, weights: {0: 3, '0': 4}}]", "'0' is there twice"),
    "YAML hexadecimal": (
        "scenario", BASE + "operations: [{op: set_weights, weights: {1: 3, 0x1: 4}}]", "'0x1' is there twice"),
    "VM type and its old name": ("scenario", BASE.replace("MiB}", "MiB, confidential: snp, vm_type: tdx}"), "'tdx' and .*'snp'"),
    "octal or not": ("scenario", BASE + "seed: 010", r"line 3, column 7: 010 is 8 to some and 10 to others"),
    "base 60 or not": ("scenario", BASE + "seed: 1:30:00", r"^seed: .*'1:30:00'"),
    "truth for a number": ("scenario", BASE + "seed: true", "^seed: .*not a truth value"),
    "half a byte": ("scenario", BASE.replace("8 MiB", "4096.5"), "4096.5"),
    "CPU of two nodes": (
        "host", HOST.format(TWO, f"{NODE}, {{id: 1, memory_bytes: 1 GiB, cpus: [1]}}"), "CPU 1 is on node 0 and on node 1"),
    "node": ("host", HOST.format(TWO, f"{NODE}, {NODE}"), "id 0 is there twice"),
    "access": (
        "host", HOST.format("[[10]], access: [{initiator: 0, target: 0, read_latency: 8}, {initiator: 0, target: 0}]", NODE),
        "0 -> 0 are there twice"),
    "cpus line": ("numactl.txt", NUMACTL.replace("node 0 size", "node 0 cpus: 5\nnode 0 size"), "line 2 and line 3 both"),
    "size line": ("numactl.txt", NUMACTL.replace("node 0 free", "node 0 size: 9 MB\nnode 0 free"), "line 3 and line 4 both"),
    "free line": ("numactl.txt", NUMACTL.replace("node 1 cpus", "node 0 free: 6 MB\nnode 1 cpus"), "line 4 and line 5 both"),
    "row after the matrix": ("numactl.txt", NUMACTL + "  1:  30  10\n", "line 11 and line 12 both give the distances of node 1"),
    "available": ("numactl.txt", "available: 3 nodes (0-2)\n" + NUMACTL, "line 2: numactl: other nodes are available"),
    "count of nodes": ("numactl.txt", NUMACTL.replace("2 nodes", "3 nodes"), "'available: 3 nodes .0-1.' lists 2 nodes"),
    "cell": ("virsh.xml", CELLS.format(2, CELL * 2), "two cells have id=0"),
    "cells": ("virsh.xml", CELLS.format(2, CELL), "num=2, but there are 1"),
    "memory of a cell": ("virsh.xml", CELLS.format(1, CELL.replace("<cpus", "<memory>5</memory><cpus", 1)), "has memory twice"),
    "sibling": (
        "virsh.xml", CELLS.format(1, CELL.replace("</distances>", "<sibling id='0' value='11'/></distances>")), "10 and 11"),
    "SLIT": ("boot.log", SRAT + SLIT + SLIT.replace("20", "21"), "two matrices of distances differ"),
    "memory of two nodes": ("boot.log", SRAT.replace("0x7ff", "0x8ff"), "0x80000000 is memory of node 0 and of node 1"),
    "column of a trace": ("trace.csv", "offset,length,length,to\n0,4096,8192,shared\n", "'length' is there twice"),
    "half an offset": ("trace.csv", "offset,length,to\n0.5,4096,shared\n", "row 1: '0.5' is not a whole number"),
    "empty range": ("trace.csv", "offset,length,to\n0,4096,shared\n0,0,shared\n", "row 2: 0 bytes; at least one page"),
    "half a page": ("trace.csv", "offset,length,to\n0,100,shared\n", "trace.length: row 1: 100 is not a multiple"),
    "between pages": ("trace.csv", "offset,length,to\n8,4096,shared\n", "trace.offset: row 1: 8 is not a multiple"),
    "node of a policy": (
        "scenario", BASE + "operations: [{op: mbind, mode: bind, nodes: '0,0'}]", "node 0 is there twice; each node once"),
    "fields of a row": ("trace.csv", "offset,length,to\n0,4096,shared,9\n", "row 1 has 4 fields, the header 3"),
    "axis": ("grid", SWEEP + "axes: {seed: [1], seed: [2]}", "'seed' is there twice"),
    "field of two axes": ("grid", SWEEP + "axes: {a: {field: seed, values: [1]}, seed: [2]}", "'seed' is set by two axes"),
    "field and its part": (
        "grid", SWEEP + "axes: {guest: [{memory: 1 MiB}], guest.memory: [4 MiB]}", "'guest.memory' .* is a part of 'guest'"),
    "value of an axis": ("grid", SWEEP + "axes: {seed: [1, 1]}", "the same value is there twice"),
    "values and a range": ("grid", SWEEP + "axes: {s: {field: seed, values: [1], range: [1, 2, 1]}}", "exactly one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID_TWICE)
def test_an_error_names_both(name: str, tmp_path: Path) -> None:
    kind, text, said = SAID_TWICE[name]
    path = tmp_path / kind
    path.write_text(text)
    read: dict[str, Callable[[], object]] = {
        "scenario": lambda: Scenario.from_yaml(f"{text}\n"),
        "host": lambda: Host.from_mapping(load(f"{text}\n", "host")),
        "grid": lambda: Grid.from_yaml(f"{text}\n"),
        "trace.csv": lambda: traces.read_trace(path),
    }
    with pytest.raises(WorkbenchError, match=said):
        read.get(kind, lambda: Host.from_mapping(readers.read(path)))()


def test_the_inputs_without_their_second_word_are_taken(tmp_path: Path) -> None:
    Scenario.from_yaml(BASE + "operations: [{op: set_weights, weights: {0: 3, 1: 4}}]\nseed: 1\nstrict: false\n")
    Grid.from_yaml(SWEEP + "axes: {seed: [1, 2], guest.memory: [1 MiB, 2 MiB]}\n")
    for name, text in (("a.txt", NUMACTL), ("a.xml", CELLS.format(1, CELL)), ("a.log", SRAT + SLIT)):
        (tmp_path / name).write_text(text)
        Host.from_mapping(readers.read(tmp_path / name))


def test_fbind_of_nothing_stores_no_range() -> None:
    """mm/mempolicy.c: an empty range is no error, and nothing is set."""
    from workbench.simulation import simulate

    given = BASE.replace("MiB}", "MiB, policy_interface: fbind}")
    listed = "{op: fbind, mode: bind, nodes: '0', length: 0}"
    dataset = simulate(Scenario.from_yaml(f"{given}operations: [{{op: create}}, {listed}]\n"))
    assert not len(dataset["range_start"])


def test_ranges_of_policies_over_others_are_said() -> None:
    """mm/mempolicy.c: shared_policy_replace: what is set later holds where both reach."""
    from workbench.simulation import simulate

    both = "{mode: bind, nodes: '0'}, {offset: 4 MiB, length: 1 MiB, mode: preferred, nodes: '0'}"
    given = BASE.replace("MiB}", f"MiB, policies: [{both}]}}")
    (line,) = Scenario.from_yaml(given).policies_over_others()
    assert (
        line
        == "guest.policies[1] lies over guest.policies[0] from 4 MiB to 5 MiB: the later one holds there, as with mbind"
    )
    assert line in simulate(Scenario.from_yaml(given)).attrs["warnings"]
    apart = given.replace("{mode: bind", "{length: 4 MiB, mode: bind")
    assert not Scenario.from_yaml(apart).policies_over_others()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "full-node", "--set", "guest.memory=1GiB", "--set", "guest.memory=2GiB"], "2GiB' undoes 'guest.memory=1GiB'"),
        (["run", "full-node", "--set", "guest.memory=1GiB", "--set", "guest={}"], "'guest={}' undoes 'guest.memory=1GiB'"),
        (["run", "full-node", "--designs", "thp,thp"], "designs: thp, thp; each"),
        (["run", "full-node", "--kernel-profile", "7.3,7.3"], "7.3, 7.3; each"),
        (["compare", "interface-mbind", "--interfaces", "mbind,mbind"], "mbind, mbind; each"),
        (["compare", "full-node", "full-node"], "'full-node' is there twice"),
        (["capacity", "xeon-e5-2680-2s", "--policy", "bind,bind"], "bind, bind; each"),
        (["history", "full-node", "--kernels", "7.3,7.3"], "7.3, 7.3; each"),
        (["verify", "t2eq", "t2eq"], "'t2eq' and 't2eq' are one file; each of them once"),
        (["reproduce", "accept_exits", "accept_exits"], "each of them once"),
        (["report", "01_placement", "-p", "machine", "a", "-p", "machine=b"], "-p machine: is there twice, as 'a' and 'b'"),
    ],
)  # fmt: skip
def test_words_of_the_command_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["workbench", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    line = capsys.readouterr().err
    assert ended.value.code == 2 and said in line and line.count("\n") == 1
