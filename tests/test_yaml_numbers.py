"""Plain scalars of YAML are those of version 1.2's core schema at every entry; what is none is said with field and text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench import safe_yaml
from workbench.commands.cli import read_scenario
from workbench.errors import WorkbenchError
from workbench.explorer.editors import WorkloadEditor
from workbench.sweeps.grid import Grid
from workbench.topology.host import Host

VALUES: dict[str, Any] = {
    "0": 0, "12": 12, "+12": 12, "-3": -3, "0o17": 15, "0x1F": 31, "00": 0, "07": 7,
    "1.5": 1.5, ".5": 0.5, "+.5": 0.5, "5.": 5.0, "1e5": 1e5, "1.5E-3": 1.5e-3, "007.5": 7.5, "-.inf": float("-inf"),
    "true": True, "FALSE": False, "null": None, "~": None, "": None,
    **{text: text for text in (
        "4_096", "1_000.5", "0b1", "1:30", "190:20:30.15", "-0x10", "0x_f", "0o18", "1e", "e5", ".", "yes", "No", "on", "OFF",
        "y", "tRue", "nULL", "2026-11-27", "=", "<<", "\u0663", "1\u00a00", "inf", "nan",
    )},
}  # fmt: skip
NONE = ["4_096", "0b1", "1:30", "-0x10", "0x_f", "yes", "off", "\u0663"]
"""Plain scalars that are no numbers, though YAML 1.1 or Python has some for one."""


@pytest.mark.parametrize("written", VALUES)
def test_plain_scalars_are_those_of_the_core_schema(written: str) -> None:
    for text in (f"a: {written}\n", f"a: [{written or 'null'}]\n"):
        (value,) = found if isinstance(found := safe_yaml.load(text, "x")["a"], list) else [found]
        assert (type(value), value) == (type(VALUES[written]), VALUES[written])


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("017", "017 is 15 to some and 17 to others"), ("-010", "-010 is -8 to some and -10 to others"),
        ("08", "08 is a text to some and 8 to others"), ("1e400", "1e400 is beyond the largest number"),
        ("!!int 4_096", "'4_096' is no number"), ("!!int 1:30", "'1:30' is no number"), ("!!float 1_0", "'1_0' is no number"),
        ("!!bool yes", "'yes' is neither true nor false"), ("9" * 41, "has 41 characters; numbers have at most 40"),
    ],
)  # fmt: skip
def test_what_two_readers_take_for_different_things(written: str, said: str) -> None:
    with pytest.raises(WorkbenchError, match=said) as caught:
        safe_yaml.load(f"b: 1\na: {written}\n", "x")
    assert "line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_long_lists_have_the_same_scalars() -> None:
    """Which are read line by line."""
    plain = [written for written in VALUES if written.isascii() and written not in ("", "=", "<<", "~")]
    lines = "".join(f"- {{key: {written}}}\n" for written in plain) * 4
    read = [one["key"] for one in safe_yaml.load(f"a:\n{lines}", "x")["a"]]
    assert list(map(repr, read)) == [repr(VALUES[written]) for written in plain] * 4


TEXTS = st.one_of(
    st.sampled_from([*VALUES, "017", "08", "1e400"]), st.text(alphabet="0123456789.eE+-_xob:yn ~'\"#", max_size=8)
)


@given(
    st.recursive(
        st.one_of(TEXTS, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()), st.lists, max_leaves=6
    )
)
def test_what_is_written_is_read_back_by_both_versions(value: object) -> None:
    text = safe_yaml.dump({"a": value})
    for read in (safe_yaml.load(text, "x"), yaml.safe_load(text)):
        assert json.dumps(read["a"]) == json.dumps(value)


HOST = "{name: h, nodes: [{id: 0, memory_bytes: 64 MiB, cpus: [0]}], distances: [[10]]}"


def scenario(more: str) -> Callable[[str, Path], object]:
    return lambda word, _: wb.Scenario.from_yaml(f"host: {HOST}\n{more.format(word)}\n")


def explored(word: str, _: Path) -> object:
    """What somebody types into the list of operations."""
    editor = WorkloadEditor.__new__(WorkloadEditor)
    mapping: dict[str, Any] = {"host": safe_yaml.load(f"host: {HOST}\n", "x")["host"]}
    editor._written(f"- {{op: fault, offset: {word}}}")(mapping)
    return wb.Scenario.from_mapping(mapping)


ENTRIES: dict[str, tuple[str, Callable[[str, Path], object]]] = {
    "scenario, whole number": ("seed", scenario("seed: {}")),
    "scenario, size": ("guest.memory", scenario("guest: {{memory: {}}}")),
    "scenario, key": ("weights", scenario("boot: {{weights: {{{}: 1}}}}")),
    "scenario, value of a key": ("weights", scenario("boot: {{weights: {{0: {}}}}}")),
    "scenario, fraction": ("write_fraction", scenario("operations: [{{op: access, write_fraction: {}}}]")),
    "scenario, truth": ("strict", scenario("strict: {}")),
    "host": ("memory_bytes", lambda word, _: Host.from_yaml(HOST.replace("64 MiB", word) + "\n")),
    "grid, size": ("range", lambda word, _: Grid.from_yaml(f"base: {{seed: 1}}\naxes: {{seed: {{range: [0, {word}, 1]}}}}\n")),
    "--set": ("seed", lambda word, _: read_scenario("weighted-interleave-cxl", [f"seed={word}"])),
    "explorer": ("offset", explored),
}  # fmt: skip


@pytest.mark.parametrize("word", NONE)
@pytest.mark.parametrize("entry", ENTRIES)
def test_no_number_is_refused_with_its_field_and_text(entry: str, word: str, tmp_path: Path) -> None:
    field, read = ENTRIES[entry]
    with pytest.raises(WorkbenchError, match=field) as caught:
        read(word, tmp_path)
    said = str(caught.value)
    assert "\n" not in said and (word in said or ascii(word)[1:-1] in said)


def test_off_is_the_text_that_a_field_may_have() -> None:
    """Without quotes, in a file and on the command line; it was false, which no field of that kind has."""
    assert wb.Scenario.from_yaml(f"host: {HOST}\nmetadata: off\n").metadata == "off"
    assert read_scenario("weighted-interleave-cxl", ["metadata=off"]).metadata == "off"
    assert wb.Scenario.from_yaml(f"host: {HOST}\nname: no\nseed: 1e5\n").name == "no"
