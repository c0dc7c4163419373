"""The recorder's script language: every verb, what it takes, what it does, and whether a replay carries it out.

The one place where verbs are described; the probe (``probe.c``) carries them out, ``datasets/recordings/README.md``
shows this table, and a test holds the three together. One operation a line, ``#`` starts a comment. ``tK`` in front of a
line runs it in thread K. Offsets and lengths are pages, or bytes with a ``b`` behind where the table says BYTES.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from workbench.errors import WorkbenchError
from workbench.probe_words import ORDERS


@dataclass(frozen=True)
class Verb:
    """Words after the verb, in the form of a usage line; what it does; fewest and most words that it takes.

    ``replayed``: empty if a replay carries it out and compares it, else why it does not.
    """

    words: str
    meaning: str
    fewest: int
    most: int
    replayed: str = ""


_LOOKS = "looks at the host; counters include the background's use"
_ASKED = "VM_TYPES, the machine's answer, and capabilities given by number are not judged"
_PRIVATE = "private memory: judged with the VM type of the guest"

VERBS: dict[str, Verb] = {
    # Files
    "create": Verb("gI PAGES MMAP|SHARED|HUGETLB_2M|HUGETLB_1G|NUMBER",
                   "guest_memfd with these flags, mapped if it can be; `lacks` tells of huge pages that this kernel has none of",
                   3, 3),
    "memfd": Verb("gI PAGES [2M|1G]", "tmpfs file, or hugetlb file of that page size, mapped", 2, 3),
    "anon": Verb("gI PAGES", "anonymous memory, named like a file", 2, 2, _PRIVATE),
    "alias": Verb("gJ gI", "second descriptor and mapping of a file", 2, 2),
    "mmap": Verb("gI [private]", "map a whole file, MAP_SHARED unless said otherwise", 1, 2),
    "unmap": Verb("gI", "munmap of the whole mapping", 1, 1),
    "close": Verb("gI", "munmap, remove the memslot and close", 1, 1),
    # Policies and places
    "mbind": Verb("gI BYTES BYTES MODE[|FLAG] NODES|none|- [STRICT|MOVE|MOVE_ALL]", "mbind on a range", 5, 6),
    "setpol": Verb("MODE[|FLAG] NODES|none|-", "set_mempolicy", 2, 2),
    "home": Verb("gI BYTES BYTES NODE", "set_mempolicy_home_node", 4, 4),
    "getpol": Verb("gI OFF", "get_mempolicy at a page: mode and nodes", 2, 2),
    "getnode": Verb("gI OFF", "get_mempolicy with MPOL_F_NODE at a page, which faults it in", 2, 2),
    "gettask": Verb("", "get_mempolicy of the task", 0, 0),
    "getil": Verb("", "get_mempolicy with MPOL_F_NODE of the task: next node of its rotation", 0, 0),
    "reset": Verb("", "il_prev to 1023, il_weight to 0, no task policy", 0, 0),
    "setcpu": Verb("CPU", "sched_setaffinity to one CPU; -1 for all", 1, 1),
    "cpuset": Verb("MEMS|off", "the script's process into a cpuset with these memory nodes, or out of it", 1, 1),
    "weights": Verb("NODE:WEIGHT,...|default", "weights of weighted interleave", 1, 1),
    # Pages
    "falloc": Verb("gI BYTES BYTES [MODE]", "fallocate; KEEP_SIZE on guest_memfd", 3, 4),
    "punch": Verb("gI BYTES BYTES", "fallocate with PUNCH_HOLE and KEEP_SIZE", 3, 3),
    "touch": Verb("gI OFF PAGES [seq|rev|rand SEED|stride K]", "the host writes to each page", 3, 5),
    "rtouch": Verb("gI OFF PAGES [seq|rev|rand SEED|stride K]", "the host reads each page", 3, 5),
    "vtouch": Verb("gI OFF PAGES", "KVM_RUN: the guest writes one byte a page", 3, 3),
    "prefault": Verb("gI OFF PAGES", "KVM_PRE_FAULT_MEMORY", 3, 3),
    "madv": Verb("gI OFF PAGES ADVICE", "madvise with this number", 4, 4),
    "movepages": Verb("gI OFF PAGES NODE [MOVE_ALL]", "move_pages", 4, 5),
    "migrate": Verb("FROM TO", "migrate_pages between two nodes", 2, 2),
    "fill": Verb("gI PAGES", "fallocate from the start in steps, until it fails or the OOM killer comes", 2, 2,
                 "where memory ends depends on the background's use"),
    # Private memory
    "vm": Verb("none|sw_protected|sev|sev_es|snp|tdx|NUMBER", "a virtual machine of this type from here on", 1, 1, _PRIVATE),
    "kvmcap": Verb("NUMBER|NAME", "KVM_CHECK_EXTENSION on the virtual machine", 1, 1, _ASKED),
    "slot": Verb("gI [gJ]", "memslot of a file; shared accesses go to the mapping of gJ", 1, 2, _PRIVATE),
    "attr": Verb("gI BYTES BYTES private|shared|NUMBER [FLAGS]",
                 "KVM_SET_MEMORY_ATTRIBUTES on the guest addresses of the file", 4, 5, _PRIVATE),
    "convert": Verb("gI BYTES BYTES private|shared|NUMBER [FLAGS]",
                    "in-place conversion on the descriptor (KVM_SET_MEMORY_ATTRIBUTES2)", 4, 5, _PRIVATE),
    "pin": Verb("gI OFF PAGES uring|splice", "io_uring buffer (DMA pin), or pages in a pipe (plain references)", 4, 4, _PRIVATE),
    "unpin": Verb("gI", "give all pins of a file back", 1, 1, _PRIVATE),
    "odirect": Verb("gI OFF PAGES", "read a RAM disk into the pages with O_DIRECT, which pins them while it lasts", 3, 3),
    # Live update
    "preserve": Verb("gI TOKEN", "the file into the live-update session, for the next kernel", 2, 2),
    "kexec": Verb("", "into the next kernel, which goes on behind this line with new processes; once, in the last script", 0, 0),
    "retrieve": Verb("gI TOKEN", "a file of the kernel before, mapped", 2, 2),
    "finish": Verb("", "the session of the kernel before gives its files up; those that nobody retrieved are gone", 0, 0),
    "close_session": Verb("", "close the session: finish one of the kernel before, take all files out of a new one", 0, 0),
    # Looking
    "place": Verb("gI [OFF PAGES]", "node of each page", 1, 3),
    "counts": Verb("gI [OFF PAGES]", "pages on each node", 1, 3),
    "reveal": Verb("gI [OFF PAGES]", "node of each page of a file that cannot be mapped, by taking them out one by one", 1, 3,
                   _PRIVATE),
    "pfns": Verb("gI [OFF PAGES]", "physical frames", 1, 3, "frame numbers depend on the boot"),
    "zones": Verb("", "free pages and watermarks of each zone", 0, 0),
    "meminfo": Verb("", "free pages of each node", 0, 0, _LOOKS),
    "nodestat": Verb("", "pages of each node by use: file, shmem, page tables, second-stage tables, slab, CMA", 0, 0, _LOOKS),
    "numastat": Verb("", "numastat counters of each node", 0, 0, _LOOKS),
    "pools": Verb("", "huge page pools of each node", 0, 0, _LOOKS),
    "kho": Verb("", "areas set aside for kexec handover", 0, 0, _LOOKS),
    "cat": Verb("PATH", "lines of a file of the host", 1, 1, "reads a file of the host"),
    # Changing the host
    "eat": Verb("NODE PAGES [bind]", "take anonymous memory on a node", 2, 3),
    "eatto": Verb("NODE FREE_PAGES [bind]", "take memory until so many pages are free", 2, 3),
    "uneat": Verb("", "give it back", 0, 0),
    "pool": Verb("2M|1G NODE PAGES", "size of a node's huge page pool; 0 again when the script ends", 3, 3,
                 "changes the host behind the files"),
    "write": Verb("PATH VALUE", "write to a file of the host", 2, 2, "writes a file of the host"),
    "sleep": Verb("MILLISECONDS", "wait", 1, 1, "returns nothing"),
}  # fmt: skip

_MODES = (
    "DEFAULT", "PREFERRED", "BIND", "INTERLEAVE", "LOCAL", "PREFERRED_MANY", "WEIGHTED_INTERLEAVE",
    "STATIC", "RELATIVE", "NUMA_BALANCING",
)  # fmt: skip
HUGE_FLAGS = {"HUGETLB_2M": 9, "HUGETLB_1G": 18}
"""Flags of ``create`` that ask for huge pages, and the order of those."""
NAMES: dict[str, tuple[str, ...]] = {
    "mode": _MODES,
    "mbind": ("STRICT", "MOVE", "MOVE_ALL"),
    "huge": ("2M", "1G"),
    "vm": ("none", "sw_protected", "sev", "sev_es", "snp", "tdx"),
    "attribute": ("private", "shared"),
    "capability": (
        "MEMORY_ATTRIBUTES", "GUEST_MEMFD", "VM_TYPES", "PRE_FAULT_MEMORY", "GUEST_MEMFD_FLAGS",
        "GUEST_MEMFD_MEMORY_ATTRIBUTES",
    ),
    "create": ("MMAP", "SHARED", *HUGE_FLAGS),
}  # fmt: skip
"""Names that the probe knows, by its table of them; beside these it takes numbers, and any other word for one: for 0."""
_NAMED = {
    ("create", 3): "create", ("memfd", 3): "huge", ("mbind", 4): "mode", ("mbind", 6): "mbind", ("setpol", 1): "mode",
    ("vm", 1): "vm", ("kvmcap", 1): "capability", ("attr", 4): "attribute", ("convert", 4): "attribute",
    ("movepages", 5): "mbind",
}  # fmt: skip
_ONE_OF = {
    ("mmap", 2): ("private",), ("touch", 4): tuple(ORDERS.values()), ("rtouch", 4): tuple(ORDERS.values()),
    ("pin", 4): ("uring", "splice"), ("pool", 1): NAMES["huge"], ("eat", 3): ("bind",), ("eatto", 3): ("bind",),
}  # fmt: skip

_TASK = re.compile(r"t\d$")
_NAME = re.compile(r"g\d$")
_NUMBER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|[0-9]+)")
_HEADER = re.compile(r"tasks=[1-8]|noreset")


def usage() -> Iterator[str]:
    """One line for each verb."""
    for name, verb in VERBS.items():
        yield (
            f"{name} {verb.words}".strip()
            + f": {verb.meaning}"
            + (f" (not replayed: {verb.replayed})" if verb.replayed else "")
        )


def table() -> str:
    """The verbs as a table in Markdown."""
    lines = ["| line | what it does | replayed |", "|---|---|---|"]
    for name, verb in VERBS.items():
        words = f"{name} {verb.words}".strip().replace("|", "\\|")
        lines.append(f"| `{words}` | {verb.meaning} | {verb.replayed or 'yes'} |")
    return "\n".join(lines) + "\n"


def check(script: str) -> None:
    """Raise WorkbenchError for the first line that the probe would not understand; the line says where and why."""
    names: set[str] = set()
    started = kexec = False
    for number, line in enumerate(script.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"script line {number} ({line.strip()[:60]})"
        if kexec and words[0] in ("scenario", "kexec"):
            raise WorkbenchError(f"{where}: behind a kexec; there is one at most, in the last scenario")
        kexec |= words == ["kexec"]
        if words[0] == "scenario":
            _check_header(where, words, names)
            started = True
        elif not started:
            raise WorkbenchError("script: the first line must be 'scenario NAME [tasks=N] [noreset]'")
        else:
            _check_line(where, words)
    if not started:
        raise WorkbenchError("script: the first line must be 'scenario NAME [tasks=N] [noreset]'")


def _check_header(where: str, words: list[str], names: set[str]) -> None:
    name = words[1] if len(words) > 1 else ""
    if not name or name in names:
        raise WorkbenchError(f"script: scenario name {name!r} is empty or there twice; names must differ")
    names.add(name)
    for word in words[2:]:
        if not _HEADER.fullmatch(word):
            raise WorkbenchError(f"{where}: {word!r}; behind the name only tasks=N (1 to 8) and noreset can stand")


def _check_line(where: str, words: list[str]) -> None:
    if _TASK.match(words[0]):
        words = words[1:]
    verb = VERBS.get(words[0]) if words else None
    if verb is None:
        raise WorkbenchError(f"{where}: {words[0] if words else ''!r} is no verb; known are {', '.join(sorted(VERBS))}")
    given = len(words) - 1
    if not verb.fewest <= given <= verb.most:
        raise WorkbenchError(f"{where}: {given} words behind the verb; it is '{words[0]} {verb.words}'")
    for word, form in zip(words[1:], verb.words.split(), strict=False):
        if form in ("gI", "gJ") and not (_NAME.match(word) and int(word[1]) < 8):
            raise WorkbenchError(f"{where}: {word!r} is no file; files are g0 to g7")
    for place, word in enumerate(words):
        _check_names(where, word, _NAMED.get((words[0], place), ""), _ONE_OF.get((words[0], place), (word,)))


def _check_names(where: str, word: str, kind: str, one_of: tuple[str, ...]) -> None:
    """A name that is none would be read as 0, which is another flag, mode or type; one size of huge pages a file."""
    if word not in one_of:
        raise WorkbenchError(f"{where}: {word!r} is not one of {', '.join(one_of)}")
    names = NAMES.get(kind, ())
    for part in word.split("|") if names else ():
        if part not in names and not _NUMBER.fullmatch(part):
            raise WorkbenchError(f"{where}: {part!r} is neither a number nor one of {', '.join(names)}")
    if kind == "create" and len(HUGE_FLAGS.keys() & set(word.split("|"))) > 1:
        raise WorkbenchError(f"{where}: {word!r} names two sizes of huge pages")
