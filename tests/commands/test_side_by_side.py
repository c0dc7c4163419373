"""What a person asks for at the prompt: ready scenarios, calls, comparisons; and exit code 2 with one line for bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench.commands import cli
from workbench.ready import ready_scenarios
from workbench.truth.verify import RecordingReport, ScenarioReport

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``workbench WORDS...`` in this process: exit code, standard output, standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["workbench", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_every_ready_scenario_has_a_question_and_what_to_look_at(command: Command) -> None:
    found = ready_scenarios()
    assert [one.name for one in found] == sorted(one.name for one in found)
    for one in found:
        assert one.question.endswith("?") or "? " in one.question or one.question.endswith("touched it first."), (
            one.name
        )
        assert one.look_at, one.name
    code, out, _ = command("scenarios")
    assert code == 0 and all(one.name in out for one in found)
    assert "The policy is changed" in out or "the policy is changed after memory is there. What moves?" in out
    rows = json.loads(command("scenarios", "--json")[1])
    assert [row["name"] for row in rows] == [one.name for one in found]


def test_calls_are_listed_from_0_with_their_results(command: Command) -> None:
    code, out, _ = command("run", "policy-after-allocation", "--calls")
    assert code == 0
    lines = [line for line in out.splitlines() if "│ 5 " in line or "│ 9 " in line]
    assert "mbind" in lines[0] and "EIO" in lines[0]
    assert "262,144 on 1" in lines[1]
    calls = json.loads(command("run", "policy-after-allocation", "--calls", "--json")[1])["calls"]
    assert [call["event"] for call in calls] == list(range(11))
    assert (calls[5]["op"], calls[5]["ret"], calls[5]["error"]) == ("mbind", -1, "EIO")
    assert calls[9]["pages"] == {"1": 262144}


def test_the_comparison_of_designs_is_in_the_json(command: Command) -> None:
    words = ["run", "snp-guest-boots", "--set", "guest.memory=2GiB", "--designs", "hugetlb,pfn-range"]
    code, out, _ = command(*words, "--json")
    said = json.loads(out)
    assert code == 0 and set(said) == {"hugetlb", "pfn-range", "comparison"}
    value = wb.ready.scenario("snp-guest-boots").replace(**{"guest.memory": "2 GiB", "guest.design": "hugetlb"})
    last = wb.simulate(value).isel(event=-1)
    for name, counts in said["comparison"].items():
        assert counts["hugetlb"] == int(last[name].sum()), name
    assert said["comparison"]["splits_1g"]["pfn-range"] == 0 < said["comparison"]["splits_1g"]["hugetlb"]
    kernels = json.loads(command("run", "conversion-drifts", "--kernel-profile", "7.3,7.4", "--json")[1])
    assert set(kernels) == {"7.3", "7.4", "comparison"}
    assert (
        json.loads(command("run", "interface-mbind", "--designs", "filemap,hugetlb", "--json")[1])["comparison"] == {}
    )


def test_accesses_of_a_run_are_printed_with_their_ranges(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "name: a\nhost: epyc1-naples-2s\nguest: {memory: 64 MiB, vcpus: [{node: 0}]}\n"
        "operations:\n- {op: prefault}\n- {op: access, pattern: uniform}\n"
    )
    said = json.loads(command("run", str(path), "--json")[1])
    (row,) = said["streams"]
    for name in ("latency_ns", "bandwidth_mb_s"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    # A part of 64 MiB fits the caches, or in some draws all of it, and figures are of the rest.
    assert 0 == row["memory_fraction_low"] < row["memory_fraction"] < row["memory_fraction_high"] < 1
    out = command("run", str(path))[1]
    assert f"{row['memory_fraction']:.1%} (0 to {100 * row['memory_fraction_high']:.3g})" in " ".join(out.split())
    assert "reach memory" in out
    assert "accesses, modelled (nine in ten draws)" in out and f"{row['latency_ns']:.4g} ns (" in out


def test_a_measured_profile_says_what_accesses_cost(command: Command) -> None:
    words = ["run", "policy-after-allocation", "--profile", "grace"]
    code, out, _ = command(*words)
    value = wb.ready.scenario("policy-after-allocation")
    cost = wb.cost.traffic.access_cost(wb.simulate(value), value.host, "streaming", profile="grace")
    assert code == 0 and f"{float(cost.latency[0]):.4g} ns" in out and "measured profile: grace" in out
    said = json.loads(command(*words, "--designs", "filemap,hugetlb", "--set", "guest.page_size=4KiB", "--json")[1])
    found = said["filemap"]["accesses"]["grace"]["0"]
    for name, value in (("latency_ns", cost.latency[0]), ("bandwidth_mb_s", cost.bandwidth[0])):
        assert found[name] == round(float(value), 1)
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]  # what is modelled has a range
    assert "accesses" not in json.loads(command("run", "policy-after-allocation", "--json")[1])


def test_page_sizes_at_the_prompt(command: Command) -> None:
    code, out, _ = command("run", "interface-mbind", "--set", "guest.page_size=2MiB", "--set", "guest.design=hugetlb",
                           "--json")  # fmt: skip
    assert code == 0 and json.loads(out)["page_size"] == 2 << 20


def test_interfaces_side_by_side(command: Command) -> None:
    four = ["none", "create", "fbind", "mbind"]
    code, out, _ = command("compare", "interface-mbind", "--interfaces", ",".join(four), "--json")
    said = json.loads(out)
    assert code == 0 and list(said) == four
    gib = [
        {node: amount >> 30 for node, amount in said[name]["bytes_per_node"]["guest"].items() if amount}
        for name in four
    ]
    assert gib == [{"0": 16}, {"1": 16}, {"1": 8, "6": 8}, {"1": 8, "6": 8}]
    code, out, _ = command("compare", *(f"interface-{name}" for name in four))
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in out.splitlines() if "│" in line
            for cells in [line.split("│")]}  # fmt: skip
    assert code == 0 and rows["guest: node 6"] == ["0 B (0%)", "0 B (0%)", "8 GiB (50%)", "8 GiB (50%)"]
    assert rows["refused calls"] == ["none", "1 policy: EOPNOTSUPP", "none", "none"] and "VMM" not in rows
    assert "refused: interface-create: 1 policy: the policy was fixed when the file was created" in out


def test_a_refusal_says_where_what_is_missing_exists(command: Command) -> None:
    older = ("--set", "kernel_profile=7.3", "--set", "guest.vmm_profile=qemu-11")
    code, out, _ = command("run", "snp-guest-boots", *older)
    assert code == 0 and "was refused: EINVAL (huge pages: not on 7.3; on proposal-hugetlb, " in out
    code, out, _ = command("compare", "snp-guest-boots", "conversion-drifts", *older)
    assert code == 0 and "refused: snp-guest-boots: 0 create: huge pages: not on 7.3; on proposal-hugetlb, " in out
    assert [cell.strip() for cell in out.split("VMM ", 1)[1].split("│")[1:3]] == ["qemu-11", "qemu-11"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "wieghted-interleave-cxl"], "did you mean 'weighted-interleave-cxl'?"),
        (["history", "polici-after-allocation"], "did you mean 'policy-after-allocation'?"),
        (["explore", "no-such"], "scenario 'no-such': no such file; ready ones: "),
        (
            ["run", "full-node", "--set", "guest.pagesize=2MiB"],
            "did you mean 'page_size'? allowed are memory, page_size",
        ),
        (
            ["run", "full-node", "--set", "operations.0.op=hogg"],
            "'hogg' is unknown; did you mean 'hog'? there are create",
        ),
        (["run", "full-node", "--set", "guest.policies.0.mode=prefered"], "did you mean 'preferred'?"),
        (["run", "full-node", "--set", "host=powr9"], "`workbench machines` lists"),
        (["run", "full-node", "--designs", "hugtlb"], "did you mean 'hugetlb'?"),
        (["run", "full-node", "--kernel-profile", "7.33"], "did you mean '7.3'?"),
        (["run", "full-node", "--profile", "gracee"], "did you mean 'grace'?"),
        (["machines", "show", "naples"], "did you mean 'epyc1-naples-2s'?"),
        (["machines", "show", "gh200-x4", "-o", "x.gif"], "must end in .svg, .png or .pdf"),
        (["verify", "t2eqq"], "did you mean 't2eq'?"),
        (["report", "01_placment"], "did you mean '01_placement'?"),
        (["compare", "full-node"], "name two or more, or --interfaces"),
        (["compare", "full-node", "full-node"], "'full-node' is there twice"),
        (["compare", "full-node", "--interfaces", "mbnd"], "did you mean 'mbind'?"),
    ],
)
def test_bad_values_end_with_2_and_one_line(command: Command, words: list[str], said: str) -> None:
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert err.startswith("workbench: ") and err.count("\n") == 1 and said in err and "literal[" not in err


def test_a_node_that_filled_up_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    script = ScenarioReport("fill", operations=3, judged=3, pages=1000, deviation=56, slack=80)
    cli._print_reports([RecordingReport("t.json.gz", "t2eq", [script])], 20)
    out = capsys.readouterr().out
    assert "pages apart: t2eq/fill: 56 pages lie on another node than recorded, 80 may" in out
    assert "use up all memory of a node" in out and "Only pages beyond that count as mismatches" in out
    assert "filled a node" not in out and "slack" not in out
    cli._print_reports([RecordingReport("t.json.gz", "t2eq", [ScenarioReport("a", 1, 1, 1)])], 20)
    assert "use up" not in capsys.readouterr().out


def test_a_machine_is_drawn_with_o(tmp_path: Path, command: Command) -> None:
    code, out, _ = command("machines", "show", "xeon-e5-2680-2s", "-o", f"{tmp_path}/m.svg")
    assert code == 0 and out.strip() == f"{tmp_path}/m.svg"
    assert "<svg" in (tmp_path / "m.svg").read_text()


def test_what_is_an_estimate_says_so(command: Command) -> None:
    """Every parameter that the cost model takes of a machine, with who says so: nobody published a figure of POWER7."""
    code, out, _ = command("machines", "show", "power7-8n", "--costs")
    lines = {line.split()[0]: line for line in out.partition("cost of memory (class power7")[2].splitlines()[1:]}
    assert code == 0 and "cxl_latency" not in lines
    assert all(" estimate " in lines[name] for name in ("dram_latency", "dram_bandwidth", "remote_latency_ratio"))
    code, out, _ = command("machines", "show", "epyc2-rome-2s-nps1", "--costs")
    (latency,) = [line for line in out.splitlines() if "dram_latency" in line]
    assert latency.split()[1:6] == ["114", "96", "to", "135", "ns"] and " published " in latency
    assert "EPYC 7742: 120 ns" in latency


def test_help_names_every_command() -> None:
    cli._register_all()
    said = CliRunner().invoke(cli.app, ["--help"]).output
    for name in ("run", "verify", "scenarios", "compare", "machines", "history", "report", "explore"):
        assert f"  {name} " in said
