"""Which tool a configuration is for, told by its content."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.files import read_file
from workbench.limits import CONFIGURATION_BYTES
from workbench.topology.readers import decoded, parse_xml, xml_within
from workbench.vmconfig import specs
from workbench.vmconfig.libvirt import read_domain
from workbench.vmconfig.machine import VirtualMachine
from workbench.vmconfig.qemu import is_config, read_command_line, read_config

_KATA_TABLE = re.compile(r"^\s{0,20}\[hypervisor\.", re.MULTILINE)
EXPECTED = (
    "a QEMU command line or configuration file, a libvirt domain, a Firecracker machine configuration, a kubevirt "
    "VirtualMachine or a kata configuration is expected"
)


def read(path: Path, online: Iterable[int]) -> VirtualMachine:
    """The machine that a file describes; ``online`` are the node ids of the host it is to run on."""
    content = read_file(path, CONFIGURATION_BYTES, "import")
    return read_text(decoded(content), path.name, online)


def read_text(text: str, source: str, online: Iterable[int]) -> VirtualMachine:
    """The machine that a text describes."""
    start = text.lstrip()
    if start.startswith("<"):
        root = parse_xml(text.encode(), source, "import")
        if root.tag in ("domstatus", "domainsnapshot", "domaincheckpoint"):
            root = root.find("domain")
        if root is None or root.tag != "domain":
            raise WorkbenchError(f"import: {source}: the top element is not 'domain'; {EXPECTED}")
        return read_domain(root, source, online)
    if start.startswith("{"):
        value = specs.from_json(text, source)
        if "machine-config" in value or "vcpu_count" in value:
            return specs.read_firecracker(value, source)
        return _kubernetes(value, source)
    if _KATA_TABLE.search(text):
        return specs.read_kata(specs.from_toml(text, source), source)
    if source.endswith((".yaml", ".yml")) or "apiVersion:" in text[:10_000]:
        from workbench.safe_yaml import load

        return _kubernetes(load(f"{text}\n", source), source)
    inner = xml_within(text, ("domstatus", "domainsnapshot", "domain"))
    if inner:
        return read_text(inner, source, online)
    if is_config(text):
        return read_config(text, source, online)
    if "qemu" in text or "kvm" in text:
        return read_command_line(text, source, online)
    raise WorkbenchError(f"import: {source[:80]}: not understood; {EXPECTED}")


def _kubernetes(value: object, source: str) -> VirtualMachine:
    kind = value.get("kind") if isinstance(value, dict) else None
    items = value.get("items") if isinstance(value, dict) and str(kind).endswith("List") else None
    if isinstance(items, list):  # kubectl get -o yaml
        if len(items) != 1:
            raise WorkbenchError(f"import: {source[:80]}: a list of {len(items)}; one machine is expected")
        return _kubernetes(items[0], source)
    if kind in ("VirtualMachine", "VirtualMachineInstance", "VirtualMachineInstanceReplicaSet"):
        return specs.read_kubevirt(value, source)  # type: ignore[arg-type]
    if kind == "Pod":
        return specs.read_kata(value, source)  # type: ignore[arg-type]
    raise WorkbenchError(f"import: {source[:80]}: kind {str(kind)[:40]!r}; {EXPECTED}")
