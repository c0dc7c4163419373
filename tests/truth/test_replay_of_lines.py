"""Every line of the recorder's language replays, or is said not to be; one that does not never takes its script along."""

from __future__ import annotations

import copy
import gzip
import json

import pytest

from workbench.data import datasets_path
from workbench.recorder import language
from workbench.truth.verify import verify

WEIGHTS = "/sys/kernel/mm/mempolicy/weighted_interleave"
CREATE = {"op": "create g0 16 MMAP|SHARED", "ret": 7, "errno": 0, "mmap": 0}
TOUCH = {"op": "touch g0 0 16 seq", "ret": 16, "errno": 0, "bad": 0, "first": -1}
START = [CREATE, TOUCH]
WHERE = {"op": "place g0", "place": "0*16", "range": "0+16"}


@pytest.fixture(scope="module")
def boot():
    """A recording of a host with two equal nodes, without its scripts."""
    data = json.loads(gzip.decompress((datasets_path("recordings") / "t2eq.json.gz").read_bytes()))
    return {**data, "scenarios": [], "scenario_text": "scenario x\n"}


@pytest.fixture
def replay(boot, tmp_path):
    """The report of one script made of these operations."""

    def run(operations, name="x"):
        data = copy.deepcopy(boot)
        data["scenarios"] = [{"header": f"{name} tasks=1", "name": name, "us": 1, "ops": operations}]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data))
        return verify([path])[0].scenarios[0]

    return run


@pytest.mark.parametrize(
    "line",
    [
        {"op": "counts g0", "counts": {"0": 16, "1": 0}},
        {"op": "counts g0 4 8", "counts": {"0": 8, "1": 0}},
        {"op": "counts g0", "place_error": "place UNMAPPABLE present=16 errno=19"},
        {"op": "counts g5", "place_error": "place ERR getfd 9"},
        {"op": "place g5", "place_error": "place ERR getfd 9"},
        {"op": "place g0 4 8", "place": "0*8", "range": "4+8"},
        {"op": "reveal g0", "place": "0*16", "range": "0+16"},
        {"op": f"write {WEIGHTS}/node0 3", "text": "write 0"},
        {"op": f"write {WEIGHTS}/node1 256", "text": "write -22"},
        {"op": f"write {WEIGHTS}/node1 many", "text": "write -22"},
        {"op": f"write {WEIGHTS}/auto off", "text": "write 0"},
        {"op": f"write {WEIGHTS}/auto Y", "text": "write -19"},  # no HMAT: nobody tells bandwidths
        {"op": f"write {WEIGHTS}/auto maybe", "text": "write -22"},
    ],
)
def test_lines_that_are_compared(replay, line):
    report = replay([*START, line])
    assert report.judged == 3 and not report.mismatches and not report.not_judged


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"op": "counts g0", "counts": {"0": 15, "1": 1}}, "pages per node"),
        ({"op": "counts g0 4 8", "counts": {"0": 16, "1": 0}}, "pages per node"),
        ({"op": "counts g0", "place_error": "place UNMAPPABLE present=15 errno=19"}, "pages present"),
        ({"op": "counts g0", "place_error": "place ERR getfd 9"}, "errno"),
        ({"op": "reveal g0", "place": "1*16", "range": "0+16"}, "node of page 0"),
        ({"op": f"write {WEIGHTS}/node1 256", "text": "write 0"}, "result"),
    ],
)
def test_lines_that_disagree(replay, line, what):
    report = replay([*START, line])
    assert [mismatch.what.split(" (")[0] for mismatch in report.mismatches] == [what]


def test_a_written_weight_is_in_force(replay):
    rotation = ",".join(["0*3,1*1"] * 4)
    bind = {"op": "mbind g0 0 16 WEIGHTED_INTERLEAVE 0,1", "ret": 0, "errno": 0}
    write = {"op": f"write {WEIGHTS}/node0 3", "text": "write 0"}
    where = {"op": "place g0", "place": rotation, "range": "0+16"}
    assert not replay([CREATE, write, bind, TOUCH, where]).mismatches
    assert replay([CREATE, bind, TOUCH, where]).mismatches


def test_automatic_weights_come_back_and_stay_when_they_are_turned_off(replay, boot):
    boot["topology"]["hmat"], boot["derived"]["wi_weights"] = ["told"], {"0": 2, "1": 1}
    bind = {"op": "mbind g0 0 16 WEIGHTED_INTERLEAVE 0,1", "ret": 0, "errno": 0}
    by_hand = {"op": f"write {WEIGHTS}/node0 3", "text": "write 0"}
    on, off = ({"op": f"write {WEIGHTS}/auto {word}", "text": "write 0"} for word in ("on", "0"))
    for lines, place in (([on], "0*2,1*1"), ([on, off], "0*2,1*1"), ([off], "0*3,1*1")):
        where = {"op": "place g0 0 12", "place": ",".join([place] * (4 if lines[0] is on else 3)), "range": "0+12"}
        report = replay([CREATE, by_hand, *lines, bind, TOUCH, where])
        assert not report.mismatches and report.judged == 5 + len(lines)
    del boot["topology"]["hmat"], boot["derived"]["wi_weights"]


def test_places_of_many_runs_are_compared(replay):
    """More runs than a Dataset lists of a file that is still there."""
    pages = 140_000
    lines = [
        {"op": f"create g0 {pages} MMAP|SHARED", "ret": 7, "errno": 0, "mmap": 0},
        {"op": f"mbind g0 0 {pages} INTERLEAVE 0,1", "ret": 0, "errno": 0},
        {"op": f"touch g0 0 {pages} seq", "ret": pages, "errno": 0, "bad": 0, "first": -1},
    ]
    nodes = ["0", "1"] * (pages // 2)
    right = replay([*lines, {"op": "place g0", "place": ",".join(nodes), "range": f"0+{pages}"}])
    assert not right.mismatches and right.judged == 4 and right.pages == pages
    nodes[99_999] = "0"
    wrong = replay([*lines, {"op": "place g0", "place": ",".join(nodes), "range": f"0+{pages}"}])
    assert [one.what for one in wrong.mismatches] == ["node of page 99999 (1 pages differ)"]


def test_more_runs_than_are_listed_are_passed_over_and_the_rest_is_judged(replay, monkeypatch):
    monkeypatch.setattr("workbench.answer.OBSERVED_RUNS", 20)
    bind = {"op": "mbind g0 0 16 INTERLEAVE 0,1", "ret": 0, "errno": 0}
    where = {"op": "place g0", "place": ",".join(["0,1"] * 8), "range": "0+16"}
    report = replay([CREATE, bind, TOUCH, where, where])
    assert report.judged == 4 and not report.mismatches and "runs that are listed" in " ".join(report.not_judged)


def test_revealed_pages_are_gone(replay):
    lines = [
        {"op": "reveal g0 0 8", "place": "0*8", "range": "0+8"},
        {"op": "place g0", "place": ".*8,0*8", "range": "0+16"},
    ]
    assert not replay([*START, *lines]).mismatches


@pytest.mark.parametrize(
    "opened",
    [
        {"op": "memfd g1 1024 2M", "ret": 8, "errno": 0, "ino": 7},
        {"op": "anon g1 1024", "ret": 0, "errno": 0},
    ],
)
def test_files_that_are_not_simulated_take_only_their_own_lines_along(replay, opened):
    lines = [
        opened,
        {"op": "mbind g1 0 512 BIND 1", "ret": 0, "errno": 0},
        {"op": "alias g2 g1", "ret": 0, "errno": 0},
        {"op": "counts g2", "counts": {"0": 0}},
        WHERE,
    ]
    report = replay([*START, *lines])
    assert report.judged == 3 and not report.mismatches and sum(report.not_judged.values()) == 4


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"op": "vm snp", "ret": -1, "errno": 22}, "type snp"),
        ({"op": "write /proc/sys/vm/swappiness 10", "text": "write 0"}, "swappiness is a file of the host that is not"),
        ({"op": "cat /proc/version", "file": ["Linux"]}, "reads a file of the host"),
        ({"op": "nodestat", "counters": {}}, "the first look at a node's counters"),
        ({"op": "kvmcap 244", "ret": 3, "errno": 0}, "given by number"),
        ({"op": "kvmcap VM_TYPES", "ret": 3, "errno": 0}, "the machine's answer"),
        ({"op": "unheard g0", "text": "ERR unknown op"}, "unheard is no verb"),
    ],
)
def test_lines_that_are_passed_over_say_why(replay, line, reason):
    report = replay([*START, line, WHERE])
    assert report.judged == 3 and not report.mismatches
    assert reason in " ".join(report.not_judged)


@pytest.mark.parametrize(("answer", "mismatches"), [(3, 0), (1, 1)])
def test_what_the_vm_says_that_it_can_is_judged(replay, answer, mismatches):
    report = replay([*START, {"op": "kvmcap GUEST_MEMFD_FLAGS", "ret": answer, "errno": 0}])
    assert len(report.mismatches) == mismatches and not report.not_judged


@pytest.mark.parametrize(("answer", "mismatches"), [(0, 0), (8, 1)])
def test_attributes_of_files_are_judged_by_the_kernel(replay, answer, mismatches):
    """7.3 has none; the number under which a kernel says so is its own."""
    line = {"op": "kvmcap GUEST_MEMFD_MEMORY_ATTRIBUTES", "ret": answer, "errno": 0, "capability": 252}
    report = replay([*START, line])
    assert len(report.mismatches) == mismatches and not report.not_judged


@pytest.mark.parametrize(("errno", "mismatches"), [(22, 0), (0, 1), (12, 1)])
def test_huge_pages_that_a_kernel_lacks_are_judged(replay, errno, mismatches):
    line = {"op": "create g1 512 MMAP|HUGETLB_2M", "ret": -1 if errno else 9, "errno": errno, "mmap": 0}
    report = replay([*START, {**line, "lacks": "GUEST_MEMFD_FLAG_HUGETLB"}, WHERE])
    assert bool(report.mismatches) == bool(mismatches) and not report.not_judged


def test_huge_pages_that_a_kernel_has_are_passed_over_with_all_lines_on_the_file(replay):
    lines = [
        {"op": "create g1 512 HUGETLB_2M", "ret": 9, "errno": 0},
        {"op": "falloc g1 0 512", "ret": 0, "errno": 0},
        {"op": "counts g1", "counts": {"0": 512}},
        WHERE,
    ]
    report = replay([*START, *lines])
    assert report.judged == 3 and not report.mismatches and sum(report.not_judged.values()) == 3
    assert any("huge pages" in reason for reason in report.not_judged)


SEEN = {
    "place": {"place": "0*16", "range": "0+16"},
    "reveal": {"place": "0*16", "range": "0+16"},
    "counts": {"counts": {"0": 16, "1": 0}},
    "weights": {"text": "weights default"},
    "cpuset": {"mems": 0, "procs": 0},
    "zones": {"zones": {}},
    "eat": {"node": 0, "got": 1, "free": 1},
    "eatto": {"text": "eat skip"},
}
WORDS = {
    "create": "g1 4 MMAP|SHARED", "memfd": "g1 4", "anon": "g1 4", "alias": "g1 g0", "setpol": "BIND 0",
    "mbind": "g0 0 4 BIND 0", "home": "g0 0 4 0", "setcpu": "0", "cpuset": "off", "weights": "default", "vm": "none",
    "kvmcap": "244", "slot": "g0", "attr": "g0 0 4 private", "convert": "g0 0 4 private", "pin": "g0 0 4 uring",
    "migrate": "0 1", "movepages": "g0 0 4 1", "madv": "g0 0 4 23", "getpol": "g0 0", "getnode": "g0 0", "fill": "g0 4",
    "preserve": "g0 1", "retrieve": "g0 1",
    "cat": "/x", "write": "/x 1", "sleep": "1", "eat": "0 1", "eatto": "0 999999999", "pool": "2M 0 1",
}  # fmt: skip
RANGES = ("falloc", "punch", "touch", "rtouch", "vtouch", "prefault", "odirect")
ALONE = (
    "reset", "gettask", "getil", "zones", "meminfo", "nodestat", "numastat", "pools", "kho", "uneat", "kexec", "finish",
    "close_session",
)  # fmt: skip


@pytest.mark.parametrize("verb", language.VERBS)
def test_every_verb_replays_or_says_why(replay, verb):
    words = WORDS.get(verb, "g0 0 4" if verb in RANGES else "" if verb in ALONE else "g0")
    line = f"{verb} {words}".strip()
    language.check(f"scenario a\n{line}\n")
    report = replay([*START, {"op": line, "ret": 0, "errno": 0, **SEEN.get(verb, {})}])
    assert "the script could not be replayed" not in report.not_judged
    unknown = [reason for reason in report.not_judged if "is no verb" in reason]
    assert not unknown and report.judged + sum(report.not_judged.values()) == 3
