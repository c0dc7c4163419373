"""Notebooks run with other parameters and handed on as one HTML file; and the same file checked against a new run.

In a notebook, :func:`figure` shows a figure with its caption and records which data it shows, and :func:`record` notes
the scenario of a Dataset that no figure shows. Outside, :func:`make_report` runs a notebook through papermill and
writes the report, and :func:`check_report` makes it again and compares the data of every figure.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import io
import json
import math
import os
import platform
import re
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.data import notebooks_path, root
from workbench.errors import WorkbenchError, reason
from workbench.files import is_file, is_there, read_file, real_path, whole_file
from workbench.limits import REPORT_BYTES
from workbench.reports.html import HIDDEN_TAG, METADATA_KEY, Figure
from workbench.units import check_seconds
from workbench.validation import first_line
from workbench.variables import CLOCK

if TYPE_CHECKING:
    import nbformat

__all__ = [
    "Comparison",
    "NotebookFailed",
    "Report",
    "check_report",
    "digest",
    "figure",
    "make_report",
    "record",
    "summary",
]

SCHEMA = "workbench-report/1"
RECORD_MIME = "application/vnd.workbench.record+json"
_LIBRARIES = ("numpy", "numba", "xarray", "pandas", "zarr", "dask", "matplotlib", "seaborn", "papermill", "nbconvert")
_LARGEST_SVG = 250_000
"""Characters of a figure as SVG beyond which a report shows it as PNG."""
_LARGEST_TABLE = 4096
"""Values of a variable beyond which it is not in the CSV beside its figure."""
_MAXIMUM_HASHED = 1 << 30
"""Bytes of a file or store beyond which a report names it without its hash."""
_MOST_HASHED = 100_000
"""Files of a store, likewise."""


class NotebookFailed(WorkbenchError):
    """A cell of the notebook raised; ``trace`` is its traceback as plain text."""

    trace: str = ""


# ---------------------------------------------------------------------------------------------- inside a notebook


class ShownFigure:
    """A figure with a caption, as the last expression of a cell; carries the digest of its data to the report."""

    def __init__(self, png: bytes, caption: str, metadata: dict[str, Any], svg: str = "") -> None:
        self._png = png
        self._svg = svg
        self.caption = caption
        self.metadata = metadata

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        import html

        encoded = base64.b64encode(self._png).decode()
        caption = html.escape(self.caption)
        page = (
            f'<figure><img src="data:image/png;base64,{encoded}" alt="{caption}" style="max-width:100%">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
        data = {"image/png": encoded, "text/html": page, "text/plain": f"Figure: {self.caption}"}
        if self._svg:
            data["image/svg+xml"] = self._svg
        return data, {METADATA_KEY: {"figure": self.metadata}}


_recorded: dict[str, dict[str, Any]] = {}
_opened: set[str] = set()
_warned: set[str] = set()


def figure(
    fig: Any,
    *,
    data: Any = None,
    caption: str = "",
    alt: str = "",
    dpi: int = 110,
) -> ShownFigure:
    """Show a figure with a caption and remember what it shows.

    fig: a matplotlib Figure, a seaborn grid (its ``figure`` is taken), or PNG bytes.
    data: the Dataset, DataArray, DataFrame or array the figure was drawn from. Its digest goes into the report, and
        ``workbench report --check`` compares it; without it the pixels are compared. The scenario in its provenance
        and the basis of its variables (exact, counted, modelled) are shown beside the figure.
    caption: text under the figure; the report puts the number in front. ``$TeX$`` is allowed.
    alt: what the figure shows, for readers who cannot see it; the caption when empty.
    dpi: dots per inch of the picture.

    Numbers are the report's: the n-th figure of the page is Figure n.
    """
    metadata: dict[str, Any] = {"alt": alt}
    svg = ""
    if isinstance(fig, bytes):
        png = fig
    else:
        fig = getattr(fig, "figure", fig)
        svg, png = _drawn(fig, dpi)
        if not svg:
            metadata["width"] = int.from_bytes(png[16:20], "big") // 2  # of the IHDR chunk
    if (warnings := str(getattr(data, "attrs", {}).get("warnings", ""))) and warnings not in _warned:
        _warned.add(warnings)  # once in a report, under the first figure of the run
        caption = " ".join([caption, *(f"Warning: {line}." for line in warnings.splitlines())])
    metadata["caption"] = caption
    if data is not None:
        metadata["csv"] = csv_text(data)
        metadata["sha256"] = digest(data)
        metadata["basis"] = _basis(data)
        record(data)
    return ShownFigure(png, caption, metadata, svg)


def _drawn(fig: Any, dpi: int) -> tuple[str, bytes]:
    """A figure as SVG, empty where that would be large, and as PNG, then with twice the dots shown in the same size.

    Where everything goes is found once and kept for both, as that takes longer than drawing.
    """
    layout = fig.get_layout_engine()
    if layout is not None:
        layout.execute(fig)
        fig.set_layout_engine("none")
    try:
        svg = _svg(fig)
        return svg, _png(fig, dpi if svg else 2 * dpi)
    finally:
        if layout is not None:
            fig.set_layout_engine(layout)


def _svg(fig: Any) -> str:
    """A figure as SVG with its letters as paths, the same on every machine; empty where it would be large."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "workbench"}), _canvas_of(fig):
        FigureCanvasSVG(fig).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text if len(text) <= _LARGEST_SVG else ""


def _png(fig: Any, dpi: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer, before = io.BytesIO(), fig.dpi
    with _canvas_of(fig):
        fig.dpi = dpi
        FigureCanvasAgg(fig).print_png(buffer, metadata={"Software": None})
        fig.dpi = before
    return buffer.getvalue()


@contextlib.contextmanager
def _canvas_of(fig: Any) -> Iterator[None]:
    """The figure keeps its canvas. (``savefig`` would draw everything twice for each picture.)"""
    canvas = fig.canvas
    try:
        yield
    finally:
        fig.set_canvas(canvas)


def csv_text(data: Any) -> str:
    """The data of a figure as CSV: a table for each set of dimensions; a line says what is too large for it."""
    parts: list[str] = []
    for item in data if isinstance(data, (list, tuple)) else [data]:
        parts += _tables(item)
    return "\n".join(parts)


def _tables(data: Any) -> Iterator[str]:
    import numpy as np
    import xarray as xr

    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name=str(data.name or "value"))
    if isinstance(data, xr.Dataset):
        by_dims: dict[tuple[str, ...], list[str]] = {}
        for name, variable in data.data_vars.items():
            if variable.size <= _LARGEST_TABLE:
                by_dims.setdefault(tuple(map(str, variable.dims)), []).append(str(name))
            else:
                yield f"# {name}: {variable.size} values, left out here\n"
        for dims, names in by_dims.items():
            units = "; ".join(f"{name} in {data[name].attrs.get('units', '?')}" for name in names)
            heading = f"# over {', '.join(dims) or 'nothing'}: {units}\n"
            if dims:
                frame = data[names].reset_coords(drop=True).to_dataframe()
                yield heading + frame.to_csv()
            else:
                yield heading + "".join(f"{name},{data[name].item()}\n" for name in names)
    elif hasattr(data, "to_csv"):
        yield str(data.to_csv())
    elif isinstance(data, np.ndarray):
        yield "\n".join(",".join(map(str, np.atleast_1d(row).ravel())) for row in data[:_LARGEST_TABLE]) + "\n"


def record(data: Any) -> None:
    """Note the scenario, or the grid of a sweep, in a Dataset's provenance for the report's last section."""
    if isinstance(data, (list, tuple)):
        for item in data:
            record(item)
        return
    text = getattr(data, "attrs", {}).get("provenance")
    if not isinstance(text, str):
        return
    try:
        provenance = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(provenance, dict):
        return
    scenario, grid = provenance.get("scenario"), provenance.get("inputs", {}).get("grid")
    if scenario is None and grid is None:
        return
    if isinstance(scenario, str):
        shown = scenario
    else:
        from workbench import safe_yaml

        shown = safe_yaml.dump(scenario or grid, width=100)
    name = str(data.attrs.get("scenario") or data.attrs.get("name") or "scenario")
    key = hashlib.sha256(shown.encode()).hexdigest()
    _recorded[key] = {"name": name, "yaml": shown, "seed": provenance.get("seed")}


class Summary:
    """A small table that the report shows and that ``workbench report`` also prints in the terminal."""

    def __init__(self, table: Any, title: str) -> None:
        self._table = table
        self.title = title

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        frame = self._table
        rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
        columns = [str(column) for column in frame.columns]
        shown = {"text/html": frame.to_html(index=False, border=0), "text/plain": frame.to_string(index=False)}
        return shown, {METADATA_KEY: {"summary": {"title": self.title, "columns": columns, "rows": rows}}}


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def summary(table: Any, title: str = "") -> Summary:
    """Show a DataFrame (its columns, not its index) in the notebook and, after a report is made, in the terminal."""
    return Summary(table, title)


def digest(data: Any) -> str:
    """Return the SHA-256 of the values of a Dataset, DataArray, DataFrame, array or plain value, as hex.

    Names, dimensions, types and values count; attributes do not, since they hold dates and versions. Times taken on the
    machine itself do not count either: no two runs have the same.
    """
    state = hashlib.sha256()
    _feed(state, data)
    return state.hexdigest()


def _feed(state: Any, data: Any) -> None:
    import numpy as np
    import xarray as xr

    def label(*words: object) -> None:
        state.update(("\x1f".join(str(word) for word in words) + "\x1e").encode())

    if isinstance(data, xr.Dataset):
        for name in sorted(data.variables, key=str):
            variable = data.variables[name]
            if variable.attrs.get("source") == CLOCK:
                continue
            label("variable", name, *variable.dims)
            _feed(state, variable.values)
    elif isinstance(data, xr.DataArray):
        _feed(state, data.to_dataset(name=str(data.name or "value")))
    elif hasattr(data, "to_numpy") and hasattr(data, "columns"):
        for name in ["index", *data.columns]:
            label("column", name)
            _feed(state, (data.index if name == "index" else data[name]).to_numpy())
    elif hasattr(data, "to_numpy"):
        _feed(state, data.to_numpy())
    elif isinstance(data, np.ndarray):
        if data.dtype.kind in "OUTSV":
            label("array", "text", *data.shape)
            for item in data.ravel().tolist():
                label(repr(item))
        else:
            flat = np.ascontiguousarray(data)
            if flat.dtype.byteorder == ">":
                flat = flat.astype(flat.dtype.newbyteorder("<"))
            label("array", flat.dtype.str, *flat.shape)
            state.update(flat.tobytes())
    elif isinstance(data, Mapping):
        for key in sorted(data, key=str):
            label("key", key)
            _feed(state, data[key])
    elif isinstance(data, (list, tuple)):
        label("sequence", len(data))
        for item in data:
            _feed(state, item)
    else:
        label(type(data).__name__, repr(data))


def _basis(data: Any) -> list[str]:
    if isinstance(data, (list, tuple)):
        return sorted({name for item in data for name in _basis(item)})
    variables = getattr(data, "data_vars", {})
    found = {variable.attrs.get("basis") for variable in variables.values()} if variables else set()
    found.add(getattr(data, "attrs", {}).get("basis"))
    return sorted(item for item in found if isinstance(item, str))


def _start_record() -> None:
    """Called by a hidden first cell: from here on, note which data files are read."""
    folder = str(root("datasets")) + os.sep

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            path = os.path.abspath(os.fspath(arguments[0]))
            if isinstance(path, str) and path.startswith(folder) and not path.endswith((".py", ".pyc")):
                _opened.add(path)

    _recorded.clear()
    _opened.clear()
    _warned.clear()
    sys.addaudithook(hook)


def _show_record() -> None:
    """Called by a hidden last cell: hand the notes over to the process that renders."""
    from IPython.display import display

    base = root("datasets").parent
    inputs = [{"path": str(Path(path).relative_to(base)), "sha256": hash_path(Path(path))} for path in sorted(_opened)]
    notes = {"scenarios": list(_recorded.values()), "inputs": inputs, "versions": versions()}
    display({RECORD_MIME: notes, "text/plain": ""}, raw=True)


def hash_path(path: Path) -> str:
    """Return the SHA-256 of a file, or of a directory's files with their names; what is too large is said so.

    Links in a directory are not followed, and nothing but regular files is read.
    """
    if not is_there(path):
        return "gone"
    try:
        return _hash(path)
    except OSError as error:
        return f"not computed ({error.strerror or error})"


def _hash(path: Path) -> str:
    files = []
    size = 0
    for item in _files_below(path) if path.is_dir() else [path]:
        about = item.stat()
        if not stat.S_ISREG(about.st_mode):
            continue
        files.append(item)
        size += about.st_size
        if size > _MAXIMUM_HASHED or len(files) > _MOST_HASHED:  # before the rest is listed
            return f"not computed (larger than 1 GiB or {_MOST_HASHED} files)"
    state = hashlib.sha256()
    for item in sorted(files):
        if path.is_dir():
            state.update(item.relative_to(path).as_posix().encode() + b"\0")
        with item.open("rb") as file:
            while block := file.read(1 << 20):
                state.update(block)
    return state.hexdigest()


def _files_below(path: Path) -> Iterator[Path]:
    for place, _, names in os.walk(path):
        for name in names:
            item = Path(place) / name
            if not item.is_symlink():
                yield item


def versions() -> dict[str, str]:
    """Return the versions of Python, of the workbench and of what it computes and draws with."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("guest-memfd-workbench", *_LIBRARIES):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine_facts() -> dict[str, str]:
    """Return what this report ran on: system, processor, number of CPUs, memory. No host or user name."""
    from workbench.units import format_bytes

    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
        processor = found.group(1).strip() if found else processor
    facts = {"system": f"{platform.system()} {platform.release()} {platform.machine()}", "processor": processor}
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts["processors"] = str(cpus)
    with contextlib.suppress(ValueError, OSError, AttributeError):
        facts["memory"] = format_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return facts


# ---------------------------------------------------------------------------------------------- outside


@dataclass(frozen=True)
class Report:
    """A written report."""

    path: Path
    title: str
    figures: tuple[Figure, ...]
    seconds: float
    bytes: int
    summaries: tuple[dict[str, Any], ...] = ()
    """Tables shown with :func:`summary`: title, columns, rows of text."""


@dataclass(frozen=True)
class Comparison:
    """A report against a new run: one row (number, what is compared, then, now) per figure."""

    rows: tuple[tuple[int, str, str, str], ...]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether every figure has the data it had."""
        return all(then == now for _, _, then, now in self.rows)


def check_replaceable(out: Path, force: bool) -> None:
    """Whether a report may be written here: nothing is there, or a report. Raises WorkbenchError if not."""
    from workbench import replacing

    if out.suffix.lower() not in (".html", ".htm") and not out.is_dir():
        raise WorkbenchError(f"out: {out.name!a} must end in .html")
    replacing.check(out, _is_report, "report", force=force, field="out")


def _is_report(path: Path) -> bool:
    from workbench.reports.html import read_embedded

    with path.open(encoding="utf-8", errors="replace") as file:
        return read_embedded(file.read(REPORT_BYTES)) is not None


def make_report(
    notebook: str | Path,
    out: str | Path | None = None,
    *,
    parameters: Mapping[str, object] | None = None,
    texts: Mapping[str, str] | None = None,
    progress: bool = False,
    timeout: float | None = None,
    force: bool = False,
) -> Report:
    """Run a notebook and write its report as one HTML file that needs no network.

    notebook: path of an .ipynb file, or the name of a ready one.
    out: path of the report; the notebook's name with .html when None.
    parameters: values by name; texts: the same as typed on a command line, read by the parameter's type.
    timeout: seconds a cell may take; no limit when None.
    force: replace whatever file is there; otherwise only a report is.

    Raises WorkbenchError before running for a wrong parameter or a place that cannot be written, and
    NotebookFailed, naming the cell, when one fails; then no file is written.
    """
    from workbench.reports.notebook_parameters import check_values, find_notebook, read_notebook, read_parameters

    notebook = find_notebook(notebook)
    source = read_notebook(notebook)
    declared = read_parameters(source, notebook.name)
    values = check_values(declared, parameters or {}, texts, notebook.name)
    out = Path(out) if out is not None else Path(notebook.stem + ".html")
    check_replaceable(out, force)
    with whole_file(out) as temporary:
        begun = time.perf_counter()
        executed = execute(source, values, notebook.name, progress=progress, timeout=timeout)
        seconds = time.perf_counter() - begun
        page, title, figures = _render(executed, notebook, declared, values, out, seconds)
        temporary.write_text(page, encoding="utf-8")
    return Report(out, title, tuple(figures), seconds, out.stat().st_size, tuple(_summaries(executed)))


def check_report(
    report: str | Path, notebook: str | Path | None = None, *, progress: bool = False, timeout: float | None = None
) -> Comparison:
    """Run a report's notebook again with the report's parameters and compare the data of every figure.

    notebook: where the notebook is now; by default the place the report names. Only a notebook on disk is run,
    never anything out of the report.
    """
    from workbench.reports.html import collect_figures
    from workbench.reports.notebook_parameters import check_values, read_notebook, read_parameters

    report = Path(report)
    embedded = read_report(report)
    place = Path(notebook) if notebook is not None else _find_notebook(report, str(embedded["notebook"]["path"]))
    source = read_notebook(place)
    notes = []
    if notebook_hash(source) != embedded["notebook"]["sha256"]:
        notes.append(f"{place.name} has changed since the report was made")
    declared = read_parameters(source, place.name)
    values = check_values(declared, embedded.get("parameters", {}), None, place.name)
    executed = execute(source, values, place.name, progress=progress, timeout=timeout)
    now = {item.number: item for item in collect_figures(executed)}
    then = {int(item["number"]): item for item in embedded.get("figures", [])}
    rows = []
    for number in sorted(set(then) | set(now)):
        kind = then[number]["kind"] if number in then else now[number].kind
        before = str(then[number]["sha256"]) if number in then else "-"
        after = now[number].sha256 if number in now else "-"
        rows.append((number, str(kind), before, after))
    current = versions()
    for name, old in embedded.get("versions", {}).items():
        if current.get(name) != old:
            notes.append(f"{name} was {old}, is {current.get(name, 'not installed')}")
    return Comparison(tuple(rows), tuple(notes))


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Book(_Strict):
    path: str
    sha256: str


class _Drawn(_Strict):
    number: int
    kind: str
    sha256: str


class _Facts(_Strict):
    """What of a report is read again; it may come from anybody."""

    notebook: _Book
    figures: list[_Drawn] = []
    parameters: dict[str, Any] = {}
    versions: dict[str, str] = {}


def read_report(path: Path) -> dict[str, Any]:
    """Return the facts embedded in a report, or raise WorkbenchError when the file is not one."""
    from workbench.reports.html import read_embedded

    try:
        text = read_file(Path(path), REPORT_BYTES, "report").decode("utf-8")
    except UnicodeDecodeError:
        raise WorkbenchError(f"report: {str(path)!r}: not text") from None
    found = read_embedded(text)
    if not found or found.get("schema") != SCHEMA or not isinstance(found.get("notebook"), dict):
        raise WorkbenchError(f"report: {str(path)!r}: not a report made by 'workbench report'")
    try:
        _Facts.model_validate(found)
    except ValidationError as error:
        raise WorkbenchError(f"report: {str(path)!r}: {first_line(error, _Facts)}") from None
    return found


def _find_notebook(report: Path, recorded: str) -> Path:
    name = Path(recorded).name
    for place in (Path(recorded), notebooks_path().parent / recorded, notebooks_path() / name, report.parent / name):
        if is_file(place):
            return place
    raise WorkbenchError(f"report {str(report)!r}: its notebook {recorded!r} is not here; name it after the report")


def notebook_hash(notebook: nbformat.NotebookNode) -> str:
    """Return the SHA-256 of a notebook's cells: kinds, tags and text, without outputs."""
    state = hashlib.sha256()
    for cell in notebook.cells:
        row = [cell.cell_type, sorted(cell.metadata.get("tags", [])), cell.source]
        state.update(json.dumps(row).encode() + b"\n")
    return state.hexdigest()


def execute(
    notebook: nbformat.NotebookNode,
    values: Mapping[str, Any],
    name: str,
    *,
    progress: bool = False,
    timeout: float | None = None,
) -> nbformat.NotebookNode:
    """Run a notebook in a fresh kernel through papermill and return it with its outputs.

    Raises NotebookFailed naming the first cell that fails, by its place in the notebook.
    """
    import copy
    import logging

    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbformat.v4 import new_code_cell
    from papermill.exceptions import PapermillException, PapermillExecutionError

    whole = None if timeout is None else math.ceil(check_seconds(timeout, "timeout"))  # nbclient takes no half seconds
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what fails is said once, by whoever called
    prepared = copy.deepcopy(notebook)
    first, last = (
        new_code_cell(
            f"import workbench.reports.report\nworkbench.reports.report.{call}()", metadata={"tags": [HIDDEN_TAG]}
        )
        for call in ("_start_record", "_show_record")
    )
    prepared.cells = [first, *prepared.cells, last]
    bar = {"desc": name, "file": sys.stderr, "mininterval": 0.1 if sys.stderr.isatty() else 10.0}
    try:
        with _kernel_manager() as kernel_manager:
            return papermill.execute_notebook(
                prepared,
                None,
                parameters=dict(values),
                kernel_name="python3",
                language="python",
                kernel_manager_class=kernel_manager,
                # It is interrupted when it is to end, and would say so where errors of ours stand alone.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                progress_bar=bar if progress else False,
                execution_timeout=whole,
            )
    except PapermillExecutionError as error:
        raise _failure(notebook, name, error) from error
    except CellTimeoutError as error:
        raise NotebookFailed(f"{name}: a cell took longer than {whole} s") from error
    except (DeadKernelError, RuntimeError, PapermillException) as error:
        raise NotebookFailed(f"{name}: the kernel did not finish: {reason(error, 300)}") from error


@contextlib.contextmanager
def _kernel_manager() -> Iterator[Any]:
    """Kernels over sockets in a directory of their own: many started at once cannot take each other's ports."""
    import tempfile

    from jupyter_client.manager import AsyncKernelManager

    if os.name == "nt":
        yield AsyncKernelManager
        return
    folder = tempfile.mkdtemp(prefix="kernel-")

    class LocalKernelManager(AsyncKernelManager):
        transport = "ipc"
        ip = os.path.join(folder, "socket")

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            if not self.connection_file:  # else one in the temporary directory, which an interrupt leaves there
                self.connection_file = os.path.join(folder, f"{self.kernel_id or id(self)}.json")

    try:
        yield LocalKernelManager
    finally:
        for _ in range(20):  # a kernel that is being ended may still put its socket there
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)


def _failure(notebook: nbformat.NotebookNode, name: str, error: Any) -> NotebookFailed:
    places = [index for index, cell in enumerate(notebook.cells, 1) if cell.source == error.source]
    first = next((line.strip() for line in error.source.splitlines() if line.strip()), "")
    where = f"cell {places[0]} of {len(notebook.cells)}" if places else "the cell with the given parameters"
    message = " ".join(str(error.evalue).split())
    message = message if len(message) <= 200 else message[:197] + "..."
    failed = NotebookFailed(f"{name}: {where} ({first[:60]!r}) failed: {error.ename}: {message}; no report was written")
    failed.trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    return failed


def _taken_record(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    for cell in reversed(notebook.cells):
        for output in cell.get("outputs", []):
            if RECORD_MIME in output.get("data", {}):
                return dict(output["data"][RECORD_MIME])
    return {}


def _summaries(notebook: nbformat.NotebookNode) -> Iterator[dict[str, Any]]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found = output.get("metadata", {}).get(METADATA_KEY, {}).get("summary")
            if found:
                yield dict(found)


def _public_path(path: Path) -> str:
    """A path as others may see it: relative to the checkout or to here, else the bare name."""
    absolute = real_path(path)
    for base in (notebooks_path().parent, Path.cwd()):
        with contextlib.suppress(ValueError):
            return absolute.relative_to(base).as_posix()
    return path.name


def _given_files(declared: Mapping[str, Any], values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Files that parameters name, with their digests: those that the notebook says are paths, and no text that may be one."""
    paths = [Path(value) for name, value in values.items() if value and name in declared and declared[name].is_path]
    return [{"path": _public_path(path), "sha256": hash_path(path)} for path in paths]


def _as_typed(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _render(
    executed: nbformat.NotebookNode,
    notebook: Path,
    declared: Mapping[str, Any],
    values: Mapping[str, Any],
    out: Path,
    seconds: float,
) -> tuple[str, str, list[Figure]]:
    from workbench.reports.html import build_page, embedded_json, render

    body = build_page(executed)
    notes = _taken_record(executed)
    scenarios = notes.get("scenarios", [])
    used = notes.get("versions") or versions()
    place = _public_path(notebook)
    inputs = [*notes.get("inputs", []), *_given_files(declared, values)]
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    when = datetime.datetime.fromtimestamp(int(epoch) if epoch else time.time(), datetime.UTC)
    seeds = sorted({str(item["seed"]) for item in scenarios if item.get("seed") is not None})
    if "seed" in values or ("seed" in declared and not seeds):
        seeds = [str(values.get("seed", declared["seed"].default if "seed" in declared else ""))]
    typed = [word for name, value in values.items() for word in ("-p", name, _as_typed(value))]
    command = shlex.join(["workbench", "report", place, *typed, "-o", out.name])
    machine = machine_facts()
    machine_parameter = values.get("machine", declared["machine"].default if "machine" in declared else None)
    facts = [
        ("notebook", place),
        ("cells SHA-256", notebook_hash(executed_source(executed))),
        ("made", when.strftime("%Y-%m-%d %H:%M UTC")),
        ("took", f"{seconds:.1f} s"),
        *([("modelled machine", str(machine_parameter).strip("'\""))] if machine_parameter is not None else []),
        ("seed", ", ".join(seeds) or "none: nothing random"),
        *[("made on: " + name, value) for name, value in machine.items()],
    ]
    embedded = {
        "schema": SCHEMA,
        "title": body.title,
        "notebook": {"name": notebook.name, "path": place, "sha256": notebook_hash(executed_source(executed))},
        "parameters": dict(values),
        "declared": {name: parameter.default for name, parameter in declared.items()},
        "figures": [vars(item) for item in body.figures],
        "made": when.isoformat(),
        "seconds": round(seconds, 1),
        "versions": used,
        "machine": machine,
        "inputs": inputs,
        "scenarios": [item.get("name") for item in scenarios],
    }
    rows = [
        {
            "name": name,
            "value": _as_typed(values[name]) if name in values else parameter.default,
            "given": name in values,
            "type": parameter.annotation,
            "help": parameter.help,
        }
        for name, parameter in declared.items()
    ]
    page = render(
        executed,
        body,
        {
            "version": used.get("guest-memfd-workbench", ""),
            "parameters": rows,
            "command": command,
            "check": shlex.join(["workbench", "report", "--check", out.name]),
            "facts": facts,
            "versions": list(used.items()),
            "scenarios": scenarios,
            "inputs": inputs,
            "embedded": embedded_json(embedded),
        },
    )
    return page, body.title, body.figures


def executed_source(executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook as it was before papermill: without the cells that were put in."""
    import copy

    source = copy.copy(executed)
    added = {HIDDEN_TAG, "injected-parameters"}
    source.cells = [cell for cell in executed.cells if not added & set(cell.metadata.get("tags", []))]
    return source
