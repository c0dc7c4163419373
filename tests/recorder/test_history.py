"""The facts of datasets/linux/history.yaml are what the recordings say; all versions ran the same scripts."""

from __future__ import annotations

import gzip
import json
import re

import pytest
import yaml

from workbench.data import datasets_path
from workbench.recorder import history_scripts

HISTORY = yaml.safe_load((datasets_path("linux") / "history.yaml").read_text(encoding="utf-8"))
FILES = sorted(datasets_path("recordings", "history").glob("*.json.gz"))


def key(version):
    """``7.2.12`` as numbers, to compare."""
    return tuple(int(part) for part in version.split("."))


@pytest.fixture(scope="module")
def recordings():
    """Documents by (version, host)."""
    out = {}
    for path in FILES:
        data = json.loads(gzip.decompress(path.read_bytes()))
        version = re.search(r"Linux version (\d+\.\d+\.\d+)", data["kernel"]).group(1)
        assert path.name.startswith(version), f"{path.name} holds a recording of {version}"
        out[version, data["topology"]["name"]] = data
    return out


def test_every_version_ran_on_both_hosts(recordings):
    hosts = history_scripts.hosts()
    assert set(recordings) == {(version, host) for version in HISTORY["recorded"] for host in hosts}
    assert all(data["done"] and data["kvm"]["present"] == "1" for data in recordings.values())


@pytest.mark.parametrize("host", history_scripts.hosts())
def test_all_versions_ran_the_same_scripts(recordings, host):
    texts = {data["scenario_text"] for (_, name), data in recordings.items() if name == host}
    assert texts == {history_scripts.generate(history_scripts.hosts()[host])}


def answer(data, fact):
    """What a recording says about a fact."""
    (operations,) = (entry["ops"] for entry in data["scenarios"] if entry["name"] == fact["script"])
    said = [entry for entry in operations if entry["op"] == fact["line"]]
    return said[fact.get("number", 0)].get(fact["key"])


@pytest.mark.parametrize("fact", HISTORY["facts"], ids=lambda fact: fact["name"])
def test_facts_are_what_was_recorded(recordings, fact):
    changes = sorted(fact["answers"], key=key)
    for version in HISTORY["recorded"]:
        known = [since for since in changes if key(since) <= key(version)]
        if known:
            assert answer(recordings[version, "h3cxl"], fact) == fact["answers"][known[-1]], version


def test_placement_by_the_interleave_of_a_guest_memfd_came_between_6_18_and_7_2(recordings):
    """The table of the versions: accepted without effect, then obeyed."""
    pages = {version: answer(recordings[version, "h4asym"], {"script": "fact_interleave", "line": "place g0", "key": "place"})
             for version in ("6.18.15", "7.2.12", "7.3.4")}  # fmt: skip
    assert pages["6.18.15"].startswith("0*32,2*")
    assert pages["7.2.12"].startswith("0*1,1*1,2*1,3*1,0*1") and pages["7.3.4"] == pages["7.2.12"]
