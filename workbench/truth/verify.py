"""Is the model right? Replay recordings of a real kernel through ``simulate`` and compare everything that was seen.

Return values, errnos, policies and the node of every page are held to equality. What is not known at the start of a
script is inferred once from the first thing that shows it: the first free descriptor, a task's rotation where a script
was not reset, a tmpfs file's inode number. Two kinds of operations are judged otherwise:

* Where a node fills up, the page at which the kernel leaves it depends on per-CPU lists and background allocations. There
  the nodes must appear in the same order, and the pages on each may differ by at most the script's *slack*: the pages by
  which a node's free memory changed between two looks without the script having placed or freed them, plus what the
  kernel does not look at when it compares free pages with a mark (one refill of a per-CPU list in each zone, and the
  per-CPU parts of the counters). Both come from the recording itself. Boots of one script differ by as much among each
  other (``datasets/recordings/repeated``: 181 pages with restricted per-CPU lists, 1,659 with the default ones), for what
  these lists hold at the start is in no file: closer than half of that no rule can be to all of them.
* A task policy of interleave kind is advanced by the task's other allocations too. Tables are known; of slabs it is not
  known which were partly full, so that a step may be missing or be one too many. In the order of a task's touches its
  pages must lie on the nodes of its rotation but for a few such steps. Not judged is what comes behind such a step in a
  weighted rotation, and pages of which no line says which task touched them.

Recordings of struct pages and of in-place conversion are compared too, each in its own way: :func:`struct_page_report`,
:mod:`workbench.truth.conversion_replay`.
"""

from __future__ import annotations

import errno
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench import policy as mp
from workbench import results
from workbench import scenario as sc
from workbench.answer import Answer
from workbench.engine.kernel_pages import SLAB_PAGES
from workbench.engine.page_tables import CACHE_LEAST, CACHE_OBJECTS
from workbench.engine.placing import check_listed
from workbench.errors import WorkbenchError
from workbench.files import real_path
from workbench.kernels import fault_order
from workbench.limits import OBSERVED_RUNS
from workbench.running import run
from workbench.simulation import simulate
from workbench.tracking import struct_pages
from workbench.truth.conversion_recording import (
    ConversionRecording,
    RecordedConversions,
    is_conversion_recording,
    parse,
)
from workbench.truth.conversion_replay import Replay
from workbench.truth.recording import (
    Recorded,
    RecordedScenario,
    Recording,
    counters_of,
    created_shared,
    find_recording,
    load,
    read,
    to_scenario,
    unpack_place,
)
from workbench.units import PAGE_SIZE
from workbench.variables import SideBySide

logger = logging.getLogger(__name__)

_NOT_JUDGED = {
    "zones": "free pages include the background's use",
    "eat": "the amount depends on the background's use",
    "eatto": "the amount depends on the background's use",
    "uneat": "returns nothing",
}
"""Lines that are replayed, but whose answer is not compared. Those that are not replayed carry their reason with them."""


@dataclass
class Mismatch:
    """One disagreement, with the state that explains it."""

    scenario: str
    operation: int
    text: str
    what: str
    expected: str
    simulated: str
    task: str = ""
    policy: str = ""


@dataclass
class ScenarioReport:
    """What was compared in one script."""

    name: str
    operations: int = 0
    judged: int = 0
    pages: int = 0
    deviation: int = 0
    slack: int = 0
    not_judged: Counter[str] = field(default_factory=Counter)
    pages_not_judged: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)


@dataclass
class RecordingReport:
    """What was compared in one file."""

    path: str
    topology: str
    scenarios: list[ScenarioReport]
    profile: str = ""
    """Whose rules the recording was held against; empty for recordings of struct pages and of posted series."""
    note: str = ""
    """Says that the recorded version has no profile of its own, and which one was taken."""

    @property
    def agrees(self) -> bool:
        """No mismatch anywhere."""
        return not any(scenario.mismatches for scenario in self.scenarios)

    def totals(self) -> dict[str, int]:
        """Sums over the scripts, and the largest deviation."""
        return {
            "scenarios": len(self.scenarios),
            "operations": sum(s.operations for s in self.scenarios),
            "judged": sum(s.judged for s in self.scenarios),
            "pages": sum(s.pages for s in self.scenarios),
            "mismatches": sum(len(s.mismatches) for s in self.scenarios),
            "not_judged": sum(sum(s.not_judged.values()) for s in self.scenarios),
            "pages_not_judged": sum(s.pages_not_judged for s in self.scenarios),
            "largest_deviation": max((s.deviation for s in self.scenarios), default=0),
        }

    def as_mapping(self) -> dict[str, Any]:
        """For JSON."""
        # asdict would make a Counter of a Counter's items.
        scenarios = [
            asdict(replace(one, not_judged=Counter())) | {"not_judged": dict(one.not_judged)} for one in self.scenarios
        ]
        return {
            "path": self.path,
            "topology": self.topology,
            "profile": self.profile,
            "note": self.note,
            "totals": self.totals(),
            "scenarios": scenarios,
        }


def verify(paths: Sequence[str | Path], progress: Callable[[int, int], None] | None = None) -> list[RecordingReport]:
    """Replay every script of the given recordings, and compare those of struct pages with the model.

    Paths may be names of shipped recordings (``t2eq``). Raises WorkbenchError for a file that is not whole.
    """
    found = [real_path(find_recording(path)) for path in paths]
    for at, file in enumerate(found):
        if file in found[:at]:
            first = str(paths[found.index(file)])
            raise WorkbenchError(f"recording: {first!r} and {str(paths[at])!r} are one file; each of them once")
    recordings = [_read_either(find_recording(path)) for path in paths]
    total = sum(len(recording.scenarios) for recording in recordings)
    done = 0
    reports = []
    for path, recording in zip(paths, recordings, strict=True):
        if isinstance(recording, RecordingReport):
            reports.append(recording)
            continue
        scenarios = []
        for position in range(len(recording.scenarios)):
            if isinstance(recording, ConversionRecording):
                scenarios.append(verify_conversions(recording, recording.scenarios[position]))
            else:
                scenarios.append(verify_scenario(recording, recording.scenarios[position]))
            done += 1
            if progress is not None:
                progress(done, total)
        if isinstance(recording, ConversionRecording):
            topology = f"{len(recording.topology.nodes)} nodes, generation {recording.generation}"
            reports.append(RecordingReport(str(find_recording(path)), topology, scenarios))
        else:
            profile, note = recording.rules()
            reports.append(RecordingReport(str(recording.path), recording.topology, scenarios, profile, note))
    return reports


def _read_either(path: Path) -> Recording | ConversionRecording | RecordingReport:
    """A recording of placement or of conversion, to be replayed; or one of struct pages, compared at once."""
    document = load(path)
    if is_conversion_recording(document):
        return parse(path, document)
    return struct_page_report(path, document) if "cases" in document else read(path)


def verify_conversions(recording: ConversionRecording, recorded: RecordedConversions) -> ScenarioReport:
    """Replay one scenario of conversions and compare the state after each operation."""
    report = ScenarioReport(recorded.name, len(recorded.ops))
    number = 0
    try:
        for number, (operation, differences) in enumerate(Replay(recording, recorded).run()):
            report.judged += 1
            report.pages += sum(file.pages for file in operation.after.files.values())
            for difference in differences:
                report.mismatches.append(
                    Mismatch(
                        recorded.name, number, operation.op, difference.what, difference.recorded, difference.simulated
                    )
                )
    except (WorkbenchError, ValueError, LookupError, ArithmeticError) as error:
        logger.debug("%s cannot be replayed", recorded.name, exc_info=True)
        report.not_judged["the script could not be replayed"] = len(recorded.ops) - report.judged
        line = (str(error).splitlines() or [""])[0]
        report.mismatches.append(
            Mismatch(recorded.name, number, recorded.name, "replay", "a result", f"{type(error).__name__}: {line}")
        )
    return report


def struct_page_report(path: Path, document: Mapping[str, Any]) -> RecordingReport:
    """vmemmap pages that the kernel counted in each state of each recorded boot, against the model's."""
    cases: dict[str, ScenarioReport] = {}
    for step in struct_pages.hvo_steps(document, path.name):
        name, _, number = step.case.rpartition("/")
        report = cases.setdefault(name, ScenarioReport(name))
        report.operations += 1
        report.judged += 1
        if step.measured_vmemmap != step.model_vmemmap:
            text = f"{step.huge_pages} huge pages of {step.page_size}, HVO {'on' if step.optimised else 'off'}"
            report.mismatches.append(
                Mismatch(name, int(number), text, "vmemmap pages", str(step.measured_vmemmap), str(step.model_vmemmap))
            )
    return RecordingReport(str(path), "struct pages", list(cases.values()))


def verify_scenario(recording: Recording, recorded: RecordedScenario) -> ScenarioReport:
    """Replay one script and compare. A script that cannot be replayed is a mismatch; the others are still judged."""
    try:
        reasons: dict[int, str] = {}
        scenario, numbers = to_scenario(recording, recorded, reasons)
        scenario = _with_inferred_start(recorded, scenario, numbers)
        return _Comparison(recording, recorded, scenario, numbers, simulate(scenario), reasons).run()
    except (WorkbenchError, ValueError, LookupError, ArithmeticError) as error:
        logger.debug("%s cannot be replayed", recorded.name, exc_info=True)
        report = ScenarioReport(recorded.name, len(recorded.operations))
        report.not_judged["the script could not be replayed"] = len(recorded.operations)
        line = (str(error).splitlines() or [""])[0]
        report.mismatches.append(
            Mismatch(recorded.name, 0, recorded.name, "replay", "a result", f"{type(error).__name__}: {line}")
        )
        return report


def side_by_side(path: str | Path, name: str) -> xr.Dataset:
    """What a script saw of its files beside what the simulation says, for people to look at.

    Returns
    -------
    Dataset with dims ``observation`` and ``page``: ``recorded_node`` and ``simulated_node`` int16 (-1: no page), and
    ``touch_order`` int64, the position at which the page was first touched as far as the script's touches say (-1: never).
    Coordinates: ``observation`` (number of the operation), ``text`` (what it was).
    """
    recording = read(path)
    known = {recorded.name: recorded for recorded in recording.scenarios}
    if name not in known:
        raise WorkbenchError(f"scenario: {name!r} is not in {recording.path.name}; it has {', '.join(sorted(known))}")
    recorded = known[name]
    scenario, numbers = to_scenario(recording, recorded)
    scenario = _with_inferred_start(recorded, scenario, numbers)
    dataset = simulate(scenario)
    seen = [(p, entry) for p, entry in enumerate(recorded.operations) if "place" in entry.seen]
    expected = [_expand(unpack_place(entry.seen["place"])) for _, entry in seen]
    simulated = [_observed(dataset, number, scenario) for p, _ in seen if (number := numbers[p]) is not None]
    orders = [
        _touch_order(recorded, position, len(nodes))[0] for (position, _), nodes in zip(seen, expected, strict=True)
    ]
    pages = max((len(nodes) for nodes in expected), default=0)

    def table(rows: list[np.ndarray], dtype: type) -> np.ndarray:
        out: np.ndarray = np.full((len(rows), pages), -1, dtype)
        for line, row in zip(out, rows, strict=True):
            line[: len(row)] = row
        return out

    return results.make(
        SideBySide,
        {
            "recorded_node": table(expected, np.int16),
            "simulated_node": table(simulated, np.int16),
            "touch_order": table(orders, np.int64),
        },
        {
            "observation": np.array([position for position, _ in seen], np.int64),
            "text": ("observation", np.array([entry.text for _, entry in seen], dtype=str)),
            "page": np.arange(pages),
        },
        provenance=results.provenance(scenario, "truth.verify.side_by_side", recording=recording.path.name, name=name),
        source=recording.path.name,
        attributes={
            "scenario": f"{recording.topology}/{name}", "kernel": recording.kernel, "recording": recording.path.name,
        },
    )  # fmt: skip


def _touch_order(recorded: RecordedScenario, position: int, pages: int) -> tuple[np.ndarray, np.ndarray]:
    """When each page was first touched before an operation, and by which task: int64 (pages,), -1 where that is not known."""
    file, count = recorded.operations[position].words[1], 0
    order, task = np.full(pages, -1, np.int64), np.full(pages, -1, np.int64)
    for entry in recorded.operations[:position]:
        verb = entry.words[0]
        if (
            verb not in _FIRST_TOUCHES
            or entry.words[1] != file
            or (verb == "madv" and entry.words[4] not in _POPULATES)
        ):
            continue
        where = [entry.words[2], "1" if verb == "getnode" else entry.words[3]]
        if any(word.endswith("b") for word in where):  # no whole pages: all of these calls are refused
            continue
        start, length = map(int, where)
        if verb == "punch":
            order[start : start + length] = -1
            continue
        within = np.arange(length)
        kind = entry.words[4] if len(entry.words) > 4 else "seq"
        if kind == "rand":
            fault_order.random_order(np.uint64(int(entry.words[5])), within)
        elif kind == "stride":
            fault_order.strided_order(int(entry.words[5]), within)
        elif kind == "rev":
            within = within[::-1]
        new = start + within
        new = new[new < pages]
        new = new[order[new] < 0]
        order[new] = np.arange(count, count + len(new))
        task[new] = entry.task
        count += len(new)
    return order, task


# ------------------------------------------------------------------------------------------------ unknown starts


def _with_inferred_start(recorded: RecordedScenario, scenario: sc.Scenario, numbers: list[int | None]) -> sc.Scenario:
    """Choose each unknown start so that the first placement which depends on it agrees.

    One number for a task that was not reset (il_prev) and one for a tmpfs file (its inode number modulo the rotation).
    """
    if not recorded.reset:
        for index in range(recorded.tasks):
            scenario = _best_start(recorded, scenario, numbers, index)
    files = [(i, operation) for i, operation in enumerate(scenario.operations) if isinstance(operation, sc.Memfd)]
    for position in [i for i, operation in files if operation.inode is None]:
        scenario = _best_inode(recorded, scenario, numbers, position)
    return scenario


def _best_start(
    recorded: RecordedScenario, scenario: sc.Scenario, numbers: list[int | None], index: int
) -> sc.Scenario:
    candidates = []
    for node in scenario.host.nodes:
        tasks = list(scenario.tasks)
        tasks[index] = tasks[index].model_copy(update={"il_prev": node.id})
        candidates.append(scenario.model_copy(update={"tasks": tuple(tasks)}))
    return candidates[_closest(recorded, candidates, numbers)]


def _best_inode(
    recorded: RecordedScenario, scenario: sc.Scenario, numbers: list[int | None], position: int
) -> sc.Scenario:
    """Inode number modulo the least common multiple of the rotations; where that is large, as many together as can be."""
    file = str(scenario.operations[position].file)  # type: ignore[union-attr]
    base, modulus = 0, 1
    periods = _rotation_lengths(scenario, file)
    while periods:
        grown = int(np.lcm(modulus, periods.pop(0)))
        while periods and int(np.lcm(grown, periods[0])) <= max(modulus, 1) * _MOST_CANDIDATES:
            grown = int(np.lcm(grown, periods.pop(0)))
        bases = range(base, grown, modulus)
        if len(bases) > 1:
            candidates = [_with_inode(scenario, position, inode) for inode in bases]
            base = bases[_closest(recorded, candidates, numbers, file)]
        modulus = grown
    return _with_inode(scenario, position, base)


def _with_inode(scenario: sc.Scenario, position: int, inode: int) -> sc.Scenario:
    operations = list(scenario.operations)
    operations[position] = operations[position].model_copy(update={"inode": inode})
    return scenario.model_copy(update={"operations": tuple(operations)})


def _rotation_lengths(scenario: sc.Scenario, file: str) -> list[int]:
    """Periods of the interleave policies that pages of a tmpfs file can come under, in the order of their first use.

    A policy stays in force while weights change, so each weighted one counts with the weights of its time and all later.
    """
    lengths: dict[int, None] = {}
    boot = {node.id: 1 for node in scenario.host.nodes} | (scenario.boot.weights or {})
    weights, masks = boot, []
    for operation in scenario.operations:
        if isinstance(operation, sc.SetWeights):
            weights = {**weights, **operation.weights} if operation.weights is not None else boot
        if isinstance(operation, sc.SetAutoWeights):
            weights = boot
        if isinstance(operation, sc.SetMempolicy) or (isinstance(operation, sc.Mbind) and operation.file == file):
            nodes = [node for node in mp.nodes_of(mp.parse_nodes(operation.nodes)) if node in boot]
            if operation.mode == "interleave":
                lengths[len(nodes) or 1] = None
            elif operation.mode == "weighted_interleave":
                masks.append(nodes)
        for nodes in masks:
            lengths[sum(weights[node] for node in nodes) or 1] = None
    return list(lengths)


def _closest(
    recorded: RecordedScenario, candidates: list[sc.Scenario], numbers: list[int | None], file: str | None = None
) -> int:
    """Which candidate agrees best: the first observation that tells two apart decides; of equals, the first.

    Most candidates are out after the first observation, so those are run no further than to it.
    """
    seen = [
        (number, _expand(unpack_place(entry.seen["place"])))
        for entry, number in zip(recorded.operations, numbers, strict=True)
        if number is not None and "place" in entry.seen and (file is None or entry.words[1] == file)
    ]
    left = list(range(len(candidates)))
    for count in sorted({min(count, len(seen)) for count in (1, 4, len(seen))} - {0}):
        differences = {place: _differences(candidates[place], seen[:count]) for place in left}
        fewest = min(differences.values())
        left = [place for place in left if differences[place] == fewest]
        if len(left) == 1:
            break
    return left[0]


def _differences(scenario: sc.Scenario, seen: list[tuple[int, np.ndarray]]) -> tuple[int, ...]:
    """Pages that differ from what was seen, for each observation whose pages are listed."""
    answer = run(scenario.model_copy(update={"operations": scenario.operations[: seen[-1][0] + 1]}))
    return tuple(
        int((expected != _observed(answer, number, scenario)).sum())
        for number, expected in seen
        if not json.loads(str(answer["event_detail"][number])).get("not_listed")
    )


def _expand(runs: list[tuple[int | None, int]]) -> np.ndarray:
    """Node of each page as int16, -1 where absent."""
    values = np.array([-1 if node is None else node for node, _ in runs], np.int16)
    return np.repeat(values, [count for _, count in runs])


def _observed(dataset: xr.Dataset | Answer, event: int, scenario: sc.Scenario) -> np.ndarray:
    """Node of each page that event ``event`` observed, -1 where absent."""
    operation = scenario.operations[event]
    assert isinstance(operation, sc.Observe) and operation.length is not None
    start, count = operation.offset // PAGE_SIZE, operation.length // PAGE_SIZE
    check_listed(count, "a line's range")
    out = np.full(count, -1, np.int16)
    mine = np.asarray(dataset["observed_run_event"]) == event
    starts = np.asarray(dataset["observed_run_start"])[mine] - start
    lengths = np.asarray(dataset["observed_run_length"])[mine]
    pages = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    out[pages] = np.repeat(np.asarray(dataset["observed_run_node"])[mine], lengths)
    return out


# ---------------------------------------------------------------------------------------------------- comparison


class _Comparison:
    def __init__(
        self,
        recording: Recording,
        recorded: RecordedScenario,
        scenario: sc.Scenario,
        numbers: list[int | None],
        dataset: xr.Dataset,
        reasons: Mapping[int, str],
    ) -> None:
        self.reasons = reasons
        self.recording, self.recorded, self.scenario = recording, recorded, scenario
        self.numbers, self.dataset = numbers, dataset
        self.report = ScenarioReport(recorded.name, len(recorded.operations))
        self.first_descriptor: int | None = None
        self.details = [json.loads(text) for text in dataset["event_detail"].values]
        self.rets = dataset["event_ret"].values
        self.errnos = dataset["event_errno"].values
        self.private: dict[str, bool] = {}
        self.fills = self._fills()
        self.report.slack = self._slack() if self.fills else 0
        self.unreproducible = self._own_rotation_pages()
        self.looks: dict[int, tuple[int, dict[str, int]]] = {}
        """Of each node: the operation that looked at its counters last, and what it saw."""
        self.metadata: dict[int, dict[str, list[int]]] = {}

    def run(self) -> ScenarioReport:
        alive = True
        for position, (entry, number) in enumerate(zip(self.recorded.operations, self.numbers, strict=True)):
            verb = entry.words[0]
            if verb == "create":
                self.private[entry.words[1]] = not created_shared(entry)
            killed = number is not None and bool(self.details[number].get("killed"))
            if alive and entry.dead and number is None:  # it died of something that is not simulated
                alive = False
                self._pass_over(self.reasons[position])
            elif alive and (entry.dead or killed):
                alive = False
                self._judge_death(position, entry, killed)
            elif not alive:
                self._pass_over("the process had been killed")
            elif number is None:
                self._pass_over(self.reasons[position])
            elif verb in _NOT_JUDGED:
                self._pass_over(_NOT_JUDGED[verb])
            else:
                self._judge(position, entry, number)
        return self.report

    def _pass_over(self, reason: str) -> None:
        self.report.not_judged[reason] += 1

    def _withdraw(self) -> None:
        """The operation being judged turns out to depend on a rotation that other allocations advance too."""
        self.report.judged -= 1
        self._pass_over("the task's own rotation also serves its other allocations")

    def _miss(self, position: int, what: str, expected: object, simulated: object) -> None:
        number = self.numbers[position]
        task = policy = ""
        if number is not None:
            task = str(self.dataset["event_task"].values[number])
            policy = self._policy_before(number)
        entry = self.recorded.operations[position]
        self.report.mismatches.append(
            Mismatch(self.recorded.name, position, entry.text, what, str(expected), str(simulated), task, policy)
        )

    def _policy_before(self, number: int) -> str:
        """The last policy call before an event, for people who look for the cause."""
        for operation in reversed(self.scenario.operations[:number]):
            if isinstance(operation, (sc.Mbind, sc.SetMempolicy)):
                return f"{operation.op} {operation.mode} {operation.nodes or '-'}"
        return "default"

    # ........................................................................................... operation by operation

    def _judge(self, position: int, entry: Recorded, number: int) -> None:
        self.report.judged += 1
        verb, seen, detail = entry.words[0], entry.seen, self.details[number]
        if detail.get("not_listed"):
            self.report.judged -= 1
            self._pass_over(f"the places of one script are more than the {OBSERVED_RUNS} runs that are listed")
        elif verb in ("place", "reveal"):
            self._judge_place(position, entry, number)
        elif verb == "counts":
            self._judge_counts(position, entry, number)
        elif verb in ("nodestat", "cat"):
            self._judge_counters(position, entry, number)
        elif verb == "write":
            errors = [-int(error) for error in detail["errno"].values()]
            self._equal(position, "result", str(seen.get("text", "")).split()[1:], [str(error) for error in errors])
        elif verb == "weights":
            self._judge_weights(position, seen, detail)
        elif verb == "cpuset":
            self._equal(position, "result", (seen.get("mems"), seen.get("procs")), (-int(self.errnos[number]), 0))
        else:
            self._judge_call(position, entry, number)

    def _equal(self, position: int, what: str, expected: object, simulated: object) -> None:
        if expected != simulated:
            self._miss(position, what, expected, simulated)

    def _judge_call(self, position: int, entry: Recorded, number: int) -> None:
        verb, seen, detail = entry.words[0], entry.seen, self.details[number]
        ret, error = int(self.rets[number]), int(self.errnos[number])
        if verb in ("create", "memfd", "retrieve") and error == 0 and seen.get("errno") == 0:
            if self.first_descriptor is None:
                self.first_descriptor = seen["ret"] - ret
            ret += self.first_descriptor
        if verb == "migrate" and not error and seen.get("errno") == 0:
            own = seen.get("ret", 0) - ret
            if own in (0, _PAGES_OF_THE_PROCESS):  # the process has one page that stays, if it lies on the source node
                return
            if any(isinstance(operation, sc.Memfd) for operation in self.scenario.operations[:number]):
                self.report.judged -= 1
                self._pass_over(
                    "migrate_pages counts tmpfs pages that two mappings hold as stuck, as often as it meets them"
                )
                return
        if verb in ("pin", "odirect") and error == errno.EBADF:
            error = errno.EFAULT  # the probe has no mapping then, and takes addresses where nothing is
        if verb in ("pin", "odirect") and isinstance(self.scenario.operations[number], sc.Fault):
            # A pin is of all pages or none; a direct read ends before the first page that cannot be had.
            bad = detail.get("bad", 0)
            done = detail["first"] - int(entry.words[2]) if bad else ret
            good = done > 0 if verb == "odirect" else not bad
            error, ret = (0, done if verb == "odirect" else 0) if good else (errno.EFAULT, -1)
        if verb == "unpin":
            ret = seen.get("ret", ret)  # how many rings and pipes were closed
        if verb == "vtouch":  # the probe adds 1000 to an exit reason other than HLT, and has its own codes for errors
            ret = seen.get("ret", ret) if error and seen.get("errno") == error else ret
            ret = 0 if detail.get("exit") in (None, 5) and not error else (1000 + detail["exit"] if not error else ret)
        self._equal(position, "return value", seen.get("ret"), ret)
        self._equal(position, "errno", seen.get("errno"), error)
        names = {
            "touch": ("bad", "first"),
            "rtouch": ("bad", "first"),
            "vtouch": ("done", "exit") if error == 0 else ("done",),
            "prefault": ("left",),
            "getnode": ("node",) if error == 0 else (),
            "getil": ("node",) if error == 0 else (),
        }
        if verb in ("getnode", "getil") and error == 0 and self._follows_own_rotation(number):
            self.report.mismatches = [m for m in self.report.mismatches if m.operation != position]
            self._withdraw()
            return
        for name in names.get(verb, ()):
            self._equal(position, name, seen.get(name), detail.get(name))
        if verb in ("getpol", "gettask") and error == 0:
            self._equal(position, "mode", seen.get("mode"), detail["mode"])
            self._equal(position, "nodes", _mask(seen.get("nodes")), mp.parse_nodes(detail["nodes"]))
        if verb == "movepages":
            expected = tuple(seen.get(name) for name in ("st0", "stN", "same"))
            self._equal(
                position, "status", expected, tuple(detail.get(f"status_{n}") for n in ("first", "last", "same"))
            )

    def _judge_weights(self, position: int, seen: Any, detail: Any) -> None:
        text = str(seen.get("text", ""))
        if text.strip() == "weights default":
            return
        before, _, after = text.removeprefix("weights").partition("->")
        errors = dict(part.replace("=", ":").split(":")[::2] for part in before.split())
        weights = dict(part.split(":") for part in after.split())
        self._equal(position, "errnos", {n: -int(e) for n, e in errors.items()}, detail["errno"])
        self._equal(position, "weights", {n: int(w) for n, w in weights.items()}, detail["weights"])

    def _judge_place(self, position: int, entry: Recorded, number: int) -> None:
        file = entry.words[1]
        simulated = _observed(self.dataset, number, self.scenario)
        if "place_error" in entry.seen:
            self._judge_place_error(position, entry, number, simulated)
            return
        expected = _expand(unpack_place(entry.seen["place"]))
        if self.private.get(file) and entry.words[0] != "reveal":
            simulated = np.full_like(simulated, -1)  # the observer cannot touch private pages
        self.report.pages += len(expected)
        self._judge_pages(position, expected, simulated, file)

    def _judge_place_error(self, position: int, entry: Recorded, number: int, simulated: np.ndarray) -> None:
        """A file that nobody can map, of which the number of pages is known; or one that is not open."""
        error = str(entry.seen["place_error"])
        if error.startswith("place ERR getfd"):
            self._equal(position, "errno", int(error.split()[-1]), int(self.errnos[number]))
            return
        if " reveal " in error:  # the observer's own reading of the page cache failed: there is no such slot to run in
            self._equal(position, "pages present", 0, int((simulated >= 0).sum()))
            return
        words = dict(part.split("=") for part in error.split() if "=" in part)
        self._equal(position, "pages present", words.get("present"), str(int((simulated >= 0).sum())))

    def _judge_pages(self, position: int, expected: np.ndarray, simulated: np.ndarray, file: str) -> None:
        if len(expected) != len(simulated) or ((expected < 0) != (simulated < 0)).any():
            self._miss(position, "pages present", _summary(expected), _summary(simulated))
            return
        loose = self.unreproducible.get(file)
        judged = np.ones(len(expected), bool)
        if loose is not None:
            start = self.scenario.operations[self.numbers[position]].offset // PAGE_SIZE  # type: ignore[index, union-attr]
            own = loose[start : start + len(expected)] & (expected >= 0)
            exact, in_order = self._follow_rotation(position, expected, simulated, own, start)
            judged = ~own | exact
            unknown = int((own & ~exact & ~in_order).sum())
            self.report.pages_not_judged += unknown
            if unknown and unknown == int((expected >= 0).sum()):
                self._withdraw()
        wrong = np.flatnonzero((expected != simulated) & judged)
        if not len(wrong) or (self.fills and self._within_slack(expected, simulated)):
            return
        page = int(wrong[0])
        self._miss(
            position,
            f"node of page {page} ({len(wrong)} pages differ)",
            f"{expected[page]} in {_summary(expected)}",
            f"{simulated[page]} in {_summary(simulated)}",
        )

    def _follow_rotation(
        self, position: int, expected: np.ndarray, simulated: np.ndarray, own: np.ndarray, start: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of a task's ``own`` pages lie where its rotation puts them, and which do so but for a few steps: bool (pages,).

        A slab that was partly full, or a table that was there already, is a step of the rotation that the simulation takes
        and the kernel did not, or the other way round. Up to the first such step pages are exact; then, in the order of the
        touches of the task, the nodes must be the same sequence with some of them more and some less. Where several weighted
        policies take turns in one rotation a step more changes where each begins: what follows is not known.
        """
        exact, in_order = np.zeros(len(expected), bool), np.zeros(len(expected), bool)
        if self.fills:
            return exact, in_order
        order, task = (found[start:] for found in _touch_order(self.recorded, position, start + len(expected)))
        for toucher in np.unique(task[own & (order >= 0)]).tolist():
            pages = np.flatnonzero(own & (order >= 0) & (task == toucher))
            pages = pages[np.argsort(order[pages])]
            there, here = expected[pages], simulated[pages]
            differ = np.flatnonzero(there != here)
            first = int(differ[0]) if len(differ) else len(pages)
            exact[pages[:first]] = True
            if first == len(pages) or not self._turns_in_one_sequence(position, f"t{toucher}"):
                continue
            in_order[pages[first:]] = True
            turn = len(
                np.unique(here)
            )  # a rotation that is ahead by any number of steps is level again after this many
            most = min(_MOST_EDITS, max(_FEWEST_EDITS, 2 * turn, len(pages) * 2 // 5))
            if _edits(there, here, most) > most:
                self._miss(
                    position, f"nodes in the order of task t{toucher}'s own rotation", _summary(there), _summary(here)
                )
        return exact, in_order

    def _turns_in_one_sequence(self, position: int, task: str) -> bool:
        """Whether a step more or less moves the nodes of a task's rotation on, and changes nothing else of them.

        Of weighted policies that is so as long as only one of them takes turns, with the same weights all the time.
        """
        number = self.numbers[position]
        assert number is not None
        policies: set[tuple[str, str]] = set()
        weighed = False
        for operation in self.scenario.operations[:number]:
            if isinstance(operation, (sc.SetWeights, sc.SetAutoWeights)):
                weighed |= bool(policies)  # which may be others than those that take turns
            if isinstance(operation, sc.Mbind) or (isinstance(operation, sc.SetMempolicy) and operation.task == task):
                policies.add((str(operation.mode), str(operation.nodes)))
        turns = {policy for policy in policies if "interleave" in policy[0]}
        weighted = any(mode.startswith("weighted") for mode, _ in turns)
        return not weighted or (len(turns) == 1 and not weighed)

    def _within_slack(self, expected: np.ndarray, simulated: np.ndarray) -> bool:
        """Same order of nodes, and counts that differ by no more than the slack (a node may be missed by as much)."""
        nodes = np.union1d(expected[expected >= 0], simulated[simulated >= 0])
        counts = [((expected == node).sum(), (simulated == node).sum()) for node in nodes]
        deviation = max((abs(int(a) - int(b)) for a, b in counts), default=0)
        self.report.deviation = max(self.report.deviation, deviation)
        firm = {int(node) for node, (a, b) in zip(nodes, counts, strict=True) if min(a, b) > self.report.slack}
        orders = [[node for node in _order(side) if node in firm] for side in (expected, simulated)]
        return deviation <= self.report.slack and orders[0] == orders[1]

    def _judge_counters(self, position: int, entry: Recorded, number: int) -> None:
        """Page tables of both kinds and slabs that came since the last look at a node's counters.

        Tables are exact but for what the script does not decide: the address of a mapping (one table more or less for each
        file), tables of other processes (one), tables of the second stage for the probe's own code and where a file's
        place among the guest's addresses meets another table. Where tables follow a rotation that other allocations move on
        too, their sum over the nodes is judged so, and each node within one turn of the rotation for every batch. Slabs: one
        for each CPU, and the part of the counter that a CPU keeps to itself.
        """
        found = counters_of(entry)
        compared = False
        sums: dict[str, list[int]] = {}
        for node, now in found.items():
            before = self.looks.get(node)
            self.looks[node] = (position, now)
            if before is None:
                continue
            first, then = before
            between = list(range(first + 1, position))
            if any(self.numbers[p] is None and not self._only_looks(p) for p in between):
                continue
            start = self.numbers[first]
            assert start is not None
            compared = True
            came = {kind: pages[number] - pages[start] for kind, pages in self._metadata(node).items()}
            seen = {name: now[name] - then[name] for name in now}
            verbs = [self.recorded.operations[p].words[:2] for p in between]
            files = len({words[1] for words in verbs if words[0] in _TOUCHES and len(words) > 1})
            loose = {"PageTables": (files + 1, files + 1), "SecPageTables": (0, 0)}
            guest = {words[1] for words in verbs if words[0] in ("vtouch", "prefault") and len(words) > 1}
            if guest:
                loose["SecPageTables"] = (len(guest) - 1, len(guest) + any(words[0] == "vtouch" for words in verbs))
            for name, kind in (("PageTables", "page_tables"), ("SecPageTables", "second_stage")):
                less, more = loose[name]
                total = sums.setdefault(name, [0, 0, less, more])
                total[0] += seen[name]
                total[1] += came[kind]
                turn = self._turn(node, number)
                if turn and max(abs(seen[name]), came[kind]):
                    batches = 1 + max(seen[name], came[kind]) // (CACHE_OBJECTS - CACHE_LEAST)
                    less, more = less + turn * batches, more + turn * batches
                if not came[kind] - less <= seen[name] <= came[kind] + more:
                    self._miss(position, f"{name} of node {node}", seen[name], came[kind])
            if now["SReclaimable"]:  # with SLUB_TINY the slabs of all caches are counted together
                slabs, slack = came["page_cache"] + came["attributes"], self._slab_slack()
                if abs(seen["SReclaimable"] - slabs) > slack:
                    what = f"SReclaimable of node {node}, within {slack}"
                    self._miss(position, what, seen["SReclaimable"], slabs)
        for name, (were, should, less, more) in sums.items():
            told = any(one.operation == position and one.what.startswith(name) for one in self.report.mismatches)
            if len(found) > 1 and not told and not should - less <= were <= should + more:
                self._miss(position, f"{name} of all nodes", were, should)
        if not compared:
            self.report.judged -= 1
            self._pass_over("the first look at a node's counters, or one after something that is not simulated")

    def _metadata(self, node: int) -> dict[str, list[int]]:
        """Pages of a node by kind of metadata, along the events."""
        if node not in self.metadata:
            pages = self.dataset["metadata_pages"].sel(node=node)
            self.metadata[node] = {str(kind): pages.sel(kind=kind).values.tolist() for kind in pages["kind"].values}
        return self.metadata[node]

    def _turn(self, node: int, number: int) -> int:
        """Pages that one turn of a task's own interleave policy gives to a node; 0 if no task has had one up to an event."""
        turn, weight = 0, (self.scenario.boot.weights or {}).get(node, 1)
        for operation, error in zip(self.scenario.operations[:number], self.errnos[:number], strict=False):
            if isinstance(operation, sc.SetWeights) and operation.weights and not error:
                weight = max(weight, operation.weights.get(node, 1))
            elif isinstance(operation, sc.SetMempolicy) and not error and "interleave" in str(operation.mode):
                turn = max(turn, weight if operation.mode == "weighted_interleave" else 1)
        return turn

    def _only_looks(self, position: int) -> bool:
        return self.recorded.operations[position].words[0] in (
            "cat",
            "meminfo",
            "numastat",
            "pools",
            "kho",
            "sleep",
            "pfns",
        )

    def _slab_slack(self) -> int:
        """One slab for each CPU, and what of a node's counter one CPU has not added yet (mm/vmstat.c)."""
        cpus = sum(len(node.cpus) for node in self.recording.host.nodes) or 1
        managed = max((zone.managed for node in self.recording.host.nodes for zone in node.zones or ()), default=0)
        if not managed:
            managed = max(node.memory_bytes for node in self.recording.host.nodes) >> 12
        return SLAB_PAGES * cpus + min(125, 2 * cpus.bit_length() * (1 + (managed >> 15).bit_length()))

    def _judge_counts(self, position: int, entry: Recorded, number: int) -> None:
        file = entry.words[1]
        simulated = _observed(self.dataset, number, self.scenario)
        if "place_error" in entry.seen:
            self._judge_place_error(position, entry, number, simulated)
            return
        expected = {int(node): count for node, count in entry.seen["counts"].items()}
        if self.private.get(file):
            simulated = np.full_like(simulated, -1)  # the observer cannot touch private pages
        counts = {node: int((simulated == node).sum()) for node in expected}
        loose = self.unreproducible.get(file)
        moved = max(abs(counts[node] - expected[node]) for node in expected)
        if loose is not None and loose.any():
            if sum(counts.values()) == sum(expected.values()):
                self._withdraw()
                return
        if self.fills:
            self.report.deviation = max(self.report.deviation, moved)
            if moved <= self.report.slack:
                return
        self._equal(position, "pages per node", expected, counts)

    # ............................................................................................ nodes that fill up

    def _fills(self) -> bool:
        """Whether a node has no zone left above its low mark in the simulation, or the script took memory away."""
        if any(operation.words[0] in ("eat", "eatto") for operation in self.recorded.operations):
            return True
        marks = self.dataset["zone_low"].values + self.dataset["zone_lowmem_reserve"].values
        below = self.dataset["free_pages"].values <= marks
        zone_node = self.dataset["zone_node"].values
        return any(below[:, zone_node == node].all(axis=1).any() for node in np.unique(zone_node))

    def _slack(self) -> int:
        """Pages that the background and the per-CPU parts of the allocator account for, from the recording itself."""
        return self._drift() + self._unseen_pages()

    def _drift(self) -> int:
        """Largest change of a node's free memory between two looks that the simulation does not explain."""
        largest = 0
        free = self.dataset["free_pages"].values
        column = {str(label): index for index, label in enumerate(self.dataset["zone"].values)}
        looks = [
            (number, entry.seen["zones"])
            for entry, number in zip(self.recorded.operations, self.numbers, strict=True)
            if number is not None and isinstance(entry.seen.get("zones"), dict)
        ]
        for number, zones in looks[1:]:
            drift: Counter[str] = Counter()
            for label, state in zones.items():
                if label in column:
                    # The event itself takes the recorded counters over; what was simulated stands before it.
                    drift[label.split("/")[0]] += state["free"] - int(free[number - 1, column[label]])
            largest = max(largest, *(abs(pages) for pages in drift.values()))
        return largest

    def _unseen_pages(self) -> int:
        """Pages of one node by which a watermark check can be wrong: a per-CPU refill and the parts of the counters.

        mm/page_alloc.c: zone_batchsize, nr_pcp_alloc; mm/vmstat.c: calculate_normal_threshold.
        """
        cpus = sum(len(node.cpus) for node in self.recording.host.nodes) or 1
        largest = 0
        for node in self.recording.host.nodes:
            pages = 0
            for zone in node.zones or ():
                batch = min(zone.managed >> 12, 64)
                batch = 1 if batch <= 1 else (1 << (batch + batch // 2).bit_length() - 1) - 1
                refill = batch << _PCP_BATCH_SCALE_MAX if self.recording.default_pcp else 3 * batch
                threshold = min(125, 2 * cpus.bit_length() * (1 + (zone.managed >> 15).bit_length()))
                pages += refill + threshold * cpus
            largest = max(largest, pages)
        return largest

    def _judge_death(self, position: int, entry: Recorded, killed: bool) -> None:
        self.report.judged += 1
        if entry.dead and killed:
            return
        if not self.fills:
            self._miss(position, "killed", entry.dead, killed)
            return
        # The other side dies too, within the slack: count what this side still had to place.
        deaths = [
            i
            for i, (other, number) in enumerate(zip(self.recorded.operations, self.numbers, strict=True))
            if (other.dead if killed else number is not None and self.details[number].get("killed"))
        ]
        pages = sum(_touched(other) for other in self.recorded.operations[position : deaths[0]]) if deaths else None
        if pages is not None:
            self.report.deviation = max(self.report.deviation, pages)
        if pages is None or pages > self.report.slack + max(map(_touched, self.recorded.operations)):
            self._miss(position, "killed", entry.dead, killed)

    # ............................................................................... a task's own interleave policy

    def _follows_own_rotation(self, number: int) -> bool:
        task = str(self.dataset["event_task"].values[number])
        return self._own_mode(task, number) is not None

    def _own_mode(self, task: str, number: int) -> str | None:
        """The task's own interleave mode at an event, or None."""
        mode: str | None = None
        for position, operation in enumerate(self.scenario.operations[:number]):
            if isinstance(operation, sc.ResetRotation) and operation.task == task:
                mode = None
            if isinstance(operation, sc.SetMempolicy) and operation.task == task and not self.errnos[position]:
                mode = str(operation.mode) if "interleave" in str(operation.mode) else None
        return mode

    def _own_rotation_pages(self) -> dict[str, np.ndarray]:
        """Pages of each file that were placed while the rotation was not reproducible: bool (pages,).

        From the first allocation a task makes under its own interleave policy until that rotation is set anew, every
        rotation-driven page of that task stands on an unknown step.
        """
        out: dict[str, np.ndarray] = {}
        unknown: set[str] = set()
        for number, operation in enumerate(self.scenario.operations):
            task = operation.task or "t0"
            if isinstance(operation, (sc.ResetRotation, sc.SetMempolicy)):
                if isinstance(operation, sc.ResetRotation) or self._own_mode(task, number + 1) is not None:
                    unknown.discard(task)
                continue
            if self._own_mode(task, number) is not None:
                unknown.add(task)
            if task not in unknown or not isinstance(
                operation, (sc.Fault, sc.Fallocate, sc.Madvise, sc.GetMempolicy, sc.Pin)
            ):
                continue
            if operation.file is None or operation.file not in self.dataset["file"].values:
                continue
            size = int(self.dataset["file_pages"].sel(file=operation.file))
            pages = out.setdefault(operation.file, np.zeros(size, bool))
            start = operation.offset // PAGE_SIZE
            length = getattr(operation, "length", PAGE_SIZE)
            end = size if length is None else start + -(-length // PAGE_SIZE)
            pages[start:end] |= self._interleaved(number, operation.file, start, min(end, size))
        return out

    def _interleaved(self, number: int, file: str, start: int, end: int) -> np.ndarray:
        """Which pages of a range would be placed by a rotation at an event: a task policy or a shared one."""
        task = self.scenario.operations[number].task or "t0"
        own = self._own_mode(task, number) is not None
        out = np.full(max(0, end - start), own)
        made = any(
            isinstance(operation, sc.Create) and operation.file == file for operation in self.scenario.operations
        )
        if made and not self.scenario.kernel.file_policy:
            return out  # a guest_memfd whose allocations look at no policy of its mapping
        for operation, error in zip(self.scenario.operations[:number], self.errnos[:number], strict=False):
            if isinstance(operation, sc.Mbind) and operation.file == file and not error:
                low = operation.offset // PAGE_SIZE - start
                length = operation.length or 0
                high = low + -(-length // PAGE_SIZE)
                rotates = "interleave" in str(operation.mode)
                out[max(0, low) : max(0, high)] = own if operation.mode == "default" else rotates
        return out


_TOUCHES = ("touch", "rtouch", "madv", "getnode", "place", "counts")
"""Verbs that reach pages of a file through a mapping of the script or of the observer."""
_FIRST_TOUCHES = ("touch", "rtouch", "falloc", "prefault", "vtouch", "pin", "odirect", "madv", "getnode", "punch")
"""Verbs that say which pages a task touches, in which order, or takes away."""
_POPULATES = ("22", "23")
"""MADV_POPULATE_READ, MADV_POPULATE_WRITE."""
_MOST_CANDIDATES = 1024
"""Starts that are tried one by one."""
_FEWEST_EDITS, _MOST_EDITS = 4, 64
"""Steps by which a task's rotation in a recording may differ from the simulated one: at least so many, at most so many."""
_PCP_BATCH_SCALE_MAX = 5
_PAGES_OF_THE_PROCESS = 1
"""Pages of the recorder's own process that migrate_pages reports besides the script's, when they lie on the source."""


def _edits(first: np.ndarray, second: np.ndarray, most: int) -> int:
    """Fewest entries to take out and put in so that one sequence becomes the other; ``most`` + 1 if more than ``most``.

    The furthest end of each diagonal after each edit (Myers, "An O(ND) Difference Algorithm", 1986).
    """
    differ: dict[int, np.ndarray] = {}
    ends = {1: 0}
    for edits in range(most + 1):
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (diagonal != edits and ends[diagonal - 1] < ends[diagonal + 1])
            at = ends[diagonal + 1] if down else ends[diagonal - 1] + 1
            if diagonal not in differ:
                low = max(0, diagonal)
                length = max(0, min(len(first) - low, len(second) - (low - diagonal)))
                wrong = first[low : low + length] != second[low - diagonal : low - diagonal + length]
                differ[diagonal] = np.append(np.flatnonzero(wrong), length) + low
            known = differ[diagonal]
            place = int(np.searchsorted(known, at))
            ends[diagonal] = at = int(known[place]) if place < len(known) else at
            if at >= len(first) and at - diagonal >= len(second):
                return edits
    return most + 1


def _touched(entry: Recorded) -> int:
    verb = entry.words[0]
    if verb in ("touch", "rtouch", "falloc", "prefault", "vtouch"):
        word = entry.words[3]
        return int(word[:-1]) // PAGE_SIZE if word.endswith("b") else int(word)
    return 0


def _mask(nodes: object) -> int:
    return 0 if nodes in (None, "-") else mp.parse_nodes(str(nodes))


def _order(nodes: np.ndarray) -> list[int]:
    """Nodes in the order of their first page."""
    present = nodes[nodes >= 0]
    _, first = np.unique(present, return_index=True)
    return [int(present[i]) for i in np.sort(first)]


def _summary(nodes: np.ndarray) -> str:
    """The run-length form, shortened."""
    edges = np.flatnonzero(np.diff(nodes)) + 1
    starts, ends = np.concatenate(([0], edges)), np.concatenate((edges, [len(nodes)]))
    runs = [f"{'.' if nodes[s] < 0 else nodes[s]}*{e - s}" for s, e in zip(starts[:12], ends[:12], strict=True)]
    return ",".join(runs) + (",..." if len(starts) > 12 else "")
