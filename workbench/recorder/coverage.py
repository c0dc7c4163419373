"""What the recordings exercise: policy mode x operation x fault order x tasks x topology feature, as a Markdown file.

Every script is followed call by call: which pages a call newly allocates, and the mode of the policy that decides where
they go, that of the file's range or, where there is none, that of the task. Run ``python -m workbench.recorder.coverage``
to write ``datasets/recordings/COVERAGE.md`` anew; a test checks that it is current.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench import probe_words
from workbench.data import datasets_path
from workbench.recorder.scenario_generator import MODES
from workbench.units import PAGE_SIZE

WAYS = (
    "touch seq", "touch rev", "touch rand", "touch stride", "read seq", "read rev", "read rand", "read stride",
    "fallocate", "prefault", "guest", "populate read", "populate write", "get_mempolicy node",
)  # fmt: skip
ORDERS = tuple(probe_words.ORDERS.values())
NONE = "DEFAULT"
FEATURES = (
    "1 node", "2 nodes", "3-4 nodes", "5-8 nodes", "more than 8 nodes", "asymmetric distances", "unequal sizes",
    "node without CPUs", "node without memory", "renumbered domains", "empty domains", "bandwidth weights",
    "movable node", "default per-CPU lists",
)  # fmt: skip


@dataclass
class _Inode:
    """One file: which pages exist, and the mode set for each (index into MODES, 0 = no policy)."""

    kind: str
    present: npt.NDArray[np.bool_]
    mode: npt.NDArray[np.int8]


@dataclass
class Coverage:
    """Scripts that exercise a cell, by key."""

    placed: dict[tuple[str, str, str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    pages: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    by_tasks: dict[tuple[str, str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    by_feature: dict[tuple[str, str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    operations: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    features: dict[str, list[str]] = field(default_factory=dict)
    scripts: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)


def features_of(data: Mapping[str, Any]) -> list[str]:
    """Topology features of a recording, from its declaration and what Linux made of it."""
    topology, derived = data["topology"], data.get("derived") or {}
    nodes = [node for node in topology["nodes"] if node.get("cpus") or _mib(node["mem"])]
    count = len(nodes)
    sizes = {_mib(node["mem"]) for node in nodes} - {0}
    distances = topology.get("distances") or []
    weights = set((derived.get("wi_weights") or {}).values())
    domains = [
        int(domain) for domain, _ in sorted((derived.get("pxm_to_node") or {}).items(), key=lambda item: item[1])
    ]
    found = {
        "1 node": count == 1,
        "2 nodes": count == 2,
        "3-4 nodes": 3 <= count <= 4,
        "5-8 nodes": 5 <= count <= 8,
        "more than 8 nodes": count > 8,
        "asymmetric distances": any(a[j] != b[i] for i, a in enumerate(distances) for j, b in enumerate(distances)),
        "unequal sizes": len(sizes) > 1,
        "node without CPUs": any(not node.get("cpus") for node in nodes),
        "node without memory": any(not _mib(node["mem"]) for node in nodes),
        "renumbered domains": domains != sorted(domains),
        "empty domains": count < len(topology["nodes"]),
        "bandwidth weights": len(weights) > 1,
        "movable node": any(node.get("hotplug") for node in nodes),
        "default per-CPU lists": "pcpdefault" in str(data.get("cmdline", "")),
    }
    return [feature for feature in FEATURES if found[feature]]


def _mib(text: Any) -> int:
    value = str(text)
    scale = {"K": 1 / 1024, "M": 1, "G": 1024}.get(value[-1])
    return int(int(value[:-1]) * scale) if scale else int(value)


def measure(paths: Iterable[Path]) -> Coverage:
    """Follow every script of the recordings."""
    coverage = Coverage()
    for path in paths:
        data = json.loads(gzip.decompress(path.read_bytes()))
        name = path.name.removesuffix(".json.gz")
        coverage.features[name] = features_of(data)
        for scenario in data["scenarios"]:
            coverage.scripts[name] += 1
            _follow(coverage, name, scenario)
    return coverage


def _follow(coverage: Coverage, recording: str, scenario: Mapping[str, Any]) -> None:
    script = f"{recording}/{scenario['name']}"
    header = scenario.get("header", "").split()
    tasks = next((int(word[6:]) for word in header if word.startswith("tasks=")), 1)
    files: dict[str, _Inode] = {}
    policies = [NONE] * tasks
    for entry in scenario["ops"]:
        words = entry["op"].split()
        task = 0
        if len(words) > 1 and len(words[0]) == 2 and words[0][0] == "t" and words[0][1].isdigit():
            task, words = int(words[0][1]), words[1:]
        if entry.get("errno") == "dead":
            continue
        coverage.calls[recording] += 1
        _note_operation(coverage, recording, script, words, entry)
        _apply(files, policies, task, words, entry)
        way, start, count = _faults(words)
        if way is None or words[1] not in files:
            continue
        inode = files[words[1]]
        if not _succeeded(words, entry):
            continue
        part = slice(start, start + count)
        new = ~inode.present[part]
        for mode in np.unique(inode.mode[part][new]):
            source = "shared" if mode else "task"
            decided = MODES[mode] if mode else policies[min(task, tasks - 1)]
            key = (inode.kind, source, decided, way)
            coverage.placed[key].add(script)
            coverage.pages[key] += int((new & (inode.mode[part] == mode)).sum())
            if inode.kind == "guest_memfd":
                coverage.by_tasks[decided, way, min(tasks, 4)].add(script)
                for feature in coverage.features[recording]:
                    coverage.by_feature[decided, way, feature].add(script)
        inode.present[part] = True


def _pages(word: str) -> int:
    return -(-int(word[:-1], 0) // PAGE_SIZE) if word.endswith("b") else int(word, 0)


def _faults(words: Sequence[str]) -> tuple[str | None, int, int]:
    """The way of faulting, the first page and the number of pages of an operation; no way if it faults nothing."""
    verb = words[0]
    if verb in ("touch", "rtouch"):
        order = words[4] if len(words) > 4 else "seq"
        return f"{'touch' if verb == 'touch' else 'read'} {order}", int(words[2]), int(words[3])
    if verb in ("falloc", "prefault", "vtouch"):
        way = {"falloc": "fallocate", "prefault": "prefault", "vtouch": "guest"}[verb]
        return way, _pages(words[2]), _pages(words[3])
    if verb == "madv" and words[4] in ("22", "23"):
        return "populate read" if words[4] == "22" else "populate write", int(words[2]), int(words[3])
    if verb == "getnode":
        return "get_mempolicy node", int(words[2]), 1
    return None, 0, 0


def _succeeded(words: Sequence[str], entry: Mapping[str, Any]) -> bool:
    if words[0] in ("touch", "rtouch"):
        return not entry.get("bad")
    return entry.get("errno") == 0 and not entry.get("left")


def _apply(
    files: dict[str, _Inode], policies: list[str], task: int, words: Sequence[str], entry: Mapping[str, Any]
) -> None:
    """Follow what a call does to files and task policies."""
    verb, done = words[0], entry.get("errno") == 0
    if verb in ("create", "memfd") and done:
        pages = int(words[2])
        kind = "guest_memfd" if verb == "create" else "memfd"
        files[words[1]] = _Inode(kind, np.zeros(pages, bool), np.zeros(pages, np.int8))
    elif verb == "alias" and done and words[2] in files:
        files[words[1]] = files[words[2]]
    elif verb == "setpol" and done:
        mode = words[1].split("|")[0]
        policies[task] = "LOCAL" if mode == "PREFERRED" and words[2:] in (["-"], ["none"]) else mode
    elif verb == "reset":
        policies[task] = NONE
    elif verb == "close" and done:
        files.pop(words[1], None)
    elif len(words) > 3 and words[1] in files:
        inode = files[words[1]]
        start = int(words[2][:-1], 0) // PAGE_SIZE if words[2].endswith("b") else int(words[2], 0)
        part = slice(start, start + _pages(words[3]))
        if verb == "mbind" and (done or (entry.get("errno") == 5 and "MOVE" in words[-1])):
            mode = words[4].split("|")[0]
            if mode == "PREFERRED" and words[5] in ("-", "none"):
                mode = "LOCAL"
            inode.mode[part] = MODES.index(mode) if mode in MODES else 0
        elif (verb == "punch" and done) or (verb == "madv" and done and words[4] == "9"):
            inode.present[part] = False


def _note_operation(
    coverage: Coverage, recording: str, script: str, words: Sequence[str], entry: Mapping[str, Any]
) -> None:
    """Name of the operation with what makes it different, and how it ended."""
    verb = words[0]
    names = [verb]
    if verb == "mbind":
        flags = words[6] if len(words) > 6 and not words[6].isdigit() else ""
        modifiers = "|".join(words[4].split("|")[1:])
        names = ["mbind"] + ([f"mbind {flags}"] if flags else []) + ([f"mbind mode|{modifiers}"] if modifiers else [])
    elif verb == "setpol" and "|" in words[1]:
        names.append(f"setpol mode|{words[1].split('|', 1)[1]}")
    elif verb == "madv":
        names.append(f"madv {words[4]}")
    elif verb == "movepages" and len(words) > 5:
        names.append(f"movepages {words[5]}")
    for name in names:
        for feature in coverage.features[recording]:
            coverage.operations[name, feature].add(script)
        error = entry.get("errno")
        coverage.outcomes[name]["ok" if error in (0, None) else str(error)] += 1


# ------------------------------------------------------------------------------------------------------------- table


def report(coverage: Coverage) -> str:
    """The Markdown text."""
    out = [
        "# What the recordings exercise",
        "",
        "Written by `python -m workbench.recorder.coverage`; do not edit. Cells count scripts that allocated at least",
        "one page that way; a dash means none did. The policy is the one that decided: that of the file's range, or",
        "the task's where the range has none.",
        "",
        *_recordings(coverage),
        *_modes(coverage, "guest_memfd", "shared"),
        *_modes(coverage, "guest_memfd", "task"),
        *_modes(coverage, "memfd", "shared"),
        *_modes(coverage, "memfd", "task"),
        *_tasks(coverage),
        *_features(coverage),
        *_operations(coverage),
        *_holes(coverage),
    ]
    return "\n".join(out).rstrip() + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) if cell != 0 else "–" for cell in row) + " |" for row in rows]
    return [*lines, ""]


def _recordings(coverage: Coverage) -> list[str]:
    rows = [
        (name, coverage.scripts[name], coverage.calls[name], ", ".join(found))
        for name, found in coverage.features.items()
    ]
    total = ("**all**", sum(coverage.scripts.values()), sum(coverage.calls.values()), "")
    return ["## Recordings", "", *_table(("recording", "scripts", "calls", "topology features"), [*rows, total])]


def _modes(coverage: Coverage, kind: str, source: str) -> list[str]:
    modes = MODES[1:] if source == "shared" else MODES
    rows = [(mode, *(len(coverage.placed.get((kind, source, mode, way), ())) for way in WAYS)) for mode in modes]
    title = f"## {kind}, {'policy of the range' if source == 'shared' else 'policy of the task'}"
    return [title, "", *_table(("mode", *WAYS), rows)]


def _tasks(coverage: Coverage) -> list[str]:
    head = ("mode", *(f"{order}, {tasks} task{'s' if tasks > 1 else ''}" for tasks in range(1, 5) for order in ORDERS))
    rows = [
        (mode, *(len(coverage.by_tasks.get((mode, f"touch {order}", n), ())) for n in range(1, 5) for order in ORDERS))
        for mode in MODES
    ]
    return ["## Mode, fault order and number of tasks (guest_memfd)", "", *_table(head, rows)]


def _features(coverage: Coverage) -> list[str]:
    def scripts(mode: str, feature: str) -> int:
        return len(set().union(*(coverage.by_feature.get((mode, way, feature), set()) for way in WAYS)))

    rows = [(mode, *(scripts(mode, feature) for feature in FEATURES)) for mode in MODES]
    ways = [
        (way, *(len(set().union(*(coverage.by_feature.get((m, way, f), set()) for m in MODES))) for f in FEATURES))
        for way in WAYS
    ]
    return [
        "## Mode and topology feature (guest_memfd)", "", *_table(("mode", *FEATURES), rows),
        "## Way of faulting and topology feature (guest_memfd)", "", *_table(("way", *FEATURES), ways),
    ]  # fmt: skip


def _operations(coverage: Coverage) -> list[str]:
    names = sorted({name for name, _ in coverage.operations})
    rows = [
        (
            f"`{name}`".replace("|", "\\|"),
            *(len(coverage.operations.get((name, feature), ())) for feature in FEATURES),
            " ".join(f"{result}:{count}" for result, count in sorted(coverage.outcomes[name].items())),
        )
        for name in names
    ]
    head = ("operation", *FEATURES, "results (errno:calls)")
    return ["## Operation and topology feature", "", *_table(head, rows)]


def _holes(coverage: Coverage) -> list[str]:
    lines = ["## Not exercised", ""]
    missing = []
    for kind in ("guest_memfd", "memfd"):
        for source in ("shared", "task"):
            for mode in MODES[1:] if source == "shared" else MODES:
                for way in WAYS:
                    if not coverage.placed.get((kind, source, mode, way)):
                        missing.append((kind, source, mode, way))
    lines += [f"- {kind}, policy of the {'range' if source == 'shared' else 'task'} {mode}: {way}"
              for kind, source, mode, way in missing]  # fmt: skip
    features = [
        f"- {mode} with: {', '.join(absent)}"
        for mode in MODES
        if (absent := [f for f in FEATURES if not any(coverage.by_feature.get((mode, way, f)) for way in WAYS)])
    ]
    if not missing and not features:
        lines.append("Nothing: every cell of the tables of modes is exercised.")
    return [*lines, *features]


def recordings() -> list[Path]:
    """The placement recordings of the project."""
    found = sorted(datasets_path("recordings").glob("*.json.gz"))
    return [path for path in found if path.name != "hvo.json.gz"]


def main() -> None:
    """Write COVERAGE.md."""
    target = datasets_path("recordings") / "COVERAGE.md"
    target.write_text(report(measure(recordings())), encoding="utf-8")


if __name__ == "__main__":
    main()
