"""The lock is whole: what is installed without resolving meets every requirement, on every Python that it serves.

``make env`` installs the pins of ``requirements.lock`` as they stand. So each requirement of the project, and of each
locked distribution with the extras that its pin names, must be met by another pin. What a distribution requires is
read from its installed metadata: nothing is fetched, and a pin that is missing is missed here, not on the day on which
something is released.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
SERVED = [line.split(" :: ")[-1] for line in PYPROJECT["project"]["classifiers"] if ":: Python :: 3." in line]
HERE = dict(default_environment())
MACHINES = {
    "linux-x86_64": {"platform_machine": "x86_64"},
    "linux-aarch64": {"platform_machine": "aarch64"},
    "macos-arm64": {"platform_machine": "arm64", "sys_platform": "darwin", "platform_system": "Darwin"},
}
Environment = dict[str, str]
pytestmark = pytest.mark.skipif(
    (Path(sys.prefix) / "conda-meta").is_dir(), reason="conda's packages are not of the lock"
)


def blocks(lock: str) -> list[str]:
    """One text for each pin, its hashes included."""
    return re.split(r"\n(?=\S)", lock.strip())


@cache
def pin_of(block: str) -> Requirement:
    return Requirement(block.split("\\\n")[0])


def pins(lock: str, environment: Environment) -> dict[str, Requirement]:
    """The pins that are installed in ``environment``, by normalised name; two of one name are an error."""
    found: dict[str, Requirement] = {}
    for block in blocks(lock):
        pin = pin_of(block)
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice"
            found[name] = pin
    return found


def version(pin: Requirement) -> str:
    """The version of ``name==version``."""
    (specifier,) = pin.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, f"{pin} is not pinned"
    return specifier.version


@cache
def declared(name: str) -> tuple[str | None, tuple[Requirement, ...]]:
    """The installed version of a distribution and what it requires; None when it is not installed."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None, ()
    return distribution.version, tuple(Requirement(line) for line in distribution.requires or ())


@cache
def required_by(name: str, extras: frozenset[str], environment: tuple[tuple[str, str], ...]) -> list[Requirement]:
    """What an installed distribution requires with ``extras`` in ``environment``, here as pairs."""
    values = [dict(environment) | {"extra": extra} for extra in ("", *extras)]
    wanted = declared(name)[1]
    return [r for r in wanted if r.marker is None or any(r.marker.evaluate(value) for value in values)]


def project_requirements() -> Iterator[tuple[str, Requirement]]:
    """What the project asks for: to run, to be tested, and to be built, since nothing is built in isolation."""
    project = PYPROJECT["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"] + PYPROJECT["build-system"]["requires"]
    return (("pyproject.toml", Requirement(line)) for line in wanted)


def requirements(locked: dict[str, Requirement], environment: Environment) -> Iterator[tuple[str, Requirement]]:
    """Who asks for what in ``environment``; of a pin that is not installed here in its version, nothing is known."""
    yield from project_requirements()
    for name, pin in locked.items():
        if declared(name)[0] == version(pin):
            for requirement in required_by(name, frozenset(pin.extras), tuple(environment.items())):
                yield name, requirement


def faults(lock: str, environment: Environment) -> dict[str, str]:
    """What no pin of ``lock`` meets, and the pins that nothing requires: a sentence for each normalised name."""
    locked = pins(lock, environment)
    found: dict[str, str] = {}
    required = set()
    for source, requirement in requirements(locked, environment):
        name = canonicalize_name(requirement.name)
        required.add(name)
        pin = locked.get(name)
        if pin is None:
            found[name] = f"{source} requires {requirement}, which is not locked"
        elif not requirement.specifier.contains(version(pin), prereleases=True):
            found[name] = f"{source} requires {requirement}, locked is {pin}"
        elif not {canonicalize_name(e) for e in requirement.extras} <= {canonicalize_name(e) for e in pin.extras}:
            found[name] = f"{source} requires {requirement}, locked without the extra is {pin}"
    return found | {name: f"nothing requires {pin}" for name, pin in locked.items() if name not in required}


def environment(python: str, machine: str) -> Environment:
    """The values of the markers under ``python``, a full version, on another machine."""
    minor = python.rpartition(".")[0]
    return HERE | MACHINES[machine] | {
        "python_version": minor, "python_full_version": python, "implementation_version": python,
    }  # fmt: skip


def test_every_pin_is_exact_and_has_hashes() -> None:
    for block in blocks(LOCK):
        assert version(pin_of(block))
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), block


def test_environment_is_what_the_lock_says() -> None:
    assert {name: declared(name)[0] for name in pins(LOCK, HERE)} == {
        name: version(pin) for name, pin in pins(LOCK, HERE).items()
    }, "run `make env`"


def test_every_requirement_is_met_by_a_pin() -> None:
    assert faults(LOCK, HERE) == {}, "run `make lock`"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", [f"{minor}.{patch}" for minor in SERVED for patch in (0, 99)])
def test_every_requirement_is_met_on_other_pythons(python: str, machine: str) -> None:
    there = environment(python, machine)
    unknown = {name for name, pin in pins(LOCK, there).items() if declared(name)[0] != version(pin)}
    assert not unknown & pins(LOCK, HERE).keys()
    # What such a pin requires is not known here, so what only it requires seems to be required by nothing.
    found = {name: fault for name, fault in faults(LOCK, there).items() if not (unknown and "nothing" in fault)}
    assert found == {}, "run `make lock`"


def test_every_pin_that_is_taken_out_is_missed() -> None:
    names = [canonicalize_name(pin_of(block).name) for block in blocks(LOCK)]
    for taken in pins(LOCK, HERE):
        rest = [block for name, block in zip(names, blocks(LOCK), strict=True) if name != taken]
        assert "which is not locked" in faults("\n".join(rest), HERE).get(taken, ""), taken


def test_every_extra_that_is_taken_out_is_missed() -> None:
    with_extras = {name: pin for name, pin in pins(LOCK, HERE).items() if pin.extras}
    assert with_extras, "the lock has lost its extras"
    for name, pin in with_extras.items():
        without = LOCK.replace(f"{pin.name}[{','.join(sorted(pin.extras))}]==", f"{pin.name}==")
        assert "locked without the extra" in faults(without, HERE).get(name, ""), pin


def test_a_version_that_is_not_allowed_is_noticed() -> None:
    lock = re.sub(r"(?m)^numpy==\S+", "numpy==1.0", LOCK)
    assert faults(lock, HERE)["numpy"].endswith("locked is numpy==1.0")


def test_a_pin_that_nothing_requires_is_noticed() -> None:
    assert faults(LOCK + "\nneedless==1.0", HERE) == {"needless": "nothing requires needless==1.0"}


def test_two_pins_of_one_name_are_refused() -> None:
    with pytest.raises(AssertionError, match="pinned twice"):
        pins(LOCK + "\n" + LOCK, HERE)


def test_the_readme_names_the_pythons_that_the_lock_serves() -> None:
    assert HERE["python_version"] in SERVED
    assert f"Python {', '.join(SERVED[:-1])} or {SERVED[-1]}" in (ROOT / "README.md").read_text()
