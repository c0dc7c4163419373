"""What people have of a host, told apart by its content, as a mapping for :class:`workbench.topology.host.Host`.

A directory or archive with a copy of sysfs, the output of ``numactl --hardware`` (with ``lscpu`` if there is some),
XML of hwloc or ``virsh capabilities``, a kernel log, or YAML with the fields of a host. Each has a module of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench import limits
from workbench.errors import WorkbenchError
from workbench.files import read_file
from workbench.topology import dmesg, lscpu, snapshot, trees
from workbench.topology.hwloc import read_hwloc
from workbench.topology.numactl import read_numactl
from workbench.topology.sysfs import read_tree
from workbench.topology.virsh import read_capabilities


def read(path: Path) -> dict[str, Any]:
    """A host from whatever file or directory ``path`` is."""
    if path.is_dir():
        return read_directory(path)
    content = read_file(path, limits.ARCHIVE_BYTES, "machine")
    if trees.is_archive(content[:512]):
        return read_archive(path)
    if len(content) > limits.XML_BYTES:
        raise WorkbenchError(
            f"machine: {path.name} has {len(content) >> 20} MiB and is no archive; see `machines show`"
        )
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<" and path.suffix not in (".txt", ".log"):
        return read_xml(content, path.name)
    return read_text(decoded(content), path)


def decoded(content: bytes) -> str:
    """Text of unknown origin: UTF-8, or UTF-16 by its mark; a character that is neither stays one that nobody reads."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="replace")


def _check_length(text: str, field: str) -> None:
    if len(text) > limits.TEXT_BYTES:
        raise WorkbenchError(f"{field}: {len(text) >> 20} MiB of text; at most {limits.TEXT_BYTES >> 20} MiB are read")
    if text.count("\n") > limits.TEXT_LINES:
        raise WorkbenchError(f"{field}: {text.count(chr(10)):,} lines; at most {limits.TEXT_LINES:,} are read")


def read_text(text: str, path: Path) -> dict[str, Any]:
    """A host from a text: numactl (and lscpu), a kernel log, or YAML."""
    _check_length(text, f"machine: {path.name}")
    inner = xml_within(text, ("capabilities", "topology"))
    if inner:
        return read_xml(inner.encode(), path.name)
    if path.suffix in (".yaml", ".yml"):
        return dict(_yaml(text))
    if "node distances:" in text or " cpus:" in text or " size:" in text or "available:" in text:
        return {**read_numactl_text(text), "name": _stem(path)}
    if dmesg.is_kernel_log(text):
        return {**dmesg.read_dmesg(text), "name": _stem(path)}
    cpus, _ = lscpu.split(text)
    if cpus:
        raise WorkbenchError(
            f"lscpu: {path.name} says nothing of memory; put the output of numactl --hardware below it"
        )
    if path.suffix == ".json":
        return dict(_yaml(text))
    raise WorkbenchError(
        f"numactl: no 'node N size:' line in {path.name}; this is not the output of numactl --hardware, nor a kernel log"
    )


def read_numactl_text(text: str) -> dict[str, Any]:
    """numactl's output, with lscpu's before or after it if it is there."""
    _check_length(text, "numactl")
    cpus, rest = lscpu.split(text) if "NUMA node" in text else ({}, text)
    return lscpu.complete(read_numactl(rest), cpus)


def read_xml(content: bytes, name: str) -> dict[str, Any]:
    """A host from XML: hwloc's ``topology`` or libvirt's ``capabilities``."""
    root = parse_xml(content, name, "hwloc")
    if root.tag == "topology":
        return read_hwloc(root, name)
    if root.tag == "capabilities":
        return read_capabilities(root, name)
    hint = (
        "; a domain is a virtual machine: workbench import reads it" if root.tag in ("domain", "domainsnapshot") else ""
    )
    raise WorkbenchError(f"hwloc: {name}: the top element is {root.tag[:40]!r}, not 'topology' or 'capabilities'{hint}")


def xml_within(text: str, tags: tuple[str, ...]) -> str:
    """The one element of ``tags`` in a text that has more around it: prompts, the words of a mail, quotes; '' if none is whole.

    The quote is what stands before the element's first line.
    """
    for tag in tags:
        start, end = text.find(f"<{tag}"), text.rfind(f"</{tag}>")
        if start < 0 or end < start or text[start + len(tag) + 1] not in " >\r\n\t":
            continue
        quote = text[text.rfind("\n", 0, start) + 1 : start].strip()
        lines = text[start : end + len(tag) + 3].split("\n")
        return "\n".join(line.lstrip().removeprefix(quote) if quote else line for line in lines)
    return ""


def parse_xml(content: bytes, name: str, field: str) -> Any:
    """The top element of XML without entities of its own."""
    import defusedxml.ElementTree as ElementTree

    if len(content) > limits.XML_BYTES:
        raise WorkbenchError(f"{field}: {name} is larger than {limits.XML_BYTES >> 20} MiB")
    try:
        return ElementTree.fromstring(content)
    except Exception as error:  # defusedxml has its own exceptions for entities and DTDs
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise WorkbenchError(f"{field}: {name} is not XML that can be read: {reason}") from None


def read_directory(path: Path) -> dict[str, Any]:
    """A host from a copy of sysfs, its parent, or a directory with the output of numactl (and lscpu) in files."""
    try:
        return read_tree(trees.folder_tree(path))
    except WorkbenchError as error:
        texts = {}
        if path.is_dir() and "has no devices/system/node" in str(error):
            for file in sorted(path.iterdir())[:1000]:
                if file.is_file() and ("numactl" in file.name or "lscpu" in file.name):
                    texts[file.name] = decoded(read_file(file, limits.TEXT_BYTES, "machine"))
        if not texts:
            raise
        return {**_of_texts(texts, str(path)), "name": path.resolve().name}


def read_archive(path: Path) -> dict[str, Any]:
    """A host from a tar archive that holds what :func:`read_directory` reads."""
    tree = trees.archive_tree(path, snapshot.wanted)
    if tree.has_machine:
        return read_tree(tree)
    texts = {name: decoded(content) for name, content in tree.files.items() if "numactl" in name or "lscpu" in name}
    if not texts:
        raise WorkbenchError(
            f"snapshot: {path.name} holds neither devices/system/node nor the output of numactl --hardware; "
            "workbench snapshot writes such archives"
        )
    return {**_of_texts(texts, path.name), "name": tree.name}


def _of_texts(texts: dict[str, str], where: str) -> dict[str, Any]:
    outputs = [name for name, text in texts.items() if "numactl" in name and " size:" in text]
    if len(outputs) != 1:
        raise WorkbenchError(
            f"machine: {where[:80]} holds {len(outputs)} outputs of numactl --hardware{': ' if outputs else ''}"
            f"{', '.join(outputs[:2])}; one is expected"
        )
    parts = [texts[outputs[0]], *(text for name, text in texts.items() if "lscpu" in name)]
    return read_numactl_text("\n".join(parts))


def _stem(path: Path) -> str:
    from workbench.topology.common import label

    return label(path.stem)


def _yaml(text: str) -> Any:
    from workbench.safe_yaml import load

    return load(f"{text}\n", "host")
