"""Make the recordings of our own that ``datasets/recordings`` holds: ``python -m workbench.recorder.own_recordings``.

Sets: ``placement`` (one boot for each emulated host with all families of scripts, one with files of many runs, one for
the kernel's own selftest), ``private`` (guests with private memory; needs a kernel of ``workbench oracle build``),
``metadata`` (tables and slabs), ``pins`` (pages that others hold), ``handover`` (through a kexec; the same kernel),
``repeated`` (fills, in three boots of two hosts) and ``history`` (the same scripts on every version; one file for each
version and host).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from workbench.data import datasets_path
from workbench.recorder import (
    handover_scripts,
    history_scripts,
    kernel_package,
    metadata_scripts,
    pin_scripts,
    private_scripts,
)
from workbench.recorder.emulated_hosts import all_hosts
from workbench.recorder.qemu import EmulatedHost, emulate
from workbench.recorder.record import record
from workbench.recorder.scenario_generator import generate
from workbench.recorder.translate import to_script
from workbench.scenario import Scenario
from workbench.topology.host import Host

MANY_RUNS = """\
scenario more_runs_than_one_observation_lists
create g0 80000 MMAP|SHARED
mbind g0 0 80000 INTERLEAVE 0-1
touch g0 0 80000 seq
place g0
punch g0 30000 3
touch g0 30000 3 seq
place g0
scenario more_runs_in_random_order
create g0 80000 MMAP|SHARED
mbind g0 0 80000 WEIGHTED_INTERLEAVE 0-1
touch g0 0 80000 rand 11
place g0
scenario few_runs_after_them
create g0 64 MMAP|SHARED
mbind g0 0 64 INTERLEAVE 0-1
touch g0 0 64 seq
place g0
"""
"""Files of which every page but a few is a run of its own."""
SELFTEST = ("kernel-selftest-mbind", "kernel-selftest-mbind-private", "kernel-selftest-numa-allocation")
FILLS = ("full_local", "full_pref", "full_pmany", "full_ilv", "full_wil", "wm_pref", "wm_pmany")
FILLS_OF_TUNEQ = (
    "full_pref0", "full_pref1", "full_local_cpu0", "full_local_cpu2", "full_wil", "full_prefmany", "wm_pref",
)  # fmt: skip
BOOTS = 3
Boot = tuple[str, EmulatedHost, str, str]
"""File name without its ending, host, script, more words for the kernel's command line."""


def placement(seed: int = 1) -> Iterator[Boot]:
    """Ordinary guests on every emulated host, files of many runs, and the kernel's selftest."""
    for name, host in all_hosts().items():
        yield name, host, generate(host, seed), ""
    yield "manyruns", emulate(Host.from_machine("xeon-e5-2680-2s")).host, MANY_RUNS, ""
    scenarios = [Scenario.from_yaml(datasets_path("scenarios") / f"{stem}.yaml") for stem in SELFTEST]
    emulation = emulate(scenarios[0].host)
    yield "selftest", emulation.host, "".join(to_script(scenario, emulation) for scenario in scenarios), ""


def private(seed: int = 1) -> Iterator[Boot]:
    """Private memory on four hosts, and how much a policy gives with and without areas for kexec handover."""
    for name, host in private_scripts.hosts().items():
        yield name, host, private_scripts.generate(host, seed), ""
    for name, host in private_scripts.handover_hosts().items():
        for kho in ("off", "on"):
            yield (
                f"{name}-kho-{kho}",
                host,
                private_scripts.capacity(host, seed),
                f"kho={kho} liveupdate={kho}",
            )


def metadata(seed: int = 1) -> Iterator[Boot]:
    """What placements cost beside their pages, on three hosts."""
    for name, host in metadata_scripts.hosts().items():
        yield name, host, metadata_scripts.generate(host, seed), ""


def pins(seed: int = 1) -> Iterator[Boot]:
    """Pages that others hold, on three hosts; those named ``-private`` need a kernel of ``workbench oracle build``."""
    for name, host in pin_scripts.hosts().items():
        yield name, host, pin_scripts.generate(host, seed), ""
        yield f"{name}-private", host, pin_scripts.generate_private(host, seed), ""


def handover() -> Iterator[Boot]:
    """Through a kexec."""
    for name, host, script in handover_scripts.boots():
        yield name, host, script, handover_scripts.WORDS


def repeated(seed: int = 1) -> Iterator[Boot]:
    """Fills, three times each: on a published host with restricted per-CPU lists, and on one of ours with the default ones."""
    published = json.loads(gzip.decompress((datasets_path("recordings") / "tuneq.json.gz").read_bytes()))
    scripts = re.split(r"^(?=scenario )", published["scenario_text"], flags=re.MULTILINE)
    filling = [script for script in scripts if script.startswith(tuple(f"scenario {name} " for name in FILLS_OF_TUNEQ))]
    defaults = all_hosts()["m5defaults"]
    hosts = {
        "tuneq": (EmulatedHost.from_topology(published["topology"]), "".join(filling).replace(" seed=1", "")),
        "m5defaults": (defaults, generate(defaults, seed, FILLS)),
    }
    for name, (host, script) in hosts.items():
        for number in range(1, BOOTS + 1):
            yield f"{name}-{number}", host, script, ""


def history(version: str, seed: int = 7) -> Iterator[Boot]:
    """The scripts of the history on both of its hosts, for one version."""
    for name, host in history_scripts.hosts().items():
        yield f"{version.split('+')[0]}-{name}", host, history_scripts.generate(host, seed), ""


SETS: dict[str, Callable[[], Iterator[Boot]]] = {
    "placement": placement, "private": private, "metadata": metadata,
    "pins": pins, "handover": handover, "repeated": repeated,
}  # fmt: skip


def main() -> None:
    """Record a set, or those files of it that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", type=Path, action="append", required=True, help="as for workbench record")
    parser.add_argument("--set", choices=[*SETS, "history"], default="placement", dest="chosen")
    parser.add_argument("--directory", type=Path, help="where to write; the set's place in datasets if left out")
    parser.add_argument("names", nargs="*", help="names of files without their ending; all if none is given")
    arguments = parser.parse_args()
    folder = "" if arguments.chosen == "placement" else arguments.chosen
    directory = arguments.directory or datasets_path("recordings") / folder
    kernel = kernel_package.load(arguments.kernel)
    boots = history(kernel.version) if arguments.chosen == "history" else SETS[arguments.chosen]()
    for name, host, script, append in boots:
        if arguments.names and name not in arguments.names:
            continue
        started = time.monotonic()
        record(script, host, kernel, directory / f"{name}.json.gz", kernel_arguments=append)
        print(f"{name} {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
