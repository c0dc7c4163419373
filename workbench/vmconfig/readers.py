"""Which tool a configuration is for, told by its content."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from workbench.errors import WorkbenchError, of_file
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
    """The machine that a text describes. What is refused is refused with ``source`` first, and its line."""
    with of_file(source):
        return _read_text(text, source, online)


def _read_text(text: str, source: str, online: Iterable[int]) -> VirtualMachine:
    start = text.lstrip()
    if start.startswith("<"):
        root = parse_xml((start if start.startswith("<?xml") else text).encode(), "import")
        if root.tag in ("domstatus", "domainsnapshot", "domaincheckpoint"):
            root = root.find("domain")
        if root is None or root.tag != "domain":
            raise WorkbenchError(
                f"import: the top element is not 'domain'; {EXPECTED}", 1 if root is None else root.line
            )
        return read_domain(root, source, online)
    if start.startswith("{"):
        value = specs.from_json(text)
        with specs.at_field(text):
            if "machine-config" in value or "vcpu_count" in value:
                return specs.read_firecracker(value, source)
            return _kubernetes(value, source)
    if _KATA_TABLE.search(text):
        table = specs.from_toml(text)
        with specs.at_field(text):
            return specs.read_kata(table, source)
    if source.endswith((".yaml", ".yml")) or "apiVersion:" in text[:10_000]:
        from workbench.safe_yaml import load

        mapping = load(f"{text}\n", "import")
        with specs.at_field(text):
            return _kubernetes(mapping, source)
    inner = xml_within(text, ("domstatus", "domainsnapshot", "domain"))
    if inner:
        return _read_text(inner, source, online)
    if is_config(text):
        return read_config(text, source, online)
    if "qemu" in text or "kvm" in text:
        return read_command_line(text, source, online)
    raise WorkbenchError(f"import: not understood; {EXPECTED}")


def _kubernetes(value: object, source: str) -> VirtualMachine:
    kind = value.get("kind") if isinstance(value, dict) else None
    items = value.get("items") if isinstance(value, dict) and str(kind).endswith("List") else None
    if isinstance(items, list):  # kubectl get -o yaml
        if len(items) != 1:
            raise WorkbenchError(f"items: a list of {len(items)}; one machine is expected")
        return _kubernetes(items[0], source)
    if kind in ("VirtualMachine", "VirtualMachineInstance", "VirtualMachineInstanceReplicaSet"):
        return specs.read_kubevirt(value, source)  # type: ignore[arg-type]
    if kind == "Pod":
        return specs.read_kata(value, source)  # type: ignore[arg-type]
    raise WorkbenchError(f"kind {str(kind)[:40]!r}; {EXPECTED}")
