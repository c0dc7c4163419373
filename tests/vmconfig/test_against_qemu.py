"""What QEMU itself understood of a command line (QMP: query-memdev, query-cpus-fast) beside what the importer read."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import WorkbenchError
from workbench.vmconfig.machine import VirtualMachine
from workbench.vmconfig.qemu import read_command_line
from workbench.vmconfig.readers import read

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="no qemu-system-x86_64 on this machine to ask")
ANY_NODE = range(128)
"""QEMU's own limit; mbind keeps those that the machine has, so lists with node 0 work anywhere."""

UNDERSTOOD = [
    "-m 256 -smp 2 -object memory-backend-memfd,id=a,size=256M,share=on,host-nodes=0,policy=bind -numa node,memdev=a",
    "-m 256M -smp cpus=4 -object memory-backend-ram,id=a,size=128M,host-nodes=0-1,policy=interleave,prealloc=on "
    "-object memory-backend-ram,id=b,size=134217728,host-nodes=0,host-nodes=3,policy=preferred "
    "-numa node,nodeid=0,cpus=0-1,memdev=a -numa node,nodeid=1,cpus=2-3,memdev=b",
    "-m 0.25G -smp 4,sockets=2,cores=2 -object memory-backend-ram,id=a,size=0.125G "
    "-object memory-backend-ram,id=b,size=0x8000000 "
    "-numa node,cpus=0,cpus=2,memdev=a -numa node,cpus=1,cpus=3,memdev=b",
    '-m 256 -smp 1 -object {"qom-type":"memory-backend-ram","id":"j","size":268435456,"host-nodes":[0,2,5],"policy":"bind",'
    '"prealloc":true} -machine q35,memory-backend=j',
    "-m 256 -smp 2,maxcpus=4 -object memory-backend-ram,id=a,size=128M -object memory-backend-ram,id=b,size=128M "
    "-numa node,cpus=0,cpus=2,memdev=a -numa node,cpus=1,cpus=3,memdev=b",
    "-m 128M,slots=2,maxmem=1G -smp 1 -mem-prealloc -object memory-backend-ram,id=a,size=128M -machine memory-backend=a "
    "-object memory-backend-ram,id=d,size=64M,prealloc=off,host-nodes=0,policy=preferred -device pc-dimm,memdev=d",
    "-m 256M,slots=4,maxmem=2G -smp 8,sockets=2,dies=2,cores=1,threads=2 -object memory-backend-ram,id=a,size=128M "
    "-object memory-backend-ram,id=b,size=128M -numa node,nodeid=0,memdev=a -numa node,nodeid=1,memdev=b "
    "-numa cpu,node-id=1,socket-id=0,die-id=0 -numa cpu,node-id=0,socket-id=0,die-id=1 -numa cpu,node-id=0,socket-id=1",
    "-m 256M -smp 4 -machine hmat=on -object memory-backend-ram,id=a,size=256M -numa node,cpus=0-3,memdev=a "
    "-numa hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-latency,latency=5 "
    "-numa hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-bandwidth,bandwidth=5G",
    "-m size=256M -smp 3,maxcpus=8 -object memory-backend-ram,id=with-dash,size=256M,policy=default "
    "-machine memory-backend=with-dash",
]
CONFIGURATION = """
# as -readconfig takes it
[memory]
  size = "256M"
[smp-opts]
  cpus = "2"
[machine]
  type = "q35"
[object "ram0"]
  qom-type = "memory-backend-ram"
  size = "128M"
  host-nodes.0 = "0"
  host-nodes.1 = "3"
  policy = "interleave"
  prealloc = "on"
[object "ram1"]
  qom-type = "memory-backend-ram"
  size = "128M"
[numa]
  type = "node"
  memdev = "ram0"
  cpus = "0"
[numa]
  type = "node"
  memdev = "ram1"
  cpus = "1"
"""
CONFIDENTIAL = [
    "sev-snp-guest,id=cgs0,policy=0x30000,cbitpos=51,reduced-phys-bits=1",
    "tdx-guest,id=cgs0,quote-generation-socket=u",
]
REFUSED = [
    "-m 128 -object memory-backend-ram,id=a,size=128M,host-nodes=0 -numa node,memdev=a",
    "-m 128 -object memory-backend-ram,id=a,size=128M,policy=bind -numa node,memdev=a",
    "-m 128 -object memory-backend-ram,id=a,size=128M,policy=never,host-nodes=0 -numa node,memdev=a",
    "-m 128 -object memory-backend-ram,id=a -numa node,memdev=a",
    "-m 128 -object memory-backend-ram,id=a,size=128M -numa node,memdev=b",
    "-m 128 -object memory-backend-ram,id=a,size=128M -object memory-backend-ram,id=a,size=128M",
    "-m 128 -object memory-backend-ram,size=128M",
    "-m 128 -smp 2 -object memory-backend-ram,id=a,size=128M -numa node,cpus=0-2,memdev=a",
    "-m many",
]


def started(arguments: str, folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    from workbench.vmconfig.words import split

    assert QEMU is not None
    path = folder / "qmp"
    words = [QEMU, "-S", "-display", "none", "-nodefaults", "-accel", "tcg", "-qmp", f"unix:{path},server=on,wait=off"]
    return subprocess.Popen([*words, *split(arguments)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL), path


def connected(process: subprocess.Popen[bytes], path: Path) -> socket.socket:
    """A connection to QMP; the socket's file is there a moment before somebody listens."""
    deadline = time.monotonic() + 60
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            assert process.poll() is None, "QEMU does not take this command line"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return connection


def asked(arguments: str, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    process, path = started(arguments, folder)
    try:
        with connected(process, path) as connection:
            lines = connection.makefile("rwb")
            lines.readline()
            replies = []
            for command in ("qmp_capabilities", "query-memdev", "query-cpus-fast"):
                lines.write(json.dumps({"execute": command}).encode() + b"\n")
                lines.flush()
                while "return" not in (reply := json.loads(lines.readline())):
                    assert "event" in reply, reply
                replies.append(reply["return"])
        return replies[1], replies[2]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("arguments", UNDERSTOOD)
def test_backends_and_vcpus_are_what_qemu_understood(arguments: str, tmp_path: Path) -> None:
    devices, cpus = asked(arguments, tmp_path)
    vm = read_command_line(f"qemu-system-x86_64 {arguments}", "test", ANY_NODE)
    compare(vm, devices, cpus, arguments.count("-numa node") > 1)
    for (
        guest
    ) in CONFIDENTIAL:  # objects that this QEMU has not or cannot start: the memory beside them is what it understood
        confidential = f"{arguments} -object {guest} -machine confidential-guest-support=cgs0"
        vm = read_command_line(f"qemu-system-x86_64 {confidential}", "test", ANY_NODE)
        assert vm.confidential == guest[:3].replace("sev", "snp")
        compare(vm, devices, cpus, arguments.count("-numa node") > 1)


def test_a_configuration_file_is_what_qemu_understood(tmp_path: Path) -> None:
    file = tmp_path / "vm.cfg"
    file.write_text(CONFIGURATION)
    devices, cpus = asked(f"-readconfig {file}", tmp_path)
    compare(read(file, ANY_NODE), devices, cpus, True)


@pytest.mark.parametrize("kind", ["sev-guest", "sev-snp-guest", "tdx-guest"])
def test_objects_of_confidential_guests_have_the_names_that_qemu_gives_them(kind: str) -> None:
    """Such an object starts on its hardware alone: whether QEMU knows it can be asked anywhere."""
    assert QEMU is not None
    told = subprocess.run([QEMU, "-object", f"{kind},help"], capture_output=True, text=True, timeout=60, check=False)
    if "does not accept value" in told.stderr:
        pytest.skip(f"this QEMU has no {kind}")
    properties = [line.split("=")[0].strip() for line in told.stdout.splitlines() if "=<" in line]
    assert properties
    given = ",".join(f"{name}=1" for name in properties)
    vm = read_command_line(
        f"qemu-system-x86_64 -m 1G -object {kind},id=g,{given} -machine memory-encryption=g", "test", [0]
    )
    assert vm.unknown == [] and vm.confidential == {"sev-snp-guest": "snp", "tdx-guest": "tdx"}.get(kind, "none")


def compare(vm: VirtualMachine, devices: list[dict[str, Any]], cpus: list[dict[str, Any]], several_nodes: bool) -> None:
    assert vm.unknown == []
    modes = {"preferred_many": "preferred"}
    read_ = {
        backend.name: (
            backend.size,
            modes.get(backend.policy.mode, backend.policy.mode) if backend.policy else "default",
            list(backend.policy.nodes) if backend.policy else [],
            backend.preallocated,
        )
        for backend in vm.backends
    }
    understood = {d["id"]: (d["size"], d["policy"], sorted(d["host-nodes"]), d["prealloc"]) for d in devices}
    assert read_ == understood
    assert vm.vcpus == len(cpus)
    nodes = {cpu["cpu-index"]: cpu["props"].get("node-id") for cpu in cpus}
    if several_nodes:
        assert {cpu: node for node, backend in enumerate(vm.backends) for cpu in backend.vcpus} == nodes


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_qemu_refuses_is_refused(arguments: str, tmp_path: Path) -> None:
    process, path = started(arguments, tmp_path)
    try:
        assert process.wait(60) == 1
        assert not path.exists() or process.returncode
    finally:
        process.kill()
        process.wait()
    with pytest.raises(WorkbenchError):
        read_command_line(f"qemu-system-x86_64 {arguments}", "test", ANY_NODE)
