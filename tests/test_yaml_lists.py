"""Long lists of flat mappings are read line by line: the same values as the parser's, and what the parser refuses is refused."""

from __future__ import annotations

import json
from unittest import mock

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from workbench import safe_yaml, yaml_lists
from workbench.errors import WorkbenchError

SCALARS = st.sampled_from([
    "0", "7", "007", "0x1f", "-3", "1_000", "1.5", "1e3", "yes", "null", "~", "on", "4 KiB", "a-b", "'0,2'", '"a: b"', "'x'",
    "''", "[1, 2]", "['a, b', c]", "[]", "!!str 3", "&a 1", "'it''s'", "12:30", "2001-01-01", "9" * 30, "9" * 41, "{x: 1}", "é",
])  # fmt: skip
KEYS = st.sampled_from(["op", "offset", "length", "nodes", "on", "y", "7", "'op'", "null"])
PAIRS = st.lists(st.tuples(KEYS, SCALARS), min_size=1, max_size=4, unique_by=lambda pair: pair[0])
FORMS = st.sampled_from(["flow", "block", "nested"])
BETWEEN = st.sampled_from(
    [
        "",
        "  # said\n",
        "\n",
        "other: [1]\nmore:\n",
        "  - 5\n",
        "    far\n",
        "text: |\n",
        "text: a\n",
        "q: 'a\n",
        " - 1\n",
    ]
)


def element(form: str, pairs: list[tuple[str, str]], indent: str = "  ") -> str:
    if form == "flow":
        return f"{indent}- {{{', '.join(f'{key}: {value}' for key, value in pairs)}}}\n"
    lines = f"\n{indent}  ".join(f"{key}: {value}" for key, value in pairs)
    return f"{indent}- {'- ' * (form == 'nested')}{lines}\n"


def both(text: str) -> None:
    """Read with and without the lines taken out: one answer, or one refusal."""
    answers = []
    for least in (2, 1 << 30):
        with mock.patch.object(yaml_lists, "LEAST", least):
            try:
                answers.append(repr(safe_yaml.load(text, "x")))
            except WorkbenchError as error:
                answers.append(str(error))
    assert answers[0] == answers[1]


@given(st.lists(st.tuples(FORMS, st.lists(PAIRS, min_size=1, max_size=6), BETWEEN), min_size=1, max_size=4))
def test_the_same_values_and_the_same_refusals(parts: list[tuple[str, list[list[tuple[str, str]]], str]]) -> None:
    both("operations:\n" + "".join("".join(element(form, one) for one in many) + after for form, many, after in parts))


@pytest.mark.parametrize(
    "head",
    [
        "operations:\n",
        "a: |\n",
        "a: >-\n",
        "a: 'b\n",
        'a: "b\n',
        "a: b\n",
        "a: [\n",
        "a: {b:\n",
        "- x\n",
        "a: &l\n",
        "? a\n:\n",
    ],
)
@pytest.mark.parametrize(
    "tail", ["", "    far\n", "  b: 1\n", "b: 'c'\n", "  - 'x\n", "...\n", "---\n", "b: *l\n", "]\n", "  'x'\n"]
)
def test_around_a_run_anything_may_stand(head: str, tail: str) -> None:
    for form in ("flow", "block"):
        both(head + element(form, [("op", "fault"), ("nodes", "'0'"), ("length", "4 KiB")]) * 5 + tail)


def test_a_long_list_is_taken_out_wherever_it_is() -> None:
    """The parser does not see it: that is what it is for."""
    flow = "base:\n  operations:\n" + element("flow", [("op", "fault")]) * 500
    block = yaml.safe_dump({"name": "x", "operations": [{"op": "fault", "offset": 4096 * i} for i in range(500)]})
    for text in (flow, block):
        taken = yaml_lists.take_out(text, lambda written: written)
        assert taken is not None
        assert len(taken.text.splitlines()) < 10
        assert safe_yaml.load(text, "x") == yaml.safe_load(text)


def test_a_key_that_is_there_twice_is_refused_with_its_lines() -> None:
    text = (
        "operations:\n"
        + "  - {op: fault}\n" * 100
        + "  - {op: fault, length: 1, length: 1}\n"
        + "  - {op: fault}\n" * 100
    )
    with pytest.raises(WorkbenchError, match="line 102, column 28: 'length' is there twice, in lines 102 and 102"):
        safe_yaml.load(text, "x")


NUMBERS = st.sampled_from(
    ["0", "-0", "7", "1.5", "1e3", "-2.5E-3", "9" * 40, "9" * 41, "1e999", "NaN", "-Infinity", "true", "null"]
)
TEXTS = st.text(st.sampled_from("ab<=~0123:#-,[]{}'&*!|>%@\\\t\n é\x7f\u2028\ud83d\ude00"), max_size=6)
JSON = st.recursive(
    st.one_of(NUMBERS, TEXTS.map(json.dumps), TEXTS.map(lambda text: json.dumps(text, ensure_ascii=False))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda many: f"[{', '.join(many)}]"),
        st.lists(st.tuples(TEXTS.map(json.dumps), inner), max_size=4).map(
            lambda many: "{" + ",\n".join(f"{key}: {value}" for key, value in many) + "}"
        ),
    ),
    max_leaves=12,
)


@example([("a", "9" * 41)], 0, "")
@example([("a", "1e999")], 0, "")
@example([("a", "NaN")], 0, "")
@example([("a", "1"), ("a", "2")], 0, "")
@example([("a", json.dumps("\ud83d"))], 0, "")
@example([("a", '"\x7f"')], 0, "")
@example([("a", '"b\x85c"')], 0, "")
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "1"]), JSON), max_size=3),
    st.integers(0, 80),
    st.sampled_from(["", *"[]{},:\"'#&*!|>% \n0e."]),
)
def test_json_is_read_as_the_yaml_that_it_is(pairs: list[tuple[str, str]], where: int, what: str) -> None:
    """The same values, or the same refusals, whichever reader it goes to; a character that strays in changes nothing of that."""
    text = "{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}\n"
    text = text[:where] + what + text[where:]
    answers = []
    for reader in (safe_yaml._from_json, mock.Mock(side_effect=ValueError)):
        with mock.patch.object(safe_yaml, "_from_json", reader):
            try:
                answers.append(repr(safe_yaml.load(text + "\n", "x")))
            except WorkbenchError as error:
                answers.append(str(error))
    if "find expected" not in answers[1]:  # a line break before a colon is no YAML
        assert answers[0] == answers[1]
    elif answers[0] != answers[1]:
        assert answers[0] == repr(json.loads(text))


@pytest.mark.parametrize("depth", [32, 33])
def test_json_is_read_as_deep_as_yaml(depth: int) -> None:
    text = '{"a": ' * (depth - 1) + "[]" + "}" * (depth - 1) + "\n"
    if depth <= safe_yaml.MAX_DEPTH:
        assert safe_yaml.load(text, "x") == json.loads(text)
    else:
        with pytest.raises(WorkbenchError, match="nested deeper than 32"):
            safe_yaml.load(text, "x")


def test_json_may_be_indented_by_tabs() -> None:
    """YAML may not; JSON that a program has written so is JSON."""
    value = {"name": "x", "operations": [{"op": "fault", "length": 4096}]}
    assert safe_yaml.load(json.dumps(value, indent="\t"), "x") == value
