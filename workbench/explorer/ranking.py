"""Which policy is best for this guest on this host: every policy simulated, its cost modelled over the parameters' ranges."""

from __future__ import annotations

import html
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd

SAMPLES = 40
"""Draws over the ranges of the cost parameters."""


def rank(scenario: Scenario, pattern: str, *, partitioned: bool) -> xr.Dataset:
    """Costs of all policies (:func:`workbench.studies.placement_cost.policy_costs`) for the guest of a scenario.

    pattern : of the accesses; partitioned : each vCPU node uses its own part of the memory. Raises WorkbenchError.
    """
    from workbench.studies import placement_cost

    host, guest = scenario.host, scenario.guest
    nodes = Counter(
        host.node_of_cpu(vcpu.cpu) if vcpu.cpu is not None else vcpu.node if vcpu.node is not None else host.nodes[0].id
        for vcpu in guest.vcpus
    )
    if not nodes:
        raise WorkbenchError("ranking: the guest has no vCPUs, so no policy is better than another")
    return placement_cost.policy_costs(
        host,
        memory=guest.memory,
        vcpus=dict(sorted(nodes.items())),
        access=pattern,
        partitioned=partitioned,
        samples=SAMPLES,
        page_size=guest.page_size,
        confidential="none" if guest.vm_type == "sw_protected" else guest.vm_type,
    )


def frame(found: xr.Dataset) -> pd.DataFrame:
    """The ranking, best first: place (shared by policies that place the guest the same way), draws, share of the draws
    in which the policy is best, and local share."""
    import pandas as pd

    from workbench.studies import placement_cost

    latency = found.attrs["pattern"] == "pointer_chasing"
    values = found["latency"] if latency else found["bandwidth"] / 1000
    unit = "ns, less is better" if latency else "GB/s of all vCPUs"
    draws = values.transpose("policy", "sample").values[:, 1:]
    verdict = placement_cost.verdict(found)
    names = found["policy"].values.astype(str)
    made = pd.DataFrame(
        {
            f"median ({unit})": np.median(draws, axis=1),
            "5 % of draws": np.percentile(draws, 5, axis=1),
            "95 % of draws": np.percentile(draws, 95, axis=1),
            "best in (share of draws)": [float(verdict["wins"].sel(policy=name)) for name in names],
            "local share": [float(found["local_share"].sel(policy=name)) for name in names],
        },
        index=pd.Index(names, name="policy"),
    )
    median = made.iloc[:, 0].to_numpy()
    made = made.iloc[np.argsort(median if latency else -median, kind="stable")]
    places: dict[str, int] = {}
    alike = [str(verdict["alike"].sel(policy=name).item()) for name in made.index]
    made.insert(0, "place", [places.setdefault(group, row + 1) for row, group in enumerate(alike)])
    return made


def table(found: xr.Dataset, scenario: Scenario) -> str:
    """The ranking as an HTML table with the sentence that sums it up."""
    from workbench.studies import placement_cost

    ranked = frame(found)
    most = float(ranked["95 % of draws"].max()) or 1.0
    rows: list[str] = []
    for name, (place, median, low, high, wins, local) in zip(ranked.index, ranked.to_numpy().tolist(), strict=True):
        bar = (
            f'<span class="wb-range" aria-hidden="true"><i style="left:{100 * low / most:.1f}%;'
            f'width:{100 * (high - low) / most:.1f}%"></i><b style="left:{100 * median / most:.1f}%"></b></span>'
        )
        cells = (f"{median:.3g}", f"{low:.3g} to {high:.3g}", bar, f"{100 * wins:.0f} %", f"{100 * local:.0f} %")
        rows.append(
            f'<tr><th scope="row">{place:.0f}. {html.escape(name)}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    heads = ("policy", ranked.columns[1], "5 to 95 % of draws", "range", "best in", "local")
    source = html.escape(str(found["bandwidth"].attrs.get("source", "")))
    notes = [
        f"{placement_cost.sentence(placement_cost.verdict(found))}.",
        f"Modelled, {SAMPLES - 1} draws over the ranges of the cost parameters ({source}).",
        "Policies that place the guest the same way share their place.",
    ]
    if not scenario.host.access:
        notes.append(
            "This machine's firmware tells no bandwidths (HMAT): “weighted, automatic” is hypothetical, what the kernel "
            "would choose had it told those of the model; the kernel itself weighs all nodes alike."
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<p role="status"><b>{html.escape(notes[0])}</b></p><div class="wb-ranking-in">'
        f'<table class="wb-table wb-numbers wb-ranking"><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="wb-aid">{" ".join(notes[1:])}</p>'
    )
