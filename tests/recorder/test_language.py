"""Every verb is described once; the probe and the README of the recordings know the same ones."""

from __future__ import annotations

import re

import pytest

from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.recorder import language
from workbench.recorder.record import PROBE


def probe_verbs():
    """Names in the probe's table, and those that its supervisor compares with."""
    text = PROBE.read_text()
    table = re.findall(r'^\t\{ "(\w+)", do_', text, re.MULTILINE)
    supervisor = re.findall(r'!strcmp\(verb, "(\w+)"\)', text)
    internal = re.findall(r'verb_\w+ = \{ "(\w+)"', text)
    return set(table) | set(supervisor) | set(internal)


def test_the_probe_knows_the_same_verbs():
    assert probe_verbs() == set(language.VERBS)


def test_the_readme_shows_the_table():
    text = (datasets_path("recordings") / "README.md").read_text(encoding="utf-8")
    assert language.table() in text


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("", "first line must be 'scenario"),
        ("create g0 4 0\n", "first line must be 'scenario"),
        ("scenario a\ncreat g0 4 0\n", "script line 2 .creat g0 4 0.: 'creat' is no verb; known are alias, anon"),
        ("scenario a\n# note\n\nt1 punch g0 4\n", "script line 4 .*: 2 words behind the verb; it is 'punch gI BYTES"),
        ("scenario a\ntouch h0 0 4\n", "'h0' is no file; files are g0 to g7"),
        ("scenario a\ntouch g9 0 4\n", "'g9' is no file"),
        ("scenario a tasks=9\n", "'tasks=9'; behind the name only"),
        ("scenario a\nscenario a\n", "there twice"),
        ("scenario\n", "empty or there twice"),
        ("scenario a\nt1\n", "script line 2 .t1.: '' is no verb"),
    ],
)
def test_what_the_probe_would_not_understand(script, message):
    with pytest.raises(WorkbenchError, match=message):
        language.check(script)


def test_every_verb_has_a_usage_line():
    lines = list(language.usage())
    assert len(lines) == len(language.VERBS)
    assert "punch gI BYTES BYTES: fallocate with PUNCH_HOLE and KEEP_SIZE" in lines
    assert any(line.startswith("cat PATH") and "not replayed: reads a file" in line for line in lines)
