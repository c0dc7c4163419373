"""What the recordings of private memory show, read from them; and that they hold what the generator makes."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest

from workbench.data import datasets_path
from workbench.recorder import private_scripts
from workbench.truth.recording import read, unpack_place

FOLDER = datasets_path("recordings", "private")
HOSTS = private_scripts.hosts()
HANDOVER = private_scripts.handover_hosts()


def document(name):
    """A recording as plain data."""
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


def operations(data, script):
    """The operations of one script."""
    (found,) = (entry["ops"] for entry in data["scenarios"] if entry["name"] == script)
    return found


def test_files():
    names = {path.name.removesuffix(".json.gz") for path in FOLDER.glob("*.json.gz")}
    assert names == {*HOSTS, *(f"{name}-kho-{kho}" for name in HANDOVER for kho in ("off", "on"))}


@pytest.mark.parametrize("name", HOSTS)
def test_scripts_are_those_of_the_generator(name):
    data = document(name)
    assert data["scenario_text"] == private_scripts.generate(HOSTS[name])
    assert len(data["scenarios"]) == 76 and data["done"]
    assert data["kvm"]["vm_types"] == 3, "types 0 and 1: default and SW_PROTECTED_VM"
    assert read(FOLDER / f"{name}.json.gz").topology == name


def test_there_are_300_of_them():
    assert sum(len(document(name)["scenarios"]) for name in HOSTS) >= 300


TABLE = {
    "none": {"flags": 3, "attributes": 0, "create": (0, 0, 0, 0, 22), "private": 22, "mbind": (14, 0, 14, 0)},
    "sw_protected": {"flags": 1, "attributes": 8, "create": (0, 0, 22, 22, 22), "private": 0, "mbind": (14, 0, 14, 14)},
}
"""By VM type: KVM_CAP_GUEST_MEMFD_FLAGS, KVM_CAP_MEMORY_ATTRIBUTES, errno of create with flags 0 to 4, of
KVM_SET_MEMORY_ATTRIBUTES(PRIVATE), and of mbind on the file with flags 0 to 3."""


@pytest.mark.parametrize("name", HOSTS)
def test_table_of_vm_types(name):
    by_type, seen = {}, None
    for entry in operations(document(name), "vm_types"):
        verb, *words = entry["op"].split()
        if verb == "vm":
            assert entry["errno"] == (0 if words[0] in TABLE else 22)
            seen = by_type.setdefault(words[0], {"create": [], "mbind": []})
        elif verb == "kvmcap" and words[0] in ("GUEST_MEMFD_FLAGS", "MEMORY_ATTRIBUTES"):
            seen["flags" if "FLAGS" in words[0] else "attributes"] = entry["ret"]
        elif verb in ("create", "mbind"):
            seen[verb].append(entry["errno"])
        elif verb == "attr":
            seen["private"] = entry["errno"]
        elif verb == "convert":
            assert entry["errno"] in (25, 9), "no in-place conversion in 7.3, or no file"
    for vm_type, expected in TABLE.items():
        found = by_type[vm_type]
        assert {key: found[key] for key in ("flags", "attributes", "private")} == {
            key: expected[key] for key in ("flags", "attributes", "private")
        }
        assert tuple(found["create"]) == expected["create"] and tuple(found["mbind"][:4]) == expected["mbind"]


@pytest.mark.parametrize("name", HOSTS)
def test_pages_drift_to_whoever_touches_them_next(name):
    """Out of place, without a policy: of the pages taken back, those of the shared quarter lie with the new vCPU."""
    data = document(name)
    for script, drifts in (("drift", True), ("drift_bound", False)):
        ops = operations(data, script)
        runs = unpack_place(next(entry["place"] for entry in ops if entry["op"].startswith("reveal")))
        assert (len({node for node, _ in runs}) == 2) is drifts
        assert sum(pages for _, pages in runs) == 64


def test_a_file_that_can_be_mapped_serves_shared_accesses_too():
    """With MMAP the memslot is of guest_memfd alone: the guest's shared pages are not those of the other backend."""
    first = {}
    for name in HOSTS:
        for script in document(name)["scenarios"]:
            words = [entry["op"].split() for entry in script["ops"]]
            flags = next((w[3] for w in words if w[0] == "create"), None)
            shared = [e for e in script["ops"] if e["op"].startswith("place g1") and "place" in e]
            touched = any(w[0] == "touch" and w[1] == "g1" for w in words)
            converts = any(w[:1] == ["attr"] and w[-1] == "shared" for w in words)
            guest = any("vtouch" in w for w in words)
            if script["name"].startswith(("memfd", "unbound")) and converts and guest and not touched:
                first.setdefault(flags, Counter())[
                    any(node is not None for e in shared for node, _ in unpack_place(e["place"]))
                ] += 1
    assert first.get("MMAP", Counter())[True] == 0


@pytest.mark.parametrize("name", HANDOVER)
def test_areas_for_handover_are_lost_to_guest_memfd_only(name):
    filled = {}
    areas = {}
    for kho in ("off", "on"):
        data = document(f"{name}-kho-{kho}")
        state = operations(data, "areas")[0]["kho"]
        assert state["present"] == state["liveupdate"] == (kho == "on")
        areas[kho] = Counter()
        for _, pages, node in state["scratch"]:
            areas[kho][node] += pages
        for script in data["scenarios"]:
            for entry in script["ops"]:
                if entry["op"].startswith("fill"):
                    filled[kho, script["name"]] = entry["pages"]
                    assert entry["dead"] == "DEAD signal 9", "the OOM killer ends it"
    for node in range(len(HANDOVER[name].nodes)):
        lost = filled["off", f"fill_create_{node}"] - filled["on", f"fill_create_{node}"]
        # Steps of 256 pages, and what the background holds: within 1024 pages of the node's areas.
        assert abs(lost - areas["on"][node]) <= 1024
        tmpfs = filled["off", f"fill_memfd_{node}"] - filled["on", f"fill_memfd_{node}"]
        assert abs(tmpfs) <= 1024
