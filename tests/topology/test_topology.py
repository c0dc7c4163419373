"""Hosts: what is refused and how, every reader against what people have, and the machines that come along."""

from __future__ import annotations

import json
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from workbench import safe_yaml
from workbench.bitmap_lists import format_list, parse_list
from workbench.commands import cli
from workbench.commands import machines as commands_machines
from workbench.data import datasets_path
from workbench.errors import WorkbenchError
from workbench.topology.host import Host, machine_names

SNAPSHOTS = sorted(datasets_path("sysfs").glob("*.tar.gz"))

TWO = {
    "name": "two",
    "nodes": [{"id": 0, "memory_bytes": "1 GiB", "cpus": "0-1"}, {"id": 4, "memory_bytes": "2 GiB", "cpus": [2, 3]}],
    "distances": [[10, 17], [28, 10]],
}


def changed(**fields: Any) -> dict[str, Any]:
    return {**TWO, **fields}


# ------------------------------------------------------------------------------------------------------- the model


def test_sparse_ids_and_asymmetric_distances_are_ordinary() -> None:
    host = Host.from_mapping(TWO)
    assert host.node_ids.tolist() == [0, 4]
    assert host.distance_matrix.tolist() == [[10, 17], [28, 10]]
    assert host.index_of(4) == 1
    assert host.node_of_cpu(3) == 4
    assert host.memory_bytes == 3 << 30


def test_nodes_are_put_in_ascending_order() -> None:
    host = Host.from_mapping(changed(nodes=TWO["nodes"][::-1], distances=[[10, 28], [17, 10]]))
    assert host == Host.from_mapping(TWO)


def test_memoryless_and_cpuless_nodes() -> None:
    nodes = [{"id": 0, "memory_bytes": 0, "cpus": "0"}, {"id": 1, "memory_bytes": "1 GiB", "kind": "cxl"}]
    host = Host.from_mapping(changed(nodes=nodes))
    assert [node.kind for node in host.nodes] == ["dram", "cxl"]
    assert host.nodes[1].cpus == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distances": [[10, 20]]}, "host: distances: 1 rows of [2] for 2 nodes; the matrix must be square"),
        ({"distances": [[10, 20], [20]]}, "must be square, 2 x 2"),
        ({"distances": [[10, 300], [20, 10]]}, "distances[0][1]: 300 is not allowed"),
        ({"distances": [[10, -1], [20, 10]]}, "distances[0][1]: -1 is not allowed"),
        ({"distances": [[11, 20], [20, 10]]}, "distances[0][0]: 11; the distance of a node to itself is 10"),
        (
            {"distances": [[10, "near"], [20, 10]]},
            "host.distances: [0][1]: must be a whole number, not 'near'; distances",
        ),
        ({"distances": [[10, 20.0], [20, 10]]}, "host.distances: [0][1]: must be a whole number, not 20.0; distances"),
        ({"nodes": [{"id": 0, "memory_bytes": 0}, {"id": 1, "memory_bytes": 0}]}, "nodes: none has memory"),
        ({"nodes": []}, "host.nodes"),
        ({"nodes": [TWO["nodes"][0], TWO["nodes"][0]]}, "nodes: id 0 is there twice"),
        (
            {"nodes": [TWO["nodes"][0], {"id": 1, "memory_bytes": 4096, "cpus": "1"}]},
            "CPU 1 is on node 0 and on node 1",
        ),
        ({"nodes": [TWO["nodes"][0], {"id": 1024, "memory_bytes": 4096}]}, "host.nodes.1.id"),
        ({"nodes": [TWO["nodes"][0], {"id": 1, "memory_bytes": 5000}]}, "5000 is not a multiple of the page size 4096"),
        ({"nodes": [TWO["nodes"][0], {"id": 1, "memory_bytes": -4096}]}, "negative"),
        ({"nodes": [TWO["nodes"][0], {"id": 1, "memory_bytes": "lots"}]}, "'lots' is not a size"),
        ({"nodes": [TWO["nodes"][0], {"id": 1, "memory_bytes": 4096, "cpus": "0-"}]}, "neither a number nor a range"),
        ({"nodes": [TWO["nodes"][0], {"id": 1, "memory_bytes": 4096, "kind": "tape"}]}, "host.nodes.1.kind"),
        ({"nodes": [TWO["nodes"][0], {"id": 1, "memory_bytes": 4096, "free_bytes": 8192}]}, "free_bytes 8192 is more"),
        ({"access": [{"initiator": 0, "target": 3}]}, "nodes 0 -> 3 are not both on this host"),
        ({"colour": "red"}, "host.colour"),
    ],
)
def test_bad_hosts_are_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError) as caught:
        Host.from_mapping(changed(**fields))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hosts_are_values() -> None:
    host = Host.from_mapping(TWO)
    with pytest.raises(ValueError, match="frozen"):
        host.name = "other"  # type: ignore[misc]
    assert Host.from_mapping(host.model_dump()) == host


@given(st.sets(st.integers(0, 300), max_size=40))
def test_cpu_lists_read_back(cpus: set[int]) -> None:
    assert parse_list(format_list(cpus)) == tuple(sorted(cpus))


# ---------------------------------------------------------------------------------------------------------- sysfs


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for archive in SNAPSHOTS:
        folder = tmp_path_factory.mktemp("sysfs") / archive.name.split(".")[0]
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        found[folder.name] = folder / "sys"
    return found


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("128arm-2pa2n8cluster4co", "kunpeng920-2s"),
        ("128ia64-17n4s2c", "altix-ia64-17n"),
        ("256ia64-64n2s2c", "altix-ia64-64n"),
        ("48amd64-4pa2n6c-sparse", "opteron-es-4s-unequal"),
        ("64amd64-4s2n4ca2co", "opteron6276-4s"),
        ("96em64t-4no4pa3ca2co", "intel-16socket-4node"),
        ("fakememinitiators-1np2c-1npp-gi", "cascadelake-hmat-test"),
    ],
)
def test_snapshots_are_the_machines(snapshots: dict[str, Path], name: str, machine: str) -> None:
    """Ids, distances, memory and CPUs of seven real snapshots, read here, are those of the machine in datasets."""
    read, known = Host.from_sysfs(snapshots[name]), Host.from_machine(machine)
    assert read.node_ids.tolist() == known.node_ids.tolist()
    assert read.distances == known.distances
    for mine, theirs in zip(read.nodes, known.nodes, strict=True):
        assert mine.memory_bytes >> 20 == theirs.memory_bytes >> 20
        assert mine.cpus == theirs.cpus
    assert all(node.free_bytes is not None for node in read.nodes)


def test_every_snapshot_has_been_looked_at() -> None:
    assert len(SNAPSHOTS) == 7


def test_hmat_of_access_class_one(snapshots: dict[str, Path]) -> None:
    host = Host.from_sysfs(snapshots["fakememinitiators-1np2c-1npp-gi"])
    figures = {(a.initiator, a.target): (a.read_bandwidth, a.read_latency) for a in host.access}
    assert figures[0, 5] == (131072, 26)
    assert figures[1, 10] == (78644, 77)
    assert {(a.initiator, a.target) for a in host.access} == {
        (a.initiator, a.target) for a in Host.from_machine("cascadelake-hmat-test").access
    }


def test_this_machine_can_be_read() -> None:
    if not Path("/sys/devices/system/node/node0").is_dir():
        pytest.skip("no NUMA information in /sys")
    host = Host.from_sysfs()
    assert host.memory_bytes > 0
    assert any(node.cpus for node in host.nodes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda node: shutil.rmtree(node), "is not 8 distances"),
        (lambda node: (node / "meminfo").unlink(), "meminfo is missing; the tree is truncated"),
        (lambda node: (node / "meminfo").write_text("Node 1 MemFree: 4 kB\n"), "no MemTotal"),
        (lambda node: (node / "distance").unlink(), "distance is missing"),
        (lambda node: (node / "distance").write_text("10 16 16\n"), "'10 16 16' is not 8 distances"),
        (lambda node: (node / "distance").write_bytes(b"\xff\xfe\x00"), "is not 8 distances"),
        (lambda node: (node / "cpulist").write_text("0-x\n"), "node1/cpulist"),
    ],
)
def test_truncated_trees_are_one_line(snapshots: dict[str, Path], tmp_path: Path, damage: Any, message: str) -> None:
    root = tmp_path / "sys"
    shutil.copytree(snapshots["64amd64-4s2n4ca2co"], root)
    damage(root / "devices/system/node/node1")
    with pytest.raises(WorkbenchError) as caught:
        Host.from_sysfs(root)
    # without node 1 the distances of the others have one column too many
    expected = "is not 7 distances" if damage and not (root / "devices/system/node/node1").exists() else message
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_tree_at_all(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="give the directory that holds devices/"):
        Host.from_sysfs(tmp_path)
    (tmp_path / "devices/system/node").mkdir(parents=True)
    with pytest.raises(WorkbenchError, match="no node directory, as in a kernel without CONFIG_NUMA"):
        Host.from_sysfs(tmp_path)


def test_cpumap_serves_where_there_is_no_cpulist(snapshots: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "sys"
    shutil.copytree(snapshots["64amd64-4s2n4ca2co"], root)
    for path in root.rglob("cpulist"):
        path.unlink()
    assert [n.cpus for n in Host.from_sysfs(root).nodes] == [n.cpus for n in Host.from_machine("opteron6276-4s").nodes]


# -------------------------------------------------------------------------------------------------------- numactl

NUMACTL = """available: 3 nodes (0-1,4)
node 0 cpus: 0 1 2 3
node 0 size: 64215 MB
node 0 free: 60112 MB
node 1 cpus: 4 5 6 7
node 1 size: 64509 MB
node 1 free: 64000 MB
node 4 cpus:
node 4 size: 131072 MB
node 4 free: 131072 MB
node distances:
node   0   1   4
  0:  10  21  24
  1:  21  10  14
  4:  24  14  10
"""


def test_numactl() -> None:
    host = Host.from_numactl(NUMACTL)
    assert host.node_ids.tolist() == [0, 1, 4]
    assert host.nodes[0].memory_bytes == 64215 << 20
    assert host.nodes[0].free_bytes == 60112 << 20
    assert host.nodes[2].cpus == ()
    assert host.distances == ((10, 21, 24), (21, 10, 14), (24, 14, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this is not the output of numactl --hardware"),
        ("No NUMA support available on this system.", "this is not the output"),
        (NUMACTL.split("node distances")[0], "no 'node distances:'"),
        (NUMACTL[: NUMACTL.rindex("  4:")], "distances are given for nodes"),
        (NUMACTL.replace("64215 MB", "many MB"), "node 0 size: 'many MB' is not a size in MB"),
        (NUMACTL.replace("24  14  10", "24  14"), "must be square"),
        (NUMACTL.replace("0 1 2 3\n", "0 1 2 x\n"), "node 0 cpus"),
        ("x" * (5 << 20), "5 MiB of text"),
    ],
)
def test_bad_numactl_is_one_line(text: str, message: str) -> None:
    with pytest.raises(WorkbenchError) as caught:
        Host.from_numactl(text)
    assert message in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- hwloc

HWLOC = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE topology SYSTEM "hwloc2.dtd">
<topology version="2.0">
  <object type="Machine" os_index="0" cpuset="0x000000ff" nodeset="0x0000000d" gp_index="1">
    <object type="Package" os_index="0" cpuset="0x0000000f" gp_index="2">
      <object type="NUMANode" os_index="0" cpuset="0x0000000f" nodeset="0x00000001" gp_index="3"
              local_memory="68719476736"><page_type size="4096" count="16777216"/></object>
      <object type="NUMANode" os_index="2" cpuset="0x0000000f" nodeset="0x00000004" gp_index="4"
              subtype="HBM" local_memory="17179869184"/>
    </object>
    <object type="Package" os_index="1" cpuset="0x000000f0" gp_index="5">
      <object type="NUMANode" os_index="3" cpuset="0x000000f0" nodeset="0x00000008" gp_index="6"
              local_memory="68719476736"/>
    </object>
  </object>
  <distances2 type="NUMANode" nbobjs="3" kind="5" name="NUMALatency" indexing="os">
    <indexes length="6">0 3 2 </indexes>
    <u64values length="24">10 21 13 21 10 23 </u64values>
    <u64values length="24">13 23 10 </u64values>
  </distances2>
</topology>
"""


def test_hwloc(tmp_path: Path) -> None:
    path = tmp_path / "machine.xml"
    path.write_text(HWLOC)
    host = Host.from_hwloc_xml(path)
    assert host.node_ids.tolist() == [0, 2, 3]
    assert [node.kind for node in host.nodes] == ["dram", "hbm", "dram"]
    assert [node.cpus for node in host.nodes] == [(0, 1, 2, 3), (), (4, 5, 6, 7)]
    assert host.distances == ((10, 13, 21), (13, 10, 23), (21, 23, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HWLOC[:900], "is not XML that can be read"),
        ("<html/>", "the top element is 'html'"),
        ('<topology version="2.0"/>', "no NUMANode object"),
        (HWLOC.replace('local_memory="68719476736"', 'local_memory="-1"', 1), "local_memory='-1' is not a number"),
        (HWLOC.replace("0x000000f0", "zz"), "cpuset 'zz' is not a bitmap"),
        (
            '<!DOCTYPE t [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><topology><object type="&b;"/></topology>',
            "is not XML that can be read",
        ),
        (
            '<!DOCTYPE t [<!ENTITY x SYSTEM "file:///etc/passwd">]><topology>&x;</topology>',
            "is not XML that can be read",
        ),
    ],
)
def test_bad_hwloc_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "machine.xml"
    path.write_text(text)
    with pytest.raises(WorkbenchError) as caught:
        Host.from_hwloc_xml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    for read in (Host.from_hwloc_xml, Host.from_yaml):
        with pytest.raises(WorkbenchError, match="No such file"):
            read(tmp_path / "none")


# ----------------------------------------------------------------------------------------------------------- YAML


def test_yaml_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    path.write_text(json.dumps(TWO))  # JSON is YAML
    assert Host.from_yaml(path) == Host.from_mapping(TWO)
    assert Host.from_yaml(json.dumps(TWO, indent=1)) == Host.from_mapping(TWO)


def test_yaml_bomb_is_refused_before_it_is_built() -> None:
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    begun = time.process_time()
    with pytest.raises(WorkbenchError, match="more than 64 aliases"):
        safe_yaml.load(f"a0: &a0 [lol]\n{levels}\n", "scenario")
    assert time.process_time() - begun < 2


def test_large_yaml_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 20)  # a sparse file of 100 MiB
    begun = time.process_time()
    with pytest.raises(WorkbenchError, match="has more than 10,240 KiB; no more are read"):
        Host.from_yaml(path)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must be a mapping of fields, not list"),
        ("\n", "not NoneType"),
        ("a: [1\nb: 2\n", "not valid YAML in line 2"),
        ("a: !!python/object/apply:os.system [ls]\n", "is not read; write plain values"),
        ("a: " + "[" * 200 + "]" * 200 + "\n", "nested deeper than"),
        ("1: a\n", "field names must be texts"),
        ("a: \x00\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_line(text: str, message: str) -> None:
    with pytest.raises(WorkbenchError) as caught:
        safe_yaml.load(text, "scenario")
    assert str(caught.value).startswith("scenario: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- machines


@pytest.mark.parametrize("name", machine_names())
def test_machines_have_a_source(name: str) -> None:
    host = Host.from_machine(name)
    assert host.name == name
    assert host.source
    assert host.title
    if not any(node.cpus for node in host.nodes):
        raise AssertionError("no node has CPUs")
    matrix = host.distance_matrix
    assert np.array_equal(matrix.diagonal(), np.full(len(host.nodes), 10))


def test_unknown_machine() -> None:
    with pytest.raises(WorkbenchError, match="'nothing' is not known"):
        Host.from_machine("nothing")


# ---------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def app() -> Any:
    import typer

    app = typer.Typer()
    app.callback()(lambda: None)
    commands_machines.register(app)
    return app


def test_list(app: Any) -> None:
    result = CliRunner().invoke(app, ["machines"])
    assert result.exit_code == 0
    assert all(name in result.output for name in machine_names())
    rows = json.loads(CliRunner().invoke(app, ["machines", "--json"]).output)
    assert [row["name"] for row in rows] == machine_names()


def test_show_small(app: Any) -> None:
    result = CliRunner().invoke(app, ["machines", "show", "epyc1-naples-2s"])
    assert result.exit_code == 0
    assert "0  10 16 16 16 32 32 32 32" in result.output
    assert "assumed: cpus" in result.output


@pytest.mark.parametrize(
    ("name", "width", "longest"), [("gh200-x4", 80, 80), ("gh200-x4", 160, 150), ("altix-ia64-64n", 80, 70)]
)
def test_large_matrices_fit(name: str, width: int, longest: int) -> None:
    """36 nodes in 80 and in 160 columns, 64 nodes in 80: no line is wrapped and every distance can be told."""
    host = Host.from_machine(name)
    lines = [line.plain for line in commands_machines.matrix_lines(host, width)]
    assert max(map(len, lines)) <= longest
    rows = lines[-len(host.nodes) :]
    assert [int(line.split()[0]) for line in rows] == host.node_ids.tolist()
    if width == 160:
        assert tuple(map(int, rows[7].split()[1:])) == host.distances[7]
    else:
        legend = dict(zip(lines[1].split()[::2], map(int, lines[1].split()[1::2]), strict=True))
        body = rows[7].replace(" ", "")[1:]
        assert tuple(legend[symbol] for symbol in body) == host.distances[7]


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_draw_into_a_file(app: Any, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"picture.{kind}"
    result = CliRunner().invoke(app, ["machines", "show", "spr-8468v-cxl", "--out", str(out)])
    assert result.exit_code == 0
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG") if kind == "png" else b"no CPUs" in content
    assert list(tmp_path.iterdir()) == [out]


def test_show_other_sources(app: Any, tmp_path: Path, snapshots: dict[str, Path]) -> None:
    (tmp_path / "numactl.txt").write_text(NUMACTL)
    (tmp_path / "machine.xml").write_text(HWLOC)
    (tmp_path / "host.yaml").write_text(json.dumps(TWO))
    sources = [tmp_path / "numactl.txt", tmp_path / "machine.xml", tmp_path / "host.yaml"]
    for source in (*sources, snapshots["64amd64-4s2n4ca2co"]):
        result = CliRunner().invoke(app, ["machines", "show", str(source)])
        assert result.exit_code == 0, result.output
        assert "distances" in result.output


def test_bad_requests_exit_with_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for arguments in (["show", "nothing"], ["show", "gh200-x4", "--out", str(tmp_path / "x.bmp")]):
        monkeypatch.setattr("sys.argv", ["workbench", "machines", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["read_bandwidth", "write_bandwidth", "read_latency", "write_latency"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True])
def test_figures_of_memory_are_numbers_above_zero(field: str, value: float) -> None:
    entry = {"initiator": 0, "target": 0, field: value}
    host = {"name": "h", "nodes": [{"id": 0, "memory_bytes": 1 << 30, "cpus": "0"}], "distances": [[10]]}
    with pytest.raises(WorkbenchError, match=rf"^host\.access\.0\.{field}: "):
        Host.from_mapping(host | {"access": [entry]})


@pytest.mark.parametrize("field", ["channels", "mts"])
def test_a_truth_value_is_no_number_of_the_hardware(field: str) -> None:
    host = {"name": "h", "nodes": [{"id": 0, "memory_bytes": 1 << 30, "cpus": "0"}], "distances": [[10]]}
    with pytest.raises(WorkbenchError, match=rf"^host\.hardware\.{field}: must be a number, not true"):
        Host.from_mapping(host | {"hardware": {field: True}})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hardware": {"generation": "genoaa"}}, "hardware.generation: 'genoaa' is unknown; did you mean 'genoa'. there are neh"),
        ({"hardware": {"profile": "grac"}}, "hardware.profile: 'grac' is unknown; did you mean 'grace'. .*there are epyc-7742"),
        ({"access": [{"initiator": 0, "target": 0}]}, ": access: nodes 0 -> 0: needs read_bandwidth or write_bandwidth or"),
        ({"access": [{"initiator": False, "target": 0, "read_latency": 9}]}, "access.0.initiator: must be a number, not false"),
        ({"figures": {"latency": {"far": [200, 100]}}}, "figures.latency.far: 200 to 100 runs backwards"),
        ({"figures": {"latency": {"far": 0}}}, "figures.latency.far: must be a number above 0, or from and to, not 0"),
        ({"figures": {"latency": {"far": [1, float("nan")]}}}, "figures.latency.far: must be a number above 0, .* not nan"),
        ({"figures": {"bandwidth": {"all": True}}}, "figures.bandwidth.all: must be a number above 0, .* not True"),
        ({"figures": {"bandwidth": {"all": [1, 2, 3]}}}, "figures.bandwidth.all: must be a number, .* not 3 values"),
        ({"nodes": [{"id": False, "memory_bytes": 4096}]}, "nodes.0.id: must be a number, not false"),
        ({"nodes": [{"id": 0, "memory_bytes": 4096, "cpus": [True]}]}, "nodes.0.cpus.0: must be a number, not true"),
        ({"nodes": [{"id": 0, "memory_bytes": 4096, "weight": True}]}, "nodes.0.weight: must be a number, not true"),
        ({"nodes": [{"id": "0", "memory_bytes": 4096}]}, "nodes.0.id: must be a number, not the text '0'"),
        ({"nodes": [{"id": 1.0, "memory_bytes": 4096}]}, "nodes.0.id: must be a whole number, not 1.0"),
        ({"nodes": [{"id": 0, "memory_bytes": 4096, "movable": 1}]}, "nodes.0.movable: must be true or false, not 1"),
        ({"nodes": [{"id": 0, "memory_bytes": 4096, "movable": "no"}]}, "nodes.0.movable: must be true or false, not 'no'"),
        ({"nodes": [{"id": 0, "memory_bytes": 4096, "cpus": ["1"]}]}, "nodes.0.cpus.0: must be a number, not the text '1'"),
        ({"nodes": [{"id": 0, "memory_bytes": 4096, "assumed": ["kind", "kind"]}]}, "nodes.0.assumed: kind is there twice"),
        ({"assumed": ["cpus", "distances", "cpus"]}, "assumed: cpus is there twice"),
        ({"access": [{"initiator": 0, "target": 0, "read_latency": "9"}]}, "access.0.read_latency: must be a number, not the t"),
        ({"hardware": {"channels": 6.0}}, "hardware.channels: must be a whole number, not 6.0$"),
        ({"hardware": {"mts": "2666"}}, "hardware.mts: must be a number, not the text '2666'$"),
        ({"hugetlb_promised": {1 << 30: "1"}}, "hugetlb_promised.1073741824: must be a number, not the text '1'$"),
    ],
)  # fmt: skip
def test_what_a_host_says_of_itself_is_one_line_where_it_cannot_be(fields: dict[str, object], says: str) -> None:
    host = {"name": "h", "nodes": [{"id": 0, "memory_bytes": 1 << 30, "cpus": "0"}], "distances": [[10]]}
    with pytest.raises(WorkbenchError, match=f"^host.?{says}") as caught:
        Host.from_mapping(host | fields)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_keys_of_json_make_the_same_host() -> None:
    plain = {
        "name": "h",
        "nodes": [{"id": 0, "memory_bytes": 1 << 30, "cpus": [0], "movable": False}],
        "distances": [[10]],
    }
    made = Host.from_mapping(plain | {"hugetlb_promised": {1 << 30: 1}})
    node = {"id": np.int64(0), "memory_bytes": 1 << 30, "cpus": [np.int32(0)], "movable": np.bool_(False)}
    assert (
        Host.from_mapping(
            plain | {"nodes": [node], "distances": [[np.int64(10)]], "hugetlb_promised": {"1073741824": 1}}
        )
        == made
    )


def test_figures_of_a_machine_run_upwards() -> None:
    figures = {"latency": {"far": [100, 200], "near": 90.5}}
    host = {
        "name": "h",
        "nodes": [{"id": 0, "memory_bytes": 1 << 30, "cpus": "0"}],
        "distances": [[10]],
        "figures": figures,
    }
    made = Host.from_mapping(host)
    assert made.figures["latency"] == {"far": (100, 200), "near": 90.5}
    assert Host.from_mapping(made.model_dump(mode="json")) == made
