"""Damaged topologies and configurations: every reader answers with a host or one line, never with anything else."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.damage import EXAMPLES, answers, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.topology import readers
from workbench.topology.host import Host
from workbench.vmconfig.placement import scenario_of
from workbench.vmconfig.readers import read

HERE = Path(__file__).parents[1] / "topology"
HOST = Host.from_machine("xeon-e5-2680-2s")
DMESG = (
    b"ACPI: SRAT: PXM 0 -> APIC 0x00 -> Node 0\nSRAT: PXM 1 -> APIC 0x02 -> Node 1\n"
    b"ACPI: SRAT: Node 0 PXM 0 [mem 0x00000000-0x7fffffff]\nACPI: SRAT: Node 1 PXM 1 [mem 0x80000000-0xffffffff]\n"
    b".... node  #0, CPUs:  #1\nacpi/hmat: HMAT: Locality: Flags:00 Type:Read Latency Initiator Domains:1 Target Domains:2 "
    b"Base:1\n"
    b"acpi/hmat:   Initiator-Target[0-1]:80 nsec\nACPI: SLIT: distances:\n 10 20\n 20 10\n"
)
LSCPU = b'{"lscpu":[{"field":"NUMA node0 CPU(s):","data":"0-1"}]}\nnode 0 size: 10 MB\nnode distances:\nnode 0\n0: 10\n'
CAPABILITIES = (
    b"<capabilities><host><topology><cells num='1'><cell id='0'><memory unit='KiB'>4194304</memory>"
    b"<pages unit='KiB' size='2048'>512</pages><distances><sibling id='0' value='10'/></distances>"
    b"<cpus num='1'><cpu id='0'/></cpus></cell></cells><interconnects><latency initiator='0' target='0' type='read' value='8'/>"
    b"</interconnects></topology></host></capabilities>"
)


def archived(text: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as out:
        for name, content in json.loads(text).items():
            member = tarfile.TarInfo(f"m/sys/{name}".replace("sys/../", ""))
            member.size = len(content)
            out.addfile(member, io.BytesIO(content.encode()))
    return raw.getvalue()


CASES = HERE / "cases"
HOSTS = [
    *((path.name, path.read_bytes()) for kind in ("numactl", "hwloc") for path in sorted((CASES / kind).iterdir())),
    *((f"{path.stem}.tar", archived(path.read_bytes())) for path in sorted((CASES / "sysfs").iterdir())),
    ("boot.log", DMESG),
    ("lscpu.txt", LSCPU),
    ("capabilities.xml", CAPABILITIES),
]
MACHINES = [(path.name, path.read_bytes()) for path in sorted((HERE.parent / "vmconfig/cases").iterdir())]


def host(path: Path) -> None:
    Host.from_mapping(readers.read(path))


def configuration(path: Path) -> None:
    scenario_of(read(path, [0, 1]), HOST)


TARGETS = [*((host, *seed) for seed in HOSTS), *((configuration, *seed) for seed in MACHINES)]


@pytest.mark.parametrize(("reader", "name", "content"), TARGETS, ids=[name for _, name, _ in TARGETS])
@settings(max_examples=EXAMPLES)
@given(seed=st.integers(0, 1 << 40))
def test_damaged_files(
    reader: Callable[[Path], None], name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(damaged(content, seed))
    answers(lambda: reader(path), path.read_bytes())
