"""Sweeps: right values, nothing computed twice, and the same store, bit for bit, whoever is killed on the way."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sweeps.cells import grid, run, value

from workbench.errors import WorkbenchError
from workbench.sweeps.grid import Grid
from workbench.sweeps.store import DONE, FAILED, PENDING, open_store, read_store
from workbench.sweeps.sweep import _connected, estimate, sweep

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_name("run_sweep.py")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", **more}


def start(store: Path, count: int, workers: int, *more: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(store), str(count), str(workers), *more],
        env=environment(**variables),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def tree(store: Path) -> dict[str, str]:
    """Every file of a store with the hash of its bytes."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def undisturbed(tmp_path: Path) -> Path:
    """The store of a run in one process that nothing happens to."""
    store = tmp_path / "undisturbed.zarr"
    sweep(grid(40), out=store, run=run, workers=0)
    return store


def test_every_cell_has_its_value_and_failures_their_error(tmp_path):
    dataset = sweep(grid(), run=run, workers=0)
    assert dataset["y"].dims == ("seed", "guest.memory")
    for seed in range(12):
        for memory in (64, 128, 256):
            cell = dataset.sel({"seed": seed, "guest.memory": memory})
            if seed == 5:
                assert int(cell["status"]) == FAILED
                assert np.isnan(cell["y"])
                assert cell["error"].item() == "ValueError: five is refused, as object at 0x..."
            else:
                assert int(cell["status"]) == DONE
                assert float(cell["y"]) == value(seed, memory)
                assert cell["error"].item() == ""


def test_the_store_reads_back_without_this_package(tmp_path):
    import xarray as xr

    from workbench.sweeps.store import quiet_zarr

    store = tmp_path / "s.zarr"
    ours = sweep(grid(), out=store, run=run, workers=0)
    with quiet_zarr():
        plain = xr.open_zarr(store, consolidated=False)
        np.testing.assert_array_equal(plain["y"].values, ours["y"].values)
        assert list(plain["seed"].values) == list(range(12))


def test_killed_again_and_again_it_ends_with_the_same_store(tmp_path, undisturbed):
    store, log = tmp_path / "killed.zarr", tmp_path / "log"
    log.touch()
    kills = 0
    for goal in (8, 35, 70):
        process = start(store, 40, 0, CELL_LOG=str(log), CELL_SECONDS="0.01")
        wait_for(lambda goal=goal, p=process: len(log.read_text().splitlines()) > goal or p.poll() is not None)
        process.kill()
        process.wait()
        kills += 1
    assert (read_store(store)["status"].values == PENDING).any()
    process = start(store, 40, 0, CELL_LOG=str(log))
    assert process.wait(60) == 0, process.stderr.read()
    assert tree(store) == tree(undisturbed)
    counts = Counter(log.read_text().splitlines())
    assert len(counts) == 120
    # only the one cell at work when it was killed may be computed again
    assert sum(counts.values()) - 120 <= kills
    again = start(store, 40, 0, CELL_LOG=str(log))
    assert again.wait(60) == 0
    assert sum(Counter(log.read_text().splitlines()).values()) == sum(counts.values())


def test_forty_kills_in_full_write_traffic_end_with_the_same_store(tmp_path):
    """10^4 cells, half of the runs writing whole chunks and half parts of chunks, each killed within 40 ms of writing."""
    count, kills = 3_334, 40
    undisturbed, store = tmp_path / "undisturbed.zarr", tmp_path / "killed.zarr"
    sweep(grid(count, chunk=16), out=undisturbed, run=run, workers=0)
    script = Path(__file__).with_name("kill_sweeps.py")
    seed = int.from_bytes(os.urandom(4))
    done = subprocess.run(
        [sys.executable, str(script), str(store), str(count), str(kills), str(seed)],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    seen = [int(line) for line in done.stdout.split()]
    assert len(seen) == kills // 10 and seen == sorted(set(seen)) and seen[0] > 0 and seen[-1] < 3 * count, seen
    assert tree(store) == tree(undisturbed), f"seed {seed}"


def test_slow_cells_of_one_chunk_are_not_computed_twice(tmp_path):
    """What takes long is written as it comes in: a kill costs the cells at work, not the chunk that they are in."""
    store, log, undisturbed = tmp_path / "killed.zarr", tmp_path / "log", tmp_path / "undisturbed.zarr"
    sweep(grid(20, chunk=None), out=undisturbed, run=run, workers=0)
    assert Grid.from_mapping(grid(20, chunk=None)).chunk_shape == (20, 3)
    log.touch()
    for goal in (10, 30):
        process = start(store, 20, 0, CELL_LOG=str(log), CELL_SECONDS="0.1", CELL_CHUNK="60")
        wait_for(lambda goal=goal, p=process: len(log.read_text().splitlines()) > goal or p.poll() is not None)
        process.kill()
        process.wait()
    process = start(store, 20, 0, CELL_LOG=str(log), CELL_CHUNK="60")
    assert process.wait(60) == 0, process.stderr.read()
    counts = Counter(log.read_text().splitlines())
    assert len(counts) == 60 and sum(counts.values()) - 60 <= 2 * (1 + 5 * 2)
    assert read_store(store).drop_attrs().identical(read_store(undisturbed).drop_attrs())


def test_only_failed_cells_of_a_chunk_are_tried_again(tmp_path):
    store, tried = tmp_path / "s.zarr", []
    whole = grid(12, chunk=36)
    sweep(whole, out=store, run=run, workers=0)

    def mended(mapping):
        tried.append(mapping["seed"])
        return run({**mapping, "seed": 4})

    dataset = sweep(whole, out=store, run=mended, workers=0, retry_failed=True)
    assert tried == [5, 5, 5]
    assert (dataset["status"].values == DONE).all() and (dataset["error"].values == "").all()
    assert float(dataset["y"].sel({"seed": 3, "guest.memory": 64})) == value(3, 64)


def test_a_killed_worker_costs_nothing_but_time(tmp_path, undisturbed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    store, log = tmp_path / "cluster.zarr", tmp_path / "log"
    log.touch()
    variables = environment(CELL_LOG=str(log), CELL_SECONDS="0.05")
    quiet = {"env": variables, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    dask = [sys.executable, "-m", "dask"]
    worker = [*dask, "worker", address, "--no-dashboard", "--no-nanny", "--nthreads", "1", "--death-timeout", "60"]
    host, port = address.removeprefix("tcp://").split(":")
    processes = [subprocess.Popen([*dask, "scheduler", "--host", host, "--port", port, "--no-dashboard"], **quiet)]
    try:
        processes += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        driver = start(store, 40, 0, address)
        processes.append(driver)
        wait_for(lambda: len(log.read_text().splitlines()) > 20)
        processes[1].kill()  # SIGKILL, in the middle of a cell
        assert driver.poll() is None, "the sweep was over before the worker was killed"
        processes.append(subprocess.Popen(worker, **quiet))
        assert driver.wait(90) == 0, driver.stderr.read()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert tree(store) == tree(undisturbed)


def test_local_workers_give_the_same_store(tmp_path, undisturbed):
    store = tmp_path / "two.zarr"
    process = start(store, 40, 2)
    assert process.wait(90) == 0, process.stderr.read()
    assert tree(store) == tree(undisturbed)


def test_ctrl_c_ends_everything_and_the_rest_can_be_done(tmp_path, undisturbed):
    store, log = tmp_path / "interrupted.zarr", tmp_path / "log"
    log.touch()
    process = start(store, 40, 2, CELL_LOG=str(log), CELL_SECONDS="0.05")
    wait_for(lambda: len(log.read_text().splitlines()) > 10)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    assert process.wait(30) != 0
    message = process.stderr.read()
    assert message.count("Traceback") <= 1, message  # of this script; the workers are quiet
    wait_for(lambda: not _alive_in_group(process.pid), 15)
    assert (read_store(store)["status"].values == PENDING).any()
    assert start(store, 40, 0).wait(60) == 0
    assert tree(store) == tree(undisturbed)


def _alive_in_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_on_one_store(tmp_path, undisturbed):
    store, log = tmp_path / "both.zarr", tmp_path / "log"
    log.touch()
    both = [start(store, 40, 0, CELL_LOG=str(log), CELL_SECONDS="0.01") for _ in range(2)]
    codes = [process.wait(60) for process in both]
    messages = [process.stderr.read() for process in both]
    assert 0 in codes
    assert all(code == 0 or "another process is writing" in text for code, text in zip(codes, messages, strict=True))
    assert tree(store) == tree(undisturbed)
    assert max(Counter(log.read_text().splitlines()).values()) == 1


def test_it_can_be_read_while_it_runs(tmp_path):
    value_grid = Grid.from_mapping(grid())
    store = tmp_path / "s.zarr"
    seen = []

    def peek(mapping):
        seen.append(int((read_store(store)["status"].values != PENDING).sum()))
        return run(mapping)

    sweep(value_grid, out=store, run=peek, workers=0)
    assert seen == list(range(36))


def test_another_grid_or_another_thing_in_its_place(tmp_path):
    store = tmp_path / "s.zarr"
    sweep(grid(), out=store, run=run, workers=0)
    with pytest.raises(WorkbenchError, match="another sweep"):
        sweep(grid(13), out=store, run=run, workers=0)
    (tmp_path / "notes").mkdir()
    with pytest.raises(WorkbenchError, match="not the store of a sweep"):
        sweep(grid(), out=tmp_path / "notes", run=run, workers=0)
    for text in ("[]", '{"attributes": null}', "[" * 100_000, "\x00"):
        (tmp_path / "notes" / "zarr.json").write_text(text)
        with pytest.raises(WorkbenchError, match="not the store of a sweep"):
            sweep(grid(), out=tmp_path / "notes", run=run, workers=0)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "s.zarr", Path("/proc/nowhere/s.zarr")):
        with pytest.raises(WorkbenchError, match="sweep: "):
            sweep(grid(), out=place, run=run, workers=0)
    with pytest.raises(WorkbenchError, match="not the store"):
        read_store(tmp_path / "none")


def test_a_full_disk_is_one_line_and_the_store_stays_good(tmp_path, monkeypatch):
    import errno

    from workbench.sweeps import store as stores

    store = tmp_path / "s.zarr"
    write = stores.write_bytes
    written = []

    def full(path, data):
        if len(written) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, data)

    monkeypatch.setattr(stores, "write_bytes", full)
    with pytest.raises(WorkbenchError, match="No space left on device") as caught:
        sweep(grid(), out=store, run=run, workers=0)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    half = read_store(store)
    assert 0 < int((half["status"].values == DONE).sum()) < 33
    whole = sweep(grid(), out=store, run=run, workers=0)
    assert int((whole["status"].values == DONE).sum()) == 33


def test_failed_cells_can_be_tried_again(tmp_path):
    store = tmp_path / "s.zarr"
    sweep(grid(), out=store, run=run, workers=0)

    def mended(mapping):
        return run({**mapping, "seed": 4 if mapping["seed"] == 5 else 99})

    dataset = sweep(grid(), out=store, run=mended, workers=0, retry_failed=True)
    assert (dataset["status"].values == DONE).all()
    assert (dataset["error"].values == "").all()
    assert float(dataset["y"].sel({"seed": 5, "guest.memory": 64})) == value(4, 64)
    assert float(dataset["y"].sel({"seed": 3, "guest.memory": 64})) == value(3, 64)  # not computed again


def test_hostile_names_are_only_names(tmp_path):
    hostile = ["<script>alert(1)</script>", "../../x", "a\nb", "'; rm -rf", "ü∞"]
    dataset = sweep(
        {"base": {"seed": 1, "guest": {"memory": 64}}, "axes": {"<b>..": {"field": "name", "values": hostile}},
         "metrics": ["y"]},
        out=tmp_path / "s.zarr", run=run, workers=0,
    )  # fmt: skip
    assert list(dataset["<b>.."].values) == hostile
    assert (dataset["status"].values == DONE).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr"]


def test_an_estimate_computes_three_cells_and_writes_nothing(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("CELL_LOG", str(log))
    found = estimate(Grid.from_mapping(grid()), tmp_path / "s.zarr", run)
    assert (found.cells, found.pending) == (36, 36)
    assert len(set(log.read_text().splitlines())) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


def test_a_scheduler_that_is_not_there(tmp_path):
    with pytest.raises(WorkbenchError, match=r"no scheduler answers at 'tcp://127\.0\.0\.1:1'"):
        sweep(grid(), out=tmp_path / "s.zarr", run=run, scheduler="tcp://127.0.0.1:1")


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    store = tmp_path / "s.zarr"
    sweep(grid(), out=store, run=run, workers=0)
    before = tree(store)
    (store / "y" / "c" / "0" / "0.abc.partial").write_bytes(b"half")
    with open_store(store, Grid.from_mapping(grid()), []):
        pass
    assert tree(store) == before


def test_the_engine_in_cells(tmp_path):
    base = {
        "name": "small",
        "host": {
            "name": "pair",
            "nodes": [
                {"id": 0, "memory_bytes": 1 << 30, "cpus": [0], "kind": "dram"},
                {"id": 1, "memory_bytes": 1 << 30, "cpus": [1], "kind": "dram"},
            ],
            "distances": [[10, 21], [21, 10]],
        },
        "guest": {"memory": "16 MiB", "policy_interface": "mbind", "vcpus": [{"node": 0}]},
        "operations": [
            {"op": "create"}, {"op": "mmap"}, {"op": "mbind", "mode": "bind", "nodes": "0"}, {"op": "fallocate"},
        ],
    }  # fmt: skip
    dataset = sweep({"base": base, "axes": {"nodes": {"field": "operations.2.nodes", "values": ["0", "1", "7"]}}})
    pages = dataset["pages_per_node"]
    assert float(pages.sel(nodes="0", node=0)) == 4096
    assert float(pages.sel(nodes="1", node=1)) == 4096
    assert int(dataset["status"].sel(nodes="7")) == FAILED
    assert "7" in dataset["error"].sel(nodes="7").item()
    assert pages.attrs["basis"] == "exact"


def test_a_policy_that_does_not_reach_private_memory_is_said_of_its_cell(tmp_path):
    """QEMU 11 cannot map what backs an SNP guest: the warning of a run is in the store too, and in what is read from it."""
    host = {"name": "pair", "nodes": [{"id": n, "memory_bytes": 1 << 30, "cpus": [n]} for n in (0, 1)],
            "distances": [[10, 21], [21, 10]]}  # fmt: skip
    bind = {"op": "mbind", "mode": "bind", "nodes": "0"}
    operations = [{"op": "create"}, bind, {"op": "fault", "by": "guest", "task": "vcpu0"}]
    guest = {"memory": "1 MiB", "vmm_profile": "qemu-11", "vcpus": [{"node": 1}]}
    base = {"host": host, "guest": guest, "operations": operations, "strict": False}
    grid, store = {"base": base, "axes": {"guest.vm_type": ["none", "snp"]}}, tmp_path / "store.zarr"
    for dataset in (sweep(grid, out=store, workers=0), sweep(grid, out=store, workers=0), read_store(store)):
        none, snp = dataset["warnings"].values
        assert (
            none == "" and "mbind bind 0 of guest: refused, its VMM cannot map it" in snp and "100 % on node 1" in snp
        )
        assert dataset.attrs["warnings"].startswith("1 of 2 cells have warnings") and snp in dataset.attrs["warnings"]
        assert (dataset["status"].values == DONE).all() and (dataset["error"].values == "").all()


def test_texts_of_a_chunk_outlast_a_break_in_its_middle(tmp_path):
    """Half of a chunk is written, the process ends, another writes the rest: each text is at its cell."""
    cells = Grid.from_mapping({**grid(4), "chunk": 10_000})
    for at in range(2):
        with open_store(tmp_path / "store.zarr", cells, []) as store:
            place = next(iter(cells.chunks(store.chunk_shape)))
            values = {metric.name: np.array([1.0]) for metric in cells.metrics}
            store.write(place, np.array([at]), values, {0: "e0"} if at == 0 else {}, {0: f"w{at}"})
    dataset = read_store(tmp_path / "store.zarr")
    assert dataset["warnings"].values.ravel()[:2].tolist() == ["w0", "w1"]
    assert dataset["error"].values.ravel()[:2].tolist() == ["e0", ""]


def test_a_store_of_a_version_without_warnings_is_gone_on_with(tmp_path):
    store = tmp_path / "store.zarr"
    sweep(grid(3), out=store, run=run, workers=0)
    shutil.rmtree(store / "warnings")
    shutil.rmtree(store / "status" / "c")
    dataset = sweep(grid(3), out=store, run=run, workers=0)
    assert (dataset["status"].values == DONE).all() and "warnings" not in dataset


def test_a_cluster_object_as_batch_systems_have_it(tmp_path, undisturbed):
    """``LocalCluster`` in place of dask-jobqueue's SLURMCluster or dask-kubernetes' KubeCluster: ``Client(cluster)``."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        sweep(grid(40), client, out=tmp_path / "cluster.zarr", run=run)
    assert tree(tmp_path / "cluster.zarr") == tree(undisturbed)


def test_workers_of_another_version_are_one_line(tmp_path, monkeypatch):
    from distributed import LocalCluster

    from workbench.sweeps import sweep as sweeps

    here = sweeps.versions_here()
    answers = iter([{**here, "numpy": "1.0"}])  # the driver asks first; workers of this process answer after it
    monkeypatch.setattr(sweeps, "versions_here", lambda: next(answers, here))
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(WorkbenchError, match=r"worker \S+ has numpy \S+ \(here 1\.0\); install") as caught,
    ):
        sweep(grid(), out=tmp_path / "s.zarr", run=run, scheduler=cluster.scheduler_address)
    assert "\n" not in str(caught.value)


def test_a_damaged_chunk_is_one_line_and_computed_again_once_removed(tmp_path, undisturbed):
    store = tmp_path / "s.zarr"
    sweep(grid(40), out=store, run=run, workers=0)
    chunks = sorted(path for path in store.glob("[sy]*/c/**/*") if path.is_file())
    for number, damage in enumerate(
        (lambda b: b[:3], lambda b: bytes([b[0] ^ 1]) + b[1:], lambda b: b"", lambda b: b * 9)
    ):
        for chunk in (chunks[number], chunks[-1 - number]):
            whole = chunk.read_bytes()
            chunk.write_bytes(damage(whole))
            with pytest.raises(WorkbenchError, match="is damaged") as caught:
                read_store(store)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
            chunk.write_bytes(whole)
    status = next(path for path in chunks if "status" in path.parts)
    status.write_bytes(b"?")
    with pytest.raises(WorkbenchError, match="is damaged"):
        sweep(grid(40), out=store, run=run, workers=0)
    status.unlink()
    sweep(grid(40), out=store, run=run, workers=0)
    assert tree(store) == tree(undisturbed)


def test_workers_that_do_not_end_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept for an hour: the scheduler gave its workers up, and closing them waits in vain."""
    import distributed

    class Stuck:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def close(self, timeout: float = 0) -> None:
            raise TimeoutError

    monkeypatch.setattr(distributed, "LocalCluster", Stuck)
    monkeypatch.setattr(distributed, "Client", Stuck)
    with pytest.raises(WorkbenchError, match="why it ended"), _connected(None, None, 1):
        raise WorkbenchError("why it ended")
