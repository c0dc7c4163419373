"""The measuring loops and what they say about the machine; figures against plain C are in tests/bench/bench_measure.py."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest
from typer.testing import CliRunner

from workbench.cost import measure, profile
from workbench.cost.machine import machine
from workbench.errors import WorkbenchError
from workbench.kernels import measure as loops
from workbench.topology.host import Host, Node

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="measures Linux machines")
CPU = min(os.sched_getaffinity(0))
ONE = Host(name="one", nodes=(Node(id=0, memory_bytes=1 << 30, cpus=tuple(sorted(os.sched_getaffinity(0)))),),
           distances=((10,),))  # fmt: skip


def test_a_chain_is_one_cycle_through_all_lines():
    order = np.random.default_rng(1).permutation(1000)
    chain = np.zeros(1000 * loops.WORDS, np.int64)
    loops.link_lines(order, chain)
    seen, place = set(), 0
    for _ in range(1000):
        place = loops.chase(chain, place, 1)
        seen.add(place)
    assert len(seen) == 1000 and place == 0 == loops.chase(chain, 0, 1000)
    assert all(at % loops.WORDS == 0 for at in seen)


@pytest.mark.parametrize("stored", [0, 3, 8])
def test_streams_read_and_store_what_they_count(stored):
    words = np.arange(64 * loops.WORDS, dtype=np.int64)
    before = words.copy()
    total = loops.stream(words, 0, 64, stored, 0)
    changed = np.flatnonzero(words != before) // loops.WORDS
    assert changed.tolist() == [line for line in range(64) if line % 8 < stored]
    read = [before[line * loops.WORDS] for line in range(64) if line % 8 >= stored]
    assert total - sum(read) in (0, 1)  # one bit of the pause's arithmetic keeps it from being left out


def test_random_reads_touch_many_lines_and_touch_one_word_of_each_page():
    words = np.ones(1 << 16, np.int64)
    assert loops.gather(words, 7, 1000) == 1000
    assert loops.touch(np.zeros(4096, np.int64), 512) == 8


def test_repetitions_stop_when_steady_and_say_their_spread():
    values = iter([10.0, 10.1, 9.9])
    figure = measure.repeated(lambda: next(values), until=float("inf"))
    assert figure.repeats == 3 and figure.value == 10.0 and figure.spread == pytest.approx(1.4826 * 0.01)
    noisy = iter([10.0, 30.0, 5.0, 50.0, 20.0, 1.0, 2.0, 70.0, 9.0])
    assert measure.repeated(lambda: next(noisy), until=float("inf")).repeats == measure.REPEATS[1]
    late = iter([10.0, 30.0, 5.0])
    assert measure.repeated(lambda: next(late), until=0.0).repeats == measure.REPEATS[0]


def test_memory_that_lies_elsewhere_is_refused(monkeypatch):
    """A kernel that puts the pages on another node, or refuses to bind them, is no measurement of that node."""
    monkeypatch.setattr(measure.Buffer, "_bind", lambda self, node, size: None)
    monkeypatch.setattr(measure.Buffer, "nodes", lambda self, samples=64: {3})
    with pytest.raises(OSError, match="node 1 lie on"):
        measure.bound_buffer(2 << 20, 1, alone=False)
    report = measure.NotMeasured()
    assert measure._pair([CPU], 0, 1, False, 2 << 20, 0.0, report) == {}
    assert report.missing == ["CPUs of node 0, memory of node 1: pages asked for on node 1 lie on [3]"]

    def refused(self, node, size):
        raise OSError(1, "mbind: EPERM")

    monkeypatch.setattr(measure.Buffer, "_bind", refused)
    report = measure.NotMeasured()
    assert measure._pair([CPU], 0, 1, False, 2 << 20, 0.0, report) == {}
    assert report.missing == ["CPUs of node 0, memory of node 1: mbind: EPERM"]


def test_a_thread_that_cannot_be_pinned_stops_the_load(monkeypatch):
    def refused(pid, cpus):
        raise OSError(22, "no such CPU")

    buffer = measure.Buffer(2 << 20)
    monkeypatch.setattr(measure.os, "sched_setaffinity", refused)
    load = measure.Load([buffer], [99], 0, 0)
    with pytest.raises(OSError, match="no such CPU"):
        load.start()


def test_binding_to_the_only_node_is_what_the_kernel_does():
    """Real system calls where the machine lets us: pages bound to a node lie there."""
    try:
        buffer = measure.bound_buffer(4 << 20, 0, alone=False)
    except OSError as error:
        pytest.skip(f"this system refuses mbind or move_pages: {error}")
    assert buffer.nodes() == {0}
    buffer.close()


@pytest.fixture(scope="module")
def measured():
    return measure.measure(ONE, budget=3.0, buffer_bytes=16 << 20, name="here")


def test_a_measured_profile_describes_its_node_and_is_used(measured, tmp_path):
    memory = measured.memories[0]
    assert memory.nodes == (0,) and 2 < memory.idle_latency < 5000 and memory.spread > 0
    assert measured.cores.lines_streaming >= 1 and measured.cores.by_threads[1] > 0
    assert measured.first_touch["4 KiB"] > 0
    assert any("1 GiB" in text for text in measured.not_measured)
    profile.write_profile(measured, tmp_path / "here.yaml")
    assert profile.read_profile(tmp_path / "here.yaml") == measured
    where = machine(ONE, profile=str(tmp_path / "here.yaml"))
    assert where.latency[0, 0] == memory.idle_latency and where.lines_streaming == measured.cores.lines_streaming


def test_what_found_no_time_is_said(measured):
    texts = " ".join(measured.not_measured)
    curves = measured.memories[0].curves
    if len(ONE.nodes[0].cpus) < 2:
        assert "need a second CPU" in texts
    else:
        assert len(curves) == len(measure.STORED_OF_8) or "no time left" in texts


def test_bad_input_and_the_command(tmp_path):
    import typer

    from workbench.commands import measure as command

    with pytest.raises(WorkbenchError, match="budget"):
        measure.measure(ONE, budget=0)
    for given in (0, 4 << 20, 1 << 50):  # what was too large was cut without a word
        with pytest.raises(WorkbenchError, match=r"measure.buffer: .* for each of .* threads; from 8 MiB to"):
            measure.measure(ONE, budget=1, buffer_bytes=given)
    for given in ("a\x00b", "a\x1b[31mb", ""):
        with pytest.raises(WorkbenchError, match=r"measure.name: name: "):
            measure.measure(ONE, budget=1, name=given)
    with pytest.raises(WorkbenchError, match="may run on no CPU"):
        measure.measure(Host(name="x", nodes=(Node(id=0, memory_bytes=1 << 30, cpus=(4000,)),), distances=((10,),)))
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    wrong = CliRunner().invoke(app, ["measure", "-o", str(tmp_path / "p.json")])
    assert isinstance(wrong.exception, WorkbenchError) and not list(tmp_path.iterdir())


PAIRS = {(source, target) for source in (0, 1) for target in (0, 1)}


@pytest.mark.parametrize(
    ("unbound", "unpinned", "lost"),
    [
        (None, None, set()),
        (1, None, {(0, 1), (1, 1)}),
        (None, 1, {(1, 0), (1, 1)}),
    ],
)
def test_two_nodes_have_every_pair_or_a_line_that_says_why_not(monkeypatch, unbound, unpinned, lost):
    """Binding and pinning of a machine of two nodes are played; what is read, chased and timed is real."""

    def bind(self, node, size):
        if node == unbound:
            raise OSError(1, "mbind: EPERM")
        self.bound = node

    def pin(_, cpus):
        if unpinned in cpus and len(cpus) == 1:
            raise OSError(22, "sched_setaffinity: EINVAL")

    monkeypatch.setattr(measure.Buffer, "_bind", bind)
    monkeypatch.setattr(measure.Buffer, "nodes", lambda self, samples=64: {self.bound})
    monkeypatch.setattr(measure.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(measure.os, "sched_setaffinity", pin)
    monkeypatch.setattr(measure, "_first_touch", lambda *_: {})  # of one node, and most of the time
    monkeypatch.setattr(measure, "_cores", lambda *_: {})
    two = Host(name="two", distances=((10, 21), (21, 10)),
               nodes=tuple(Node(id=n, memory_bytes=1 << 30, cpus=(n,)) for n in (0, 1)))  # fmt: skip
    made = measure.measure(two, budget=0.01, buffer_bytes=8 << 20)
    found = {(memory.nodes[0], memory.nodes[0]) for memory in made.memories}
    found |= {(link.initiator, link.target) for link in made.links}
    assert found == PAIRS - lost
    assert all(entry.idle_latency > 0 for entry in (*made.memories, *made.links))
    why = "mbind: EPERM" if unpinned is None else "sched_setaffinity: EINVAL"
    said = {text for text in made.not_measured if why in text}
    assert {f"CPUs of node {source}, memory of node {target}: {why}" for source, target in lost} == said
    used = machine(two, profile=made).latency
    for memory in made.memories:
        assert used[memory.nodes[0], memory.nodes[0]] == memory.idle_latency
    for link in made.links:
        assert used[link.initiator, link.target] == link.idle_latency
