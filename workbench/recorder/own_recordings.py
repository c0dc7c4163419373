"""Make the recordings of our own that ``datasets/recordings`` holds: ``python -m workbench.recorder.own_recordings``.

One boot for each emulated host with all families of scripts, and one for the kernel's own selftest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.data import datasets_path
from workbench.recorder.emulated_hosts import all_hosts
from workbench.recorder.qemu import emulate
from workbench.recorder.record import record
from workbench.recorder.scenario_generator import generate
from workbench.recorder.translate import to_script
from workbench.scenario import Scenario

SELFTEST = ("kernel-selftest-mbind", "kernel-selftest-mbind-private", "kernel-selftest-numa-allocation")


def make(name: str, kernel: list[Path], directory: Path, seed: int = 1) -> None:
    """Record one host by name, or ``selftest``."""
    out = directory / f"{name}.json.gz"
    if name == "selftest":
        scenarios = [Scenario.from_yaml(datasets_path("scenarios") / f"{stem}.yaml") for stem in SELFTEST]
        emulation = emulate(scenarios[0].host)
        record("".join(to_script(scenario, emulation) for scenario in scenarios), emulation.host, kernel, out)
    else:
        host = all_hosts()[name]
        record(generate(host, seed), host, kernel, out)


def main() -> None:
    """Record all hosts, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", type=Path, action="append", required=True, help="Debian package or directory")
    parser.add_argument("--directory", type=Path, default=datasets_path("recordings"))
    parser.add_argument("names", nargs="*", help="host names or selftest; all if none is given")
    arguments = parser.parse_args()
    for name in arguments.names or [*all_hosts(), "selftest"]:
        make(name, arguments.kernel, arguments.directory)
        print(name, flush=True)


if __name__ == "__main__":
    main()
