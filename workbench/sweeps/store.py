"""The Zarr store of a sweep: dimensions are the axes, and it is whole and readable at every moment.

One process writes: the one that holds the lock on the store's directory. Every array has the same chunks over the axes;
a chunk file is renamed into place when it is complete, and the chunk of ``status`` is written last. A chunk whose cells
take long is written again and again as they come in, and its ``status`` says which of them are there: those are never
computed again. Being killed between two files costs the cells that were being written. Nothing in a finished store
depends on when, where or by how many processes it was computed.

Chunks of numbers are their bytes and a checksum (Zarr's codecs ``bytes`` and ``crc32c``). They are written and read here, not by
Zarr, which takes some milliseconds for each array of a chunk, more than many cells take; all else goes through Zarr.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench import results
from workbench.errors import WorkbenchError
from workbench.files import folder_beside
from workbench.replacing import check_names
from workbench.sweeps.grid import Grid
from workbench.variables import Coordinate, Sweep, Variable

if TYPE_CHECKING:
    import zarr

PENDING, DONE, FAILED = 0, 1, 2
SCHEMA = "workbench-sweep/2"
ERROR, WARNINGS = TEXTS = ("error", "warnings")
"""Arrays of texts. A store of an earlier version may have no warnings; it gets none."""


class Chunk:
    """The cells of one chunk in memory: values of each metric, texts of each kind ('' for none) and status."""

    def __init__(self, values: dict[str, np.ndarray], texts: dict[str, np.ndarray], status: np.ndarray) -> None:
        self.values, self.texts, self.status = values, texts, status

    def put(
        self,
        cells: np.ndarray,
        values: Mapping[str, np.ndarray],
        errors: Mapping[int, str],
        warnings: Mapping[int, str],
    ) -> None:
        """Enter cells, int64 (cells,) in the order of the chunk; errors and warnings by their place in ``cells``."""
        for name, block in values.items():
            rows = self.values[name].reshape(self.status.size, *block.shape[1:])  # a view
            rows[cells] = block
        self.status.ravel()[cells] = DONE
        self.status.ravel()[cells[list(errors)]] = FAILED
        for name, said in ((ERROR, errors), (WARNINGS, warnings)):
            self.texts[name].ravel()[cells] = ""
            for at, text in said.items():
                self.texts[name].ravel()[cells[at]] = text


class SweepStore:
    """A store opened for writing by :func:`open_store`. Holds the chunks that are begun and not finished."""

    def __init__(self, path: Path, grid: Grid, nodes: Sequence[int]) -> None:
        import zarr

        self.path = path
        self.grid = grid
        self.nodes = nodes
        try:
            with quiet_zarr():
                group = zarr.open_group(path, mode="r+", zarr_format=3, use_consolidated=False)
                self._texts = {name: _array(group, name) for name in TEXTS if name == ERROR or name in group}
                for name, dtype in (("status", np.int8), *((metric.name, np.float64) for metric in grid.metrics)):
                    _check_array(_array(group, name), name, grid, dtype)
        except WorkbenchError:
            raise
        except Exception as error:  # Zarr raises many kinds for damaged metadata
            raise WorkbenchError(_damaged(path, error, "name another store")) from error
        self.chunk_shape = tuple(map(int, self._texts[ERROR].chunks))
        """That of the grid, or of the version that made the store."""
        self.status = np.full(grid.shape, PENDING, np.int8)
        """One per cell: 0 pending, 1 done, 2 failed."""
        if (path / "status" / "c").exists():
            for place in grid.chunks(self.chunk_shape):
                self.status[place] = self._number("status", place, self.status[place], PENDING)
        self._begun: dict[tuple[int, ...], Chunk] = {}

    def _number(self, name: str, place: tuple[slice, ...], like: np.ndarray, fill: float) -> np.ndarray:
        """A chunk of numbers, of the shape and dtype of ``like``; ``fill`` where none was written."""
        import google_crc32c

        at = self._at(place)
        try:
            with open(self._file(name, at, like.ndim - len(at)), "rb", buffering=0) as file:
                data = file.read()
        except FileNotFoundError:
            return np.full_like(like, fill)
        except OSError as error:
            raise WorkbenchError(_damaged(self.path, error)) from error
        whole = (*self.chunk_shape, *like.shape[len(at) :])
        if len(data) != int(np.prod(whole)) * like.itemsize + 4:
            raise WorkbenchError(_damaged(self.path, ValueError(f"{name} chunk {at}: {len(data)} bytes")))
        if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise WorkbenchError(_damaged(self.path, ValueError(f"{name} chunk {at}: its checksum is another")))
        block = np.frombuffer(data[:-4], like.dtype.newbyteorder("<")).reshape(whole)
        return block[tuple(slice(0, size) for size in like.shape)].astype(like.dtype)

    def _at(self, place: tuple[slice, ...]) -> tuple[int, ...]:
        return tuple(cut.start // step for cut, step in zip(place, self.chunk_shape, strict=True))

    def write(
        self,
        place: tuple[slice, ...],
        cells: np.ndarray,
        values: Mapping[str, np.ndarray],
        errors: Mapping[int, str],
        warnings: Mapping[int, str],
    ) -> None:
        """Write cells of the chunk at ``place``: arguments are those of :meth:`Chunk.put`."""
        at = self._at(place)
        chunk = self._begun.get(at) or self._chunk(place)
        chunk.put(cells, values, errors, warnings)
        self._write(at, place, chunk)
        self.status[place] = chunk.status
        self._begun[at] = chunk
        if (chunk.status != PENDING).all():
            del self._begun[at]

    def _chunk(self, place: tuple[slice, ...]) -> Chunk:
        """A chunk as it is in the store."""
        status = self.status[place].copy()
        texts = {name: np.full(status.shape, "", object) for name in TEXTS}
        values = {
            metric.name: np.full((*status.shape, len(self.nodes)) if metric.per_node else status.shape, np.nan)
            for metric in self.grid.metrics
        }
        if status.any():
            values = {name: self._number(name, place, block, np.nan) for name, block in values.items()}
            at = self._at(place)
            texts |= {name: self._read(name, place) for name in self._texts if self._has_texts(name, at)}
        return Chunk(values, texts, status)

    def _has_texts(self, name: str, at: tuple[int, ...]) -> bool:
        """Whether any text of a chunk was ever written: most have none."""
        return os.path.exists(self._file(name, at, 0))

    def _read(self, name: str, place: tuple[slice, ...]) -> np.ndarray:
        try:
            with quiet_zarr():
                return np.asarray(self._texts[name][place]).astype(object)
        except (OSError, ValueError, RuntimeError) as error:
            raise WorkbenchError(_damaged(self.path, error)) from error

    def _write(self, at: tuple[int, ...], place: tuple[slice, ...], chunk: Chunk) -> None:
        """Write a chunk: metrics, then texts, then the status that says which of its cells are there."""
        try:
            for name, block in chunk.values.items():
                self._put(name, at, block, np.nan)
            for name, array in self._texts.items():
                if (chunk.texts[name] != "").any() or self._has_texts(name, at):
                    with quiet_zarr():
                        array[place] = chunk.texts[name]
            self._put("status", at, chunk.status, PENDING)
        except OSError as error:
            raise WorkbenchError(
                f"sweep: cannot write {str(self.path)!r}: {error.strerror or error}; what is there stays good"
            ) from error

    def _file(self, name: str, at: tuple[int, ...], more: int) -> str:
        """The file of a chunk (Zarr's default key encoding); ``more`` dimensions follow the axes, in one chunk."""
        return os.path.join(self.path, name, "c", *map(str, at), *("0" for _ in range(more)))

    def _put(self, name: str, at: tuple[int, ...], block: np.ndarray, fill: float) -> None:
        """Write a chunk of numbers under a temporary name and rename it; at the end of an axis it is filled up."""
        import google_crc32c

        more = block.ndim - len(at)
        whole = np.full((*self.chunk_shape, *block.shape[len(at) :]), fill, block.dtype.newbyteorder("<"))
        whole[tuple(slice(0, size) for size in block.shape)] = block
        data = whole.tobytes()
        target = self._file(name, at, more)
        partial = f"{target}.{os.getpid()}.partial"
        data += google_crc32c.value(data).to_bytes(4, "little")
        try:
            write_bytes(partial, data)
        except FileNotFoundError:  # the first chunk of its row
            os.makedirs(os.path.dirname(target), exist_ok=True)
            write_bytes(partial, data)
        os.replace(partial, target)


def write_bytes(path: str, data: bytes) -> None:
    """Where the chunks of a store meet the disk."""
    with open(path, "wb", buffering=0) as file:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _check_array(array: zarr.Array, name: str, grid: Grid, dtype: type) -> None:
    """Chunks are written here as this type and shape say: an array of another is not written to."""
    if array.dtype != dtype or array.shape[: len(grid.shape)] != grid.shape:
        raise ValueError(f"{name} is {array.dtype} of {array.shape}, the grid says {np.dtype(dtype)} of {grid.shape}")


def _damaged(
    path: Path, error: BaseException, remedy: str = "remove the chunk, and the same command computes it again"
) -> str:
    said = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return f"sweep: {str(path)!r} is damaged: {said}; {remedy}"


@contextlib.contextmanager
def quiet_zarr() -> Iterator[None]:
    """Zarr warns that texts have no final Zarr 3 specification; this store is read by the same library."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="zarr")
        warnings.filterwarnings("ignore", message=".*(Zarr|zarr).*")
        yield


def fingerprint(grid: Grid) -> str:
    """SHA-256 of everything that decides the cells."""
    return hashlib.sha256(json.dumps(grid.to_mapping(), sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def open_store(path: Path, grid: Grid, nodes: Sequence[int]) -> Iterator[SweepStore]:
    """Open the store of a grid, made first when it is not there, and keep others from writing to it.

    Raises WorkbenchError when the path holds something else, another sweep, or is being written by another process.
    """
    if not os.path.exists(path):
        check_names(path)
        _create(path, grid, nodes)
    with _locked(path):
        _check_same(path, grid)
        for leftover in path.rglob("*.partial"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        yield SweepStore(path, grid, nodes)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)  # a FIFO would wait for its writer
    except OSError as error:
        raise WorkbenchError(f"sweep: cannot open {str(path)!r}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkbenchError(
                f"sweep: another process is writing to {str(path)!r}; wait for it or name another store"
            ) from None
        if not os.access(path, os.W_OK):
            raise WorkbenchError(f"sweep: {str(path)!r} may not be written to")
        yield
    finally:
        os.close(handle)  # releases the lock, as being killed does


def _check_same(path: Path, grid: Grid) -> None:
    try:
        described = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WorkbenchError(f"sweep: {str(path)!r} is there and is not the store of a sweep") from error
    attributes = described.get("attributes") if isinstance(described, dict) else None
    if not isinstance(attributes, dict) or attributes.get("schema") != SCHEMA:
        raise WorkbenchError(f"sweep: {str(path)!r} is there and is not the store of a sweep")
    if attributes.get("fingerprint") != fingerprint(grid):
        raise WorkbenchError(f"sweep: {str(path)!r} holds another sweep; name another store (or remove it)")


def _create(path: Path, grid: Grid, nodes: Sequence[int]) -> None:
    """Make the store beside its place and rename it: two that start at once end with one of them."""
    try:
        with folder_beside(path) as folder:
            store = folder / "store"
            with quiet_zarr():
                _write_template(store, grid, nodes)
            with contextlib.suppress(FileExistsError):
                try:
                    os.rename(store, path)
                except OSError:
                    if not path.exists():
                        raise
    except OSError as error:
        raise WorkbenchError(f"sweep: cannot make {str(path)!r}: {error.strerror or error}") from error


def _write_template(store: Path, grid: Grid, nodes: Sequence[int]) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec

    attributes = {
        "schema": SCHEMA,
        "name": grid.name,
        "fingerprint": fingerprint(grid),
        "provenance": results.provenance(command="sweeps.sweep.sweep", grid=grid.to_mapping()),
    }
    group = zarr.create_group(store, zarr_format=3, attributes=attributes)
    dims = [axis.name for axis in grid.axes]

    def put(name: str, dimensions: list[str], values: np.ndarray, **attrs: Any) -> None:
        dtype: Any = str if values.dtype.kind == "U" else values.dtype
        fill = "" if dtype is str else values.dtype.type(0)
        array = group.create_array(
            name, shape=values.shape, dtype=dtype, chunks=values.shape or "auto", dimension_names=dimensions,
            fill_value=fill, attributes=attrs,
        )  # fmt: skip
        array[...] = values.astype(object) if dtype is str else values

    for axis in grid.axes:
        labels = _coordinate(axis.labels)
        field = axis.fields[0] if len(axis.fields) == 1 else ""
        put(axis.name, [axis.name], labels, units=_unit(field, labels), long_name=", ".join(axis.fields))
        if len(axis.fields) > 1:
            for at, field in enumerate(axis.fields):
                column = _coordinate([row[at] for row in axis.settings])
                put(f"{axis.name}:{field}", [axis.name], column, units=_unit(field, column), long_name=field)
    if nodes:
        put("node", ["node"], np.array(nodes, np.int64), **_attributes(Sweep.node))
    extras = " ".join(f"{axis.name}:{field}" for axis in grid.axes if len(axis.fields) > 1 for field in axis.fields)
    for metric in grid.metrics:
        group.create_array(
            metric.name,
            shape=(*grid.shape, len(nodes)) if metric.per_node else grid.shape,
            chunks=(*grid.chunk_shape, max(len(nodes), 1)) if metric.per_node else grid.chunk_shape,
            dtype="<f8",
            fill_value=np.nan,
            compressors=Crc32cCodec(),
            dimension_names=[*dims, "node"] if metric.per_node else dims,
            attributes={**metric.attributes(), **({"coordinates": extras} if extras else {})},
        )
    for name in TEXTS:
        group.create_array(
            name, shape=grid.shape, chunks=grid.chunk_shape, dtype=str, fill_value="", dimension_names=dims,
            attributes=_attributes(getattr(Sweep, name)),
        )  # fmt: skip
    group.create_array(
        "status", shape=grid.shape, chunks=grid.chunk_shape, dtype=np.int8, fill_value=PENDING, dimension_names=dims,
        compressors=Crc32cCodec(),
        attributes={
            **_attributes(Sweep.status), "flag_values": [PENDING, DONE, FAILED], "flag_meanings": "pending done failed",
        },
    )  # fmt: skip


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    import zarr

    found = group[name]
    if not isinstance(found, zarr.Array):
        raise WorkbenchError(f"store: {name!r} is not an array in {group.store_path}")
    return found


def _attributes(declared: Variable | Coordinate) -> dict[str, Any]:
    basis = {"basis": declared.basis} if isinstance(declared, Variable) else {}
    return {"units": declared.units, "long_name": declared.long_name, **basis}


def _unit(field: str, values: np.ndarray) -> str:
    """Unit of what an axis sets: numbers of sizes are bytes, other numbers have none, texts say theirs."""
    sizes = ("memory", "memory_bytes", "offset", "length", "size")
    return "" if values.dtype.kind == "U" else "B" if field.rpartition(".")[2] in sizes else "1"


def _coordinate(labels: Any) -> np.ndarray:
    values = list(labels)
    if all(isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62 for value in values):
        return np.array(values, np.int64)
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return np.array(values, np.float64)
    return np.array([value if isinstance(value, str) else json.dumps(value) for value in values], dtype=np.str_)


def read_store(path: str | Path, *, load: bool = True) -> xr.Dataset:
    """Open the store of a sweep, finished or still being written; cells that are not there yet are NaN.

    load: read it into memory; otherwise arrays are read when they are used.
    """
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise WorkbenchError(f"sweep: {str(path)!r} is not the store of a sweep")
    try:
        with quiet_zarr():
            dataset = xr.open_zarr(path, consolidated=False, chunks=None, mask_and_scale=False)
            if load:
                dataset = dataset.load()
    except Exception as error:  # the storage libraries raise many kinds for a damaged store
        raise WorkbenchError(_damaged(path, error)) from error
    if dataset.attrs.get("schema") != SCHEMA:
        raise WorkbenchError(f"sweep: {str(path)!r} is not the store of a sweep")
    for name, variable in dataset.variables.items():
        if variable.dtype.kind == "T":  # numpy's variable-length texts, which few libraries take
            texts = variable.values
            values = texts.astype(object) if name in TEXTS else np.array(texts.tolist(), dtype=np.str_)
            dataset[name] = (variable.dims, values.reshape(variable.shape), variable.attrs)
    if load and WARNINGS in dataset:
        dataset.attrs |= _warned(dataset[WARNINGS].values)
    return dataset


def _warned(texts: np.ndarray) -> dict[str, str]:
    """The attribute that every result with warnings has: in how many cells there are any, and the first of them."""
    warned = [str(text) for text in texts.ravel() if text]
    if not warned:
        return {}
    line = warned[0].splitlines()[0]
    return {"warnings": f"{len(warned)} of {texts.size} cells have warnings ('{WARNINGS}' has each): the first: {line}"}
