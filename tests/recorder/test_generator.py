"""Generated scripts are the same for the same seed, name only what the host has, and are read by verify."""

from __future__ import annotations

import json

import pytest

from workbench.recorder.emulated_hosts import all_hosts
from workbench.recorder.language import check as check_script
from workbench.recorder.scenario_generator import FAMILIES, Place, generate

HOSTS = all_hosts()


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_same_seed_same_text(name):
    assert generate(HOSTS[name], 3) == generate(HOSTS[name], 3)
    assert generate(HOSTS[name], 3) != generate(HOSTS[name], 4)


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_scripts_are_well_formed(name):
    text = generate(HOSTS[name])
    check_script(text)
    place = Place.of(HOSTS[name])
    tasks = 1
    for line in text.splitlines():
        words = line.split()
        if words[0] == "scenario":
            tasks = int(words[2].removeprefix("tasks="))
            deliberate = words[1].startswith("invalid")
            continue
        if words[0][0] == "t" and words[0][1:].isdigit():
            assert int(words[0][1:]) < tasks
            words = words[1:]
        if words[0] == "setcpu" and not deliberate:
            assert int(words[1]) in place.cpus
        if words[0] == "weights" and ":" in words[1] and not deliberate:
            assert {int(pair.split(":")[0]) for pair in words[1].split(",")} == set(place.memory_nodes)
        if words[0] in ("eat", "eatto"):
            assert int(words[1]) in place.memory_nodes
    names = {line.split()[1].rstrip("0123456789") for line in text.splitlines() if line.startswith("scenario ")}
    assert len(names) >= 30


def test_hosts_cover_the_features():
    places = {name: Place.of(host) for name, host in HOSTS.items()}
    assert places["m4memoryless"].memory_nodes == (0, 2) and places["m4memoryless"].nodes == (0, 1, 2, 3)
    assert places["m6memfirst"].cpu_node == {0: 0, 1: 1, 2: 2, 3: 3}
    assert len(places["m14sparse"].nodes) == 14 and places["m14sparse"].cpu_node[5] == 5
    assert places["m3movable"].movable == (2,)


def test_one_family():
    text = generate(HOSTS["m2far"], families=("home",))
    assert text.count("scenario ") == FAMILIES["home"][1] and "scenario home1 " in text


def test_recorded_text_is_that_of_the_generator():
    """Recordings in datasets/ can be made again: their scripts are what the generator gives."""
    import gzip

    from workbench.data import datasets_path

    for name, host in HOSTS.items():
        data = json.loads(gzip.decompress((datasets_path("recordings") / f"{name}.json.gz").read_bytes()))
        assert data["scenario_text"] == generate(host), f"{name}: record it again"
        assert data["topology"] == json.loads(json.dumps(host.topology()))
