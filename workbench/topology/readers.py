"""What people have of a host, told apart by its content, as a mapping for :class:`workbench.topology.host.Host`.

A directory or archive with a copy of sysfs, the output of ``numactl --hardware`` (with ``lscpu`` if there is some),
XML of hwloc or ``virsh capabilities``, a kernel log, or YAML with the fields of a host. Each has a module of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from workbench import limits
from workbench.errors import WorkbenchError, of_file
from workbench.files import read_file, real_path
from workbench.topology import dmesg, lscpu, snapshot, trees
from workbench.topology.common import Described
from workbench.topology.hwloc import read_hwloc
from workbench.topology.numactl import read_numactl
from workbench.topology.sysfs import read_tree
from workbench.topology.virsh import read_capabilities


def read(path: Path) -> dict[str, Any]:
    """A host from whatever file or directory ``path`` is. What is refused is refused with its name first."""
    if path.is_dir():
        with of_file(path.name or str(path)):
            return read_directory(path)
    content = read_file(path, limits.ARCHIVE_BYTES, "machine")
    with of_file(path.name):
        if trees.is_archive(content[:512]):
            return read_archive(path)
        if len(content) > limits.XML_BYTES:
            raise WorkbenchError(f"machine: {len(content) >> 20} MiB and no archive; see `machines show`")
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
    _check_length(text, "machine")
    inner = xml_within(text, ("capabilities", "topology"))
    if inner:
        return read_xml(inner.encode(), path.name)
    if path.suffix in (".yaml", ".yml"):
        return _yaml(text)
    if "node distances:" in text or " cpus:" in text or " size:" in text or "available:" in text:
        return read_numactl_text(text).called(_stem(path))
    if dmesg.is_kernel_log(text):
        return dmesg.read_dmesg(text).called(_stem(path))
    cpus, _ = lscpu.split(text)
    if cpus:
        raise WorkbenchError("lscpu says nothing of memory; put the output of numactl --hardware below it")
    if path.suffix == ".json":
        return _yaml(text)
    raise WorkbenchError(
        "numactl: no 'node N size:' line; this is not the output of numactl --hardware, nor a kernel log"
    )


def read_numactl_text(text: str) -> Described:
    """numactl's output, with lscpu's before or after it if it is there."""
    _check_length(text, "numactl")
    cpus, rest = lscpu.split(text) if "NUMA node" in text else ({}, text)
    return lscpu.complete(read_numactl(rest), cpus)


def read_xml(content: bytes, name: str) -> dict[str, Any]:
    """A host from XML: hwloc's ``topology`` or libvirt's ``capabilities``."""
    root = parse_xml(content, "hwloc")
    if root.tag == "topology":
        return read_hwloc(root, name)
    if root.tag == "capabilities":
        return read_capabilities(root, name)
    hint = (
        "; a domain is a virtual machine: workbench import reads it" if root.tag in ("domain", "domainsnapshot") else ""
    )
    said = f"hwloc: the top element is {root.tag[:40]!r}; 'topology' or 'capabilities' is expected{hint}"
    raise WorkbenchError(said, root.line)


def xml_within(text: str, tags: tuple[str, ...]) -> str:
    """The one element of ``tags`` in a text that has more around it: prompts, the words of a mail, quotes; '' if none is whole.

    The quote is what stands before the element's first line. Lines keep their numbers.
    """
    for tag in tags:
        start, end = text.find(f"<{tag}"), text.rfind(f"</{tag}>")
        if start < 0 or end < start or text[start + len(tag) + 1] not in " >\r\n\t":
            continue
        quote = text[text.rfind("\n", 0, start) + 1 : start].strip()
        lines = text[start : end + len(tag) + 3].split("\n")
        inner = "\n".join(line.lstrip().removeprefix(quote) if quote else line for line in lines)
        return "\n" * text.count("\n", 0, start) + inner
    return ""


class Element(ElementTree.Element):
    """An element of XML that knows the line it starts in."""

    line = 0


def parse_xml(content: bytes, field: str) -> Any:
    """The top element of XML without entities of its own, made of :class:`Element`."""
    from defusedxml.ElementTree import DefusedXMLParser

    if len(content) > limits.XML_BYTES:
        raise WorkbenchError(f"{field}: larger than {limits.XML_BYTES >> 20} MiB")

    def made(tag: str, attributes: dict[str, str]) -> Element:
        element = Element(tag, attributes)
        element.line = parser.parser.CurrentLineNumber
        return element

    parser = DefusedXMLParser(target=ElementTree.TreeBuilder(element_factory=made))
    try:
        parser.feed(content)
        return parser.close()
    except Exception as error:  # defusedxml has its own exceptions for entities and DTDs
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise WorkbenchError(
            f"{field}: this is not XML that can be read: {reason}", parser.parser.CurrentLineNumber
        ) from None


def read_directory(path: Path) -> dict[str, Any]:
    """A host from a copy of sysfs, its parent, or a directory with the output of numactl (and lscpu) in files."""
    try:
        return _read_directory(path)
    except OSError as error:  # in which nobody may look, for one
        raise WorkbenchError(f"machine: {str(path)[:200]!r}: {error.strerror or error}") from None


def _read_directory(path: Path) -> dict[str, Any]:
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
        return _of_texts(texts).called(real_path(path).name)


def read_archive(path: Path) -> dict[str, Any]:
    """A host from a tar archive that holds what :func:`read_directory` reads."""
    tree = trees.archive_tree(path, snapshot.wanted)
    if tree.has_machine:
        return read_tree(tree)
    texts = {name: decoded(content) for name, content in tree.files.items() if "numactl" in name or "lscpu" in name}
    if not texts:
        raise WorkbenchError(
            "snapshot: the archive holds neither devices/system/node nor the output of numactl --hardware; "
            "workbench snapshot writes such archives"
        )
    return _of_texts(texts).called(tree.name)


def _of_texts(texts: dict[str, str]) -> Described:
    outputs = [name for name, text in texts.items() if "numactl" in name and " size:" in text]
    if len(outputs) != 1:
        raise WorkbenchError(
            f"machine: {len(outputs)} outputs of numactl --hardware{': ' if outputs else ''}"
            f"{', '.join(outputs[:2])}; one is expected"
        )
    with of_file(outputs[0]):
        host = read_numactl_text(texts[outputs[0]])
    for name, text in texts.items():
        if "lscpu" in name and name != outputs[0]:
            with of_file(name):
                _check_length(text, "lscpu")
                host = lscpu.complete(host, lscpu.split(text)[0])
    return host


def _stem(path: Path) -> str:
    from workbench.topology.common import label

    return label(path.stem)


def _yaml(text: str) -> Described:
    from workbench.safe_yaml import line_of, load

    return Described(load(f"{text}\n", "host"), lambda keys: line_of(text, keys))
