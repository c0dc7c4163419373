"""Traces: streams of conversions that somebody recorded, from a CSV or Parquet file.

A trace comes from elsewhere, so that nothing in it is guessed: every column is known and there once, every number is a
whole one, and what a row does not say is an error that names the row.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.bitmap_lists import is_whole
from workbench.errors import WorkbenchError, of_file
from workbench.files import read_file
from workbench.kernels.folios import run as folio
from workbench.limits import FILE_BYTES, MAX_CPUS, MAX_NUMNODES, TRACE_BYTES, TRACE_ROWS, TRACE_UNPACKED
from workbench.names import unknown
from workbench.tracking.tracked_file import KINDS, OPERATIONS
from workbench.units import PAGE_SIZE, parse_bytes

Int64s = npt.NDArray[np.int64]
COLUMNS = ("op", "offset", "length", "to", "kind", "node", "cpu")
_NEEDED = ("offset", "length")
_NO_RANGE = ("lru_drain", "release")
_SIDES: dict[str, dict[str, int]] = {
    "convert": {"private": 0, "shared": 1},
    "guest_fault": {"private": 1, "shared": 0},
}
_ARGUMENTS: dict[str, tuple[str, Mapping[str, int]]] = {
    **{op: ("to", sides) for op, sides in _SIDES.items()},
    **dict.fromkeys(("pin", "unpin"), ("kind", KINDS)),
}
"""Operations with an argument: the column that it stands in, and what may stand there."""
_BATCH = 1024
"""Rows of a Parquet file that are unpacked at once."""
_ROW = re.compile(r"\brow ([0-9]+)")


def read_trace(path: str | Path) -> Int64s:
    """A stream, int64 (n, 6) as :mod:`workbench.kernels.folios.run` takes it, from a CSV or Parquet file.

    Columns: ``op`` (convert, pin, unpin, host_fault, guest_fault, punch_hole, hwpoison, merge, lru_drain, release,
    unmap_slot; ``convert`` if the column is missing), ``offset`` and ``length`` in bytes or texts such as "2 MiB", ``to``
    (private or shared, for convert and guest_fault) or ``kind`` (transient or long_term, for pin and unpin), optionally
    ``node`` and ``cpu``. Raises WorkbenchError that names the file, the row (the first is 1; of CSV its line too) and the
    column.
    """
    source = Path(path)
    content = read_file(source, TRACE_BYTES, "trace")
    with of_file(source.name):
        if source.suffix == ".parquet":
            return _stream(_parquet(content))
        table, lines = _csv(content)
        try:
            return _stream(table)
        except WorkbenchError as error:
            row = _ROW.search(str(error))
            error.at = lines[int(row[1])] if row else 1
            raise


def _stream(table: Mapping[str, Sequence[Any]]) -> Int64s:
    """The stream that columns say."""
    for column in table:
        if column not in COLUMNS:
            raise WorkbenchError(f"trace: column {unknown(column, COLUMNS)}")
    for column in _NEEDED:
        if column not in table:
            raise WorkbenchError(f"trace: there is no column {column!r}")
    rows = len(table["offset"])
    stream = np.zeros((rows, 6), np.int64)
    names = table.get("op", ["convert"] * rows)
    stream[:, folio.OP] = _words(names, "op", OPERATIONS)
    for place, column in ((folio.OFFSET, "offset"), (folio.LENGTH, "length")):
        stream[:, place] = [
            _number(value, column, row, FILE_BYTES, empty=names[row - 1] in _NO_RANGE)
            for row, value in enumerate(table[column], 1)
        ]
    _check_ranges(stream)
    for place, column, most in ((folio.NODE, "node", MAX_NUMNODES - 1), (folio.CPU, "cpu", MAX_CPUS - 1)):
        if column in table:
            stream[:, place] = [_number(value, column, row, most) for row, value in enumerate(table[column], 1)]
    nothing = [None] * rows
    sides, kinds = table.get("to", nothing), table.get("kind", nothing)
    for row, (name, to, kind) in enumerate(zip(names, sides, kinds, strict=True), 1):
        column, allowed = _ARGUMENTS.get(str(name), ("", {}))
        for given, value in (("to", to), ("kind", kind)):
            if given == column:
                stream[row - 1, folio.ARGUMENT] = _word(value, given, row, allowed)
            elif not _missing(value):
                raise WorkbenchError(f"trace.{given}: row {row}: {_shown(value)} says nothing about {name}")
    return stream


_WITHOUT_RANGE = np.array([OPERATIONS[name] for name in _NO_RANGE])
_OF_ONE_PAGE = OPERATIONS["hwpoison"]


def _check_ranges(stream: Int64s) -> None:
    """Ranges are of whole pages and not empty: the calls refuse others with EINVAL, so that a trace holds none.

    Linux: virt/kvm/kvm_main.c (kvm_vm_ioctl_set_mem_attributes), virt/kvm/guest_memfd.c (kvm_gmem_fallocate).
    """
    ranged = ~np.isin(stream[:, folio.OP], _WITHOUT_RANGE)
    for place, column in ((folio.OFFSET, "offset"), (folio.LENGTH, "length")):
        odd = np.flatnonzero(ranged & (stream[:, place] % PAGE_SIZE != 0))
        if odd.size:
            value = stream[odd[0], place]
            raise WorkbenchError(
                f"trace.{column}: row {odd[0] + 1}: {value} is not a multiple of the page size {PAGE_SIZE}"
            )
    empty = np.flatnonzero(ranged & (stream[:, folio.OP] != _OF_ONE_PAGE) & (stream[:, folio.LENGTH] == 0))
    if empty.size:
        raise WorkbenchError(f"trace.length: row {empty[0] + 1}: 0 bytes; at least one page of {PAGE_SIZE} is expected")


def _csv(content: bytes) -> tuple[dict[str, Sequence[Any]], list[int]]:
    """Columns of texts, and the lines that the header and the rows end in.

    Rows of other lengths than the header are refused, not filled up or cut.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise WorkbenchError("trace: neither UTF-8 text nor named .parquet") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        lines = [reader.line_num]
        rows: list[list[str]] = []
        for row in itertools.islice(reader, TRACE_ROWS + 1):
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise WorkbenchError(f"trace: {error}", reader.line_num) from None
    _check_table(header, len(rows))
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            said = f"trace: row {number} has {len(row)} fields, the header {len(header)}"
            raise WorkbenchError(said, lines[number])
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return dict(zip(header, columns, strict=True)), lines


def _parquet(content: bytes) -> Mapping[str, Sequence[Any]]:
    """Columns of integers and texts; how many rows there are is known before any is read."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        header = [str(column) for column in file.schema_arrow.names]
        _check_table(header, file.metadata.num_rows)
        known = [column for column in header if column in COLUMNS]
        if len(known) < len(header):  # told apart from what is known before the rest is unpacked
            return dict.fromkeys(header, ())
        groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
        unpacked = sum(
            group.total_byte_size for group in groups
        )  # as the file says; texts that are there often count once
        columns: dict[str, list[Any]] = {column: [] for column in header}
        for part in file.iter_batches(_BATCH) if unpacked <= TRACE_UNPACKED else ():
            values = [one.dictionary_decode() if isinstance(one, pa.DictionaryArray) else one for one in part.columns]
            unpacked += sum(one.nbytes for one in values)
            if unpacked > TRACE_UNPACKED:
                break
            for column, one in zip(header, values, strict=True):
                columns[column] += one.to_pylist()
        if unpacked > TRACE_UNPACKED:
            raise WorkbenchError(f"trace: it unpacks to more than {TRACE_UNPACKED >> 20} MiB")
        return columns
    except WorkbenchError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise WorkbenchError(f"trace: it cannot be read: {line}") from None


def _check_table(header: Sequence[str], rows: int) -> None:
    count = Counter(header)
    twice = next((column for column in count if count[column] > 1), None)
    if twice is not None:
        raise WorkbenchError(f"trace: column {twice!r} is there twice")
    if rows > TRACE_ROWS:
        raise WorkbenchError(f"trace: it has more than {TRACE_ROWS} rows; no more are read")


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _shown(value: Any) -> str:
    return ascii(value)[:40]


def _words(values: Sequence[Any], column: str, allowed: Mapping[str, int]) -> list[int]:
    return [_word(value, column, row, allowed) for row, value in enumerate(values, 1)]


def _word(value: Any, column: str, row: int, allowed: Mapping[str, int]) -> int:
    if not isinstance(value, str) or value not in allowed:
        raise WorkbenchError(f"trace.{column}: row {row}: {_shown(value)} is not one of {', '.join(allowed)}")
    return allowed[value]


def _number(value: Any, column: str, row: int, most: int, empty: bool = False) -> int:
    """A whole number of 0 to ``most``, as a number or a text; ``empty``: nothing may stand there, which is 0."""
    field = f"trace.{column}: row {row}"
    if empty and _missing(value):
        return 0
    if isinstance(value, float) and value.is_integer():  # how a table writes a column with a gap
        value = int(value)
    if isinstance(value, str) and is_whole(value):
        value = int(value)
    if column in ("node", "cpu") and (isinstance(value, bool) or not isinstance(value, int)):
        raise WorkbenchError(f"{field}: {_shown(value)} is not a whole number")
    if isinstance(value, float):
        raise WorkbenchError(f"{field}: {_shown(value)} is not a whole number of bytes")
    number = parse_bytes(value, field)
    if not 0 <= number <= most:
        raise WorkbenchError(f"{field}: {_shown(value)} is not 0 to {most}")
    return number
