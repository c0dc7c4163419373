"""What each form of the conversion series does where forms differ, in one place, with the evidence for it.

Engine and tracked files look rules up here; a kernel profile names one of these. Evidence: ``recorded`` on a running kernel
(``datasets/recordings/conversion``), ``source`` read in the posted patches, ``mail`` said on the list.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from workbench.errors import WorkbenchError

RECORDED, SOURCE, MAIL = "recorded", "source", "mail"


@dataclass(frozen=True)
class Generation:
    """Rules of one form of the series.

    Attributes
    ----------
    name : what scenarios call it
    kernel : "B" or "C", the conversion path of :mod:`workbench.kernels.folios.run`: all or nothing, or block by block
    split : "one-step", or a what-if that no form has
    hugetlb : huge pages from the hugetlb pools back files, reserved when the file is created
    file_policy : the policy of the file decides where a huge page comes from; False: the task's alone
    fallocate_rounds_down : a range of fallocate is cut to whole huge pages at both ends; False: EINVAL unless aligned
    shared_huge_files : a file of huge pages may start shared (INIT_SHARED); False: EINVAL
    host_fault_retries : a host touch for which the policy's nodes have no huge page is retried for ever; False: SIGBUS
    xarray : memory for page-cache nodes when 1 GiB splits: "slabs", taken before the vmemmap; "two levels", never enough
    evidence : rule -> (kind, where)
    """

    name: str
    kernel: str
    split: str = "one-step"
    hugetlb: bool = True
    file_policy: bool = True
    fallocate_rounds_down: bool = False
    shared_huge_files: bool = False
    host_fault_retries: bool = True
    xarray: str = "slabs"
    evidence: dict[str, tuple[str, str]] = field(default_factory=dict, compare=False)


_C = Generation(
    "C",
    "C",
    evidence={
        "kernel": (
            RECORDED,
            "2m/B08-pin, pins-spill-files/F08: earlier blocks stay converted; punch checks the whole range",
        ),
        "hugetlb": (RECORDED, "2m/B16-reservations: ENOMEM at create"),
        "file_policy": (RECORDED, "numa-two-nodes/D08: looked up at the 4 KiB index that is touched"),
        "fallocate_rounds_down": (RECORDED, "1g/C07-errors: EINVAL"),
        "shared_huge_files": (RECORDED, "4k-arguments-pins-guest/A01: HUGETLB with INIT_SHARED is EINVAL"),
        "host_fault_retries": (RECORDED, "numa-two-nodes/D16: SIGALRM after 3 s"),
        "xarray": (RECORDED, "1g/C01: 4,161 nodes, 149 slabs"),
        "content": (RECORDED, "content-prefault-stage2/K02: a merged page is up to date as its first 4 KiB was"),
    },
)
GENERATIONS: dict[str, Generation] = {
    "C": _C,
    "C-stock-xarray": replace(
        _C, name="C-stock-xarray", xarray="two levels",
        evidence={**_C.evidence, "xarray": (RECORDED, "stock-xarray/S01: ENOMEM, lib/xarray.c of 7.3")},
    ),
    "B": Generation(
        "B",
        "B",
        file_policy=False,
        fallocate_rounds_down=True,
        shared_huge_files=True,
        evidence={
            "kernel": (RECORDED, "generation-b/G01: all or nothing; G04: punch frees the blocks before a pinned one"),
            "hugetlb": (RECORDED, "generation-b-2m/B16-reservations"),
            "file_policy": (RECORDED, "generation-b/G07: mbind succeeds and has no effect"),
            "fallocate_rounds_down": (RECORDED, "generation-b/G02"),
            "shared_huge_files": (SOURCE, "RFC v2 of May 2025, KVM_CREATE_GUEST_MEMFD"),
            "host_fault_retries": (SOURCE, "split and fault functions of C"),
            "xarray": (RECORDED, "generation-b-1g/C01: 4,161 nodes"),
            "content": (RECORDED, "generation-b-2m/B08-pin, random-generation-b: as in C, whose merge it was recorded on"),
        },
    ),
    "two-stage": replace(
        _C, name="two-stage", split="two-stage", xarray="not counted",
        evidence={**_C.evidence, "split": (MAIL, "LPC 2025, Folio restructuring; in no tree")},
    ),
}  # fmt: skip


def generation(name: str) -> Generation:
    """The rules of a form of the series by name."""
    if name not in GENERATIONS:
        raise WorkbenchError(f"generation: {name!r} is not one of {', '.join(GENERATIONS)}")
    return GENERATIONS[name]
