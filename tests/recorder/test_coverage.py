"""The coverage table is current, and it counts what scripts really allocate."""

from __future__ import annotations

import gzip
import json

from workbench.data import datasets_path
from workbench.recorder import coverage as cov
from workbench.recorder.scenario_generator import MODES


def write(path, ops, tasks=1, **changes):
    data = {
        "topology": {"name": "x", "nodes": [{"mem": "512M", "cpus": [0]}, {"mem": "256M", "cpus": []}],
                     "distances": [[10, 20], [30, 10]]},
        "derived": {"wi_weights": {"0": 1, "1": 1}, "pxm_to_node": {"0": 0, "1": 1}},
        "scenarios": [{"name": "s", "header": f"s tasks={tasks}", "ops": ops}],
    } | changes  # fmt: skip
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    return path


def call(text, **seen):
    return {"op": text, "ret": 0, "errno": 0, **seen}


def test_file_is_current():
    text = (datasets_path("recordings") / "COVERAGE.md").read_text(encoding="utf-8")
    now = cov.report(cov.measure(cov.recordings()))
    assert text == now, "run python -m workbench.recorder.coverage"


def test_own_recordings_leave_no_hole_in_the_modes():
    measured = cov.measure(cov.recordings())
    for kind in ("guest_memfd", "memfd"):
        for mode in MODES:
            for way in cov.WAYS:
                assert measured.placed.get((kind, "task", mode, way)), (kind, mode, way)
                assert mode == "DEFAULT" or measured.placed.get((kind, "shared", mode, way)), (kind, mode, way)


def test_policy_that_decides(tmp_path):
    path = write(tmp_path / "a.json.gz", [
        call("create g0 64 MMAP|SHARED"),
        call("mbind g0 8 8 INTERLEAVE 0-1"),
        call("t1 setpol BIND 1"),
        call("t1 touch g0 0 16 rev", bad=0),
        call("touch g0 0 20 seq", bad=0),
        call("punch g0 8 4"),
        call("falloc g0 8 8"),
        {"op": "mbind g0 32 8 BIND 1 STRICT", "ret": -1, "errno": 5},
        {"op": "mbind g0 40 8 BIND 1 MOVE|STRICT", "ret": -1, "errno": 5},
        call("touch g0 32 16 rand 7", bad=0),
        {"op": "touch g0 63 4 seq", "ret": 1, "errno": 0, "bad": 3},
        {"op": "touch g0 50 2 seq", "ret": -1, "errno": "dead"},
    ], tasks=2)  # fmt: skip
    pages = dict(cov.measure([path]).pages)
    assert pages == {
        ("guest_memfd", "task", "BIND", "touch rev"): 8,
        ("guest_memfd", "shared", "INTERLEAVE", "touch rev"): 8,
        ("guest_memfd", "task", "DEFAULT", "touch seq"): 4,
        ("guest_memfd", "shared", "INTERLEAVE", "fallocate"): 4,
        ("guest_memfd", "task", "DEFAULT", "touch rand"): 8,
        ("guest_memfd", "shared", "BIND", "touch rand"): 8,
    }


def test_features(tmp_path):
    path = write(tmp_path / "a.json.gz", [], cmdline="pcpdefault")
    assert cov.features_of(json.loads(gzip.decompress(path.read_bytes()))) == [
        "2 nodes", "asymmetric distances", "unequal sizes", "node without CPUs", "default per-CPU lists"
    ]  # fmt: skip


def test_second_mapping_shares_pages_and_policy(tmp_path):
    path = write(tmp_path / "a.json.gz", [
        call("memfd g0 8"), call("alias g1 g0"), call("mbind g1 0 8 PREFERRED -"), call("rtouch g0 0 8 stride 3", bad=0),
        call("madv g1 0 8 23"), call("madv g1 0 8 9"), call("madv g0 0 4 22"), call("getnode g1 6"),
    ])  # fmt: skip
    assert dict(cov.measure([path]).pages) == {
        ("memfd", "shared", "LOCAL", "read stride"): 8,
        ("memfd", "shared", "LOCAL", "populate read"): 4,
        ("memfd", "shared", "LOCAL", "get_mempolicy node"): 1,
    }
