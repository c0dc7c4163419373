"""Every reader of texts has the same numbers: ASCII digits. Python's ``int`` and ``float`` take more than programs print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.cost import calibrate, profile
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.probe_words import c_number
from workbench.topology import readers
from workbench.tracking import traces
from workbench.truth import recording
from workbench.units import parse_bytes, parse_number

ODD = ("4_0", "٤0", "4٠", "４0", "⁴", "+-4", "4 0", "0b1", "1__0", "infinity", "nan", "NaN", "0o4", "4\u200b", "")
"""No numbers."""
NUMACTL = "available: {} nodes ({})\nnode 0 cpus: {}\nnode 0 size: {} MB\nnode distances:\nnode {}\n{}: {}\n"
MLC = (
    "Intel(R) Memory Latency Checker - v3.11\nMeasuring idle latencies (in ns)...\nNuma node {}\n{} {}\n"
    "Measuring Peak Injection Memory Bandwidths for the system\nALL Reads : {}\n"
    "Measuring Loaded Latencies for the system\n {} {} {}\n 00001 5 6\n"
)
HWLOC_1 = (
    '<topology><object type="Machine" os_index="0"><distances nbobjs="1" relative_depth="1" latency_base="{}">'
    '<latency value="{}"/></distances><object type="NUMANode" os_index="{}" cpuset="0x1" local_memory="{}"/></object></topology>'
)
CURVES = "read_percent,bandwidth_gb_per_s,latency_ns\n{},{},{}\n100,20,200\n100,30,300\n"
TEXTS: dict[str, tuple[str, tuple[str, ...], str, Callable[[Path], Any]]] = {
    "numactl": ("n.txt", ("1", "0", "0", "64", "0", "0", "10"), NUMACTL, readers.read),
    "hwloc": ("h.xml", ("1.0", "10.0", "0", "67108864"), HWLOC_1, readers.read),
    "MLC": ("m.txt", ("0", "0", "80.5", "200.5", "00000", "250.5", "300.5"), MLC, calibrate.calibrate),
    "Mess": ("c.csv", ("100", "10", "100.5"), CURVES.replace("_gb_per_s", "").replace("_ns", ""), calibrate.calibrate),
    "curves": ("c.csv", ("100", "10", "100.5"), CURVES, profile.read_curves),
    "trace": ("t.csv", ("4096", "4096", "0", "0"), "offset,length,node,cpu,to\n{},{},{},{},shared\n", traces.read_trace),
}  # fmt: skip
"""File, the numbers in it, its text and who reads it."""


@pytest.mark.parametrize("name", TEXTS)
def test_no_reader_takes_what_is_no_number(name: str, tmp_path: Path) -> None:
    file, numbers, text, read = TEXTS[name]
    path = tmp_path / file
    path.write_text(text.format(*numbers))
    read(path)
    for place in range(len(numbers)):
        for odd in ODD:
            if name in ("numactl", "MLC") and (not odd or " " in odd or (place in LABELS and odd.isalpha())):
                continue  # a word less or more, or prose
            path.write_text(text.format(*numbers[:place], odd, *numbers[place + 1 :]), encoding="utf-8")
            assert refused(read, path), (place, odd)


LABELS = (0, 1, 4)
"""Numbers that lines of MLC begin with: prose does not."""


def refused(read: Callable[[Path], Any], path: Path) -> bool:
    try:
        read(path)
    except WorkbenchError as error:
        return "\n" not in str(error)
    return False


@pytest.mark.parametrize("word", [*ODD, " 4", "4 ", "0x", "4e3", "4.0", "010", "9" * 30])
def test_numbers_of_scripts_are_those_that_the_probe_reads(word: str) -> None:
    with pytest.raises(ValueError, match="no number"):
        c_number(word)


def test_a_script_with_other_numbers_is_refused(tmp_path: Path) -> None:
    document = recording.load(datasets_path("recordings") / "facts-X_corner.json.gz")
    script = next(s for s in document["scenarios"] if any(op["op"].startswith("create ") for op in s["ops"]))
    line = next(op for op in script["ops"] if op["op"].startswith("create "))
    document["scenarios"] = [script]
    verb, file, pages, *rest = line["op"].split()
    path = tmp_path / "x.json"
    for words, refused in ((pages, False), (f"{pages}_0", True), ("٤", True)):
        line["op"] = " ".join((verb, file, words, *rest))
        path.write_text(json.dumps(document))
        whole = recording.read(path)
        if refused:
            with pytest.raises(WorkbenchError, match="no number"):
                recording.to_scenario(whole, whole.scenarios[0])
        else:
            recording.to_scenario(whole, whole.scenarios[0])


@pytest.mark.parametrize("word", [*ODD, "+4", " 4", "4 ", ".", "1e", "inf", "-", "0x10"])
def test_numbers_that_programs_print(word: str) -> None:
    with pytest.raises(ValueError, match="no number"):
        parse_number(word)


@pytest.mark.parametrize("text", ["4_096", "1_000 MiB", "٤ KiB", "MiB", "3 percent", "1 radian", "0x10", "4 KiB KiB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(WorkbenchError, match="is not a size such as"):
        parse_bytes(text)


def test_sizes_are_exact() -> None:
    assert parse_bytes("017") == 17, "an expression with an octal number was 0"
    assert parse_bytes("9007199254740993 kB") == 9007199254740993000, "no float holds it"
    assert [parse_bytes(text) for text in (".5 KiB", "1e3", "8 bit", "0.1 kB")] == [512, 1000, 1, 100]
