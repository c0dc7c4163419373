"""Every verb is described once; the probe and the README of the recordings know the same ones."""

from __future__ import annotations

import gzip
import json
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
        ("scenario a\ncreate g0 4 MMAP|HUGETLB\n", "'HUGETLB' is neither a number nor one of MMAP, SHARED, HUGETLB_2M"),
        ("scenario a\ncreate g0 4 mmap\n", "'mmap' is neither a number nor one of MMAP"),
        ("scenario a\ncreate g0 4 HUGETLB_2M|HUGETLB_1G\n", "names two sizes of huge pages"),
        ("scenario a\nt1 mbind g0 0 4 BLND 0\n", "'BLND' is neither a number nor one of DEFAULT"),
        ("scenario a\nmbind g0 0 4 BIND 0 MOVE|STRIKT\n", "'STRIKT' is neither a number nor one of STRICT"),
        ("scenario a\nsetpol 0x\n", "1 words behind the verb"),
        ("scenario a\nsetpol 0x 0\n", "'0x' is neither a number"),
        ("scenario a\nmemfd g0 512 4M\n", "'4M' is neither a number nor one of 2M, 1G"),
        ("scenario a\nvm SNP\n", "'SNP' is neither a number nor one of none, sw_protected"),
        ("scenario a\nkvmcap FLAGS\n", "'FLAGS' is neither a number nor one of MEMORY_ATTRIBUTES"),
        ("scenario a\nattr g0 0 4 privat\n", "'privat' is neither a number nor one of private, shared"),
        ("scenario a\nconvert g0 0 4 Shared\n", "'Shared' is neither a number"),
        ("scenario a\ntouch g0 0 4 random\n", "'random' is not one of seq, rev, rand, stride"),
        ("scenario a\npin g0 0 4 io_uring\n", "'io_uring' is not one of uring, splice"),
        ("scenario a\nmmap g0 shared\n", "'shared' is not one of private"),
        ("scenario a\npool 3M 0 4\n", "'3M' is not one of 2M, 1G"),
        ("scenario a\neat 0 4 fast\n", "'fast' is not one of bind"),
    ],
)
def test_what_the_probe_would_not_understand(script, message):
    with pytest.raises(WorkbenchError, match=message):
        language.check(script)


def test_names_and_numbers_are_those_of_the_probe():
    """A name that the probe has not would be 0 there."""
    tables = dict(re.findall(r"static const struct name (\w+)_names\[\] = \{(.*?)\n?\};", PROBE.read_text(), re.DOTALL))
    named = {name: tuple(re.findall(r'\{ "(\w+)", ', text)) for name, text in tables.items()}
    assert named == language.NAMES
    language.check("scenario a\ncreate g0 512 HUGETLB_2M|MMAP|0x8\nmbind g0 0 4 -1 0 16\nkvmcap 244\nvm 6\n")


def test_scripts_of_the_recordings_are_understood():
    for path in sorted(datasets_path("recordings").rglob("*.json.gz")):
        script = json.loads(gzip.decompress(path.read_bytes())).get("scenario_text")
        if isinstance(script, str):
            language.check(re.sub(" seed=[0-9]+", "", script))  # in headers of the first ones


def test_every_verb_has_a_usage_line():
    lines = list(language.usage())
    assert len(lines) == len(language.VERBS)
    assert "punch gI BYTES BYTES: fallocate with PUNCH_HOLE and KEEP_SIZE" in lines
    assert any(line.startswith("cat PATH") and "not replayed: reads a file" in line for line in lines)
