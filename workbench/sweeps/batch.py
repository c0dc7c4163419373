"""Many notebook runs at once: each in a process of its own with a log, a failure stops none of the others.

    jobs:
      - notebook: notebooks/01_placement.ipynb
        parameters: {machine: epyc1-naples-2s}
        out: naples.html
      - notebook: notebooks/01_placement.ipynb
        name: genoa
        parameters: {machine: epyc4-genoa-2s}

``defaults`` (notebook, parameters, timeout) apply to every job, ``out_dir`` is where reports and logs go. All jobs are
checked before the first one starts.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import children, replacing
from workbench.errors import WorkbenchError
from workbench.files import is_file
from workbench.units import check_processes, check_seconds

_JOB_KEYS = ("name", "notebook", "parameters", "out", "timeout")
_LOG_BEGINS = "notebook "
_KEYS = ("jobs", "defaults", "out_dir", "comment")


@dataclass(frozen=True)
class Job:
    """One report to make."""

    name: str
    notebook: Path
    parameters: Mapping[str, Any]
    out: Path
    timeout: float | None = None

    @property
    def log(self) -> Path:
        """Where the job says what it does."""
        return self.out.with_name(self.out.name + ".log")


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended. ``state`` is ``ok``, ``failed`` or ``not run`` (the batch was interrupted)."""

    job: Job
    state: str
    seconds: float
    message: str = ""


def read_jobs(path: Path, out_dir: Path | None = None) -> list[Job]:
    """Read and check a jobs file: keys, notebooks, and every parameter against its notebook's parameters cell.

    Notebook paths are relative to the current directory, or else to the file. Raises WorkbenchError naming the job.
    """
    from workbench.reports.notebook_parameters import check_values, find_notebook, read_notebook, read_parameters
    from workbench.safe_yaml import load

    given = load(path, "jobs")
    if not isinstance(given, Mapping) or not isinstance(given.get("jobs"), list) or not given["jobs"]:
        raise WorkbenchError(f"{path}: 'jobs' needs a list with at least one job")
    _only(given, _KEYS, str(path))
    defaults = given.get("defaults") or {}
    if not isinstance(defaults, Mapping):
        raise WorkbenchError(f"{path}: defaults: {defaults!r} is not a mapping")
    _only(defaults, ("notebook", "parameters", "timeout"), f"{path}: defaults")
    folder = out_dir or Path(str(given.get("out_dir") or "."))
    jobs: list[Job] = []
    for number, one in enumerate(given["jobs"], 1):
        where = f"{path}: job {number}"
        if not isinstance(one, Mapping):
            raise WorkbenchError(f"{where}: {one!r} is not a mapping with 'notebook'")
        _only(one, _JOB_KEYS, where)
        place = one.get("notebook", defaults.get("notebook"))
        if not isinstance(place, str):
            raise WorkbenchError(f"{where}: 'notebook' is missing")
        notebook = next((p for p in (Path(place), path.parent / place) if is_file(p)), None)
        if notebook is None:
            try:
                notebook = find_notebook(place)
            except WorkbenchError as error:
                raise WorkbenchError(f"{where}: {error}") from None
        if not is_file(notebook):
            raise WorkbenchError(f"{where}: notebook {place!r} is not there")
        parameters = {**_mapping(defaults, where), **_mapping(one, where)}
        declared = read_parameters(read_notebook(notebook), notebook.name)
        checked = check_values(declared, parameters, None, f"{where}: {notebook.name}")
        name = str(one.get("name") or f"{notebook.stem}-{number}")
        out = folder / str(one.get("out") or (re.sub(r"[^\w.+-]+", "_", name)[:100] + ".html"))
        jobs.append(Job(name, notebook, checked, out, _timeout(one.get("timeout", defaults.get("timeout")), where)))
    for what in ("out", "name"):
        values = [getattr(job, what) for job in jobs]
        for number, value in enumerate(values, 1):
            if values.index(value) != number - 1:
                raise WorkbenchError(f"{path}: job {number}: {what} {str(value)!r} is job {values.index(value) + 1}'s")
    return jobs


def _only(given: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in allowed:
            raise WorkbenchError(f"{where}: no key {str(key)!r}; allowed: {', '.join(allowed)}")


def _mapping(given: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = given.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise WorkbenchError(f"{where}: parameters: {parameters!r} is not a mapping")
    return parameters


def _timeout(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WorkbenchError(f"{where}: timeout: {value!r} is not a number of seconds")
    return float(check_seconds(value, f"{where}: timeout"))


def check_replaceable(jobs: list[Job], force: bool) -> None:
    """Whether reports and logs of the jobs may be written: what is there is a report, or a log. Raises WorkbenchError."""
    from workbench.reports import report

    for job in jobs:
        report.check_replaceable(job.out, force)
        replacing.check(job.log, _is_log, "log of a job", force=force, field="out")


def _is_log(path: Path) -> bool:
    return path.stat().st_size == 0 or replacing.begins(path, _LOG_BEGINS.encode(), len(_LOG_BEGINS))


class _Stop(Exception):
    """The batch was interrupted before this job began."""


def run_batch(
    jobs: list[Job],
    workers: int = 2,
    *,
    force: bool = False,
    finished: Callable[[JobOutcome], None] = lambda outcome: None,
) -> list[JobOutcome]:
    """Run the jobs, so many at a time, and return how each ended, in the order of the jobs.

    force: whatever reports and logs are there may be replaced.
    finished: called after each job. On Ctrl-C running jobs are ended, no new ones start, and KeyboardInterrupt goes on.
    """
    check_processes(workers, "batch.workers")
    check_replaceable(jobs, force)
    running: dict[int, subprocess.Popen] = {}
    guard = threading.Lock()
    stopping = threading.Event()

    def work(job: Job) -> JobOutcome:
        begun = time.perf_counter()
        try:
            message = _run_job(job, force, running, guard, stopping)
            state = "failed" if message else "ok"
        except _Stop:
            state, message = "not run", "interrupted"
        except OSError as error:
            state, message = "failed", f"cannot write {str(job.log)!r}: {error.strerror or error}"
        return JobOutcome(job, state, time.perf_counter() - begun, message)

    outcomes: dict[int, JobOutcome] = {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                outcome = future.result()
                outcomes[id(outcome.job)] = outcome
                finished(outcome)
        except BaseException:
            stopping.set()
            with guard:
                for process in running.values():
                    process.terminate()
            for future in futures:
                future.cancel()
            raise
    return [outcomes[id(job)] for job in jobs]


def _run_job(
    job: Job, force: bool, running: dict[int, subprocess.Popen], guard: threading.Lock, stopping: threading.Event
) -> str:
    """Make one report in a new process; return '' or the line that says what went wrong."""
    import json

    job.out.parent.mkdir(parents=True, exist_ok=True)
    order = {
        "notebook": str(job.notebook), "out": str(job.out), "parameters": dict(job.parameters), "timeout": job.timeout,
        "force": force, "parent": os.getpid(),
    }  # fmt: skip
    with job.log.open("w", encoding="utf-8") as log:
        with guard:
            if stopping.is_set():
                raise _Stop
            process = subprocess.Popen(
                [sys.executable, "-m", "workbench.sweeps.batch"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            running[id(job)] = process
        try:
            process.communicate(json.dumps(order))
        finally:
            with guard:
                del running[id(job)]
    if process.returncode == 0:
        return ""
    lines = [line for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("failed: ")), lines[-1] if lines else "")
    return last.removeprefix("failed: ")[:300] or f"ended with {process.returncode}"


def _child() -> int:
    """One job, told on standard input; what it says goes to the log."""
    import json

    from workbench.reports.report import NotebookFailed, make_report

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the kernel is ended too
    try:
        order = json.load(sys.stdin)
    except ValueError:  # who had something to tell was killed before
        return 130
    children.tie(order["parent"], signal.SIGTERM)  # whatever ends the batch, also SIGKILL
    print(f"{_LOG_BEGINS}{order['notebook']}\nparameters {json.dumps(order['parameters'])}", flush=True)
    try:
        made = make_report(
            order["notebook"],
            order["out"],
            parameters=order["parameters"],
            progress=True,
            timeout=order["timeout"],
            force=order["force"],
        )
    except NotebookFailed as error:
        print(f"{error.trace}\nfailed: {error}", flush=True)
        return 1
    except WorkbenchError as error:
        print(f"failed: {error}", flush=True)
        return 2
    except KeyboardInterrupt:
        print("failed: interrupted", flush=True)
        return 130
    print(f"report {made.path}: {made.bytes} bytes, {len(made.figures)} figures, {made.seconds:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_child())
