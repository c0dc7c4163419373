"""The explorer's own browser widgets: thin traits; what they draw is in the JavaScript file of the same name."""

from __future__ import annotations

from pathlib import Path

import anywidget
import ipywidgets
import traitlets

from workbench.bitmap_lists import is_whole
from workbench.limits import MAX_NUMNODES

_HERE = Path(__file__).parent
STYLE = (_HERE / "explorer.css").read_text()
GESTURE = ("serial", "index", "start", "end")
"""What a drag says: a number of its own, which range (-1: a new one), and its new bounds in bytes."""


class AddressSpace(anywidget.AnyWidget):
    """Canvas of the guest's address space with zoom; policy ranges above it can be dragged."""

    _esm = _HERE / "address_space.js"
    frame = traitlets.Dict().tag(sync=True)
    shares = traitlets.Bytes(b"").tag(sync=True)
    shares_a = traitlets.Bytes(b"").tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)
    viewport = traitlets.List(traitlets.Float()).tag(sync=True)
    gesture = traitlets.Dict(per_key_traits=dict.fromkeys(GESTURE, traitlets.Int()), default_value={"serial": 0}).tag(
        sync=True
    )


class Chart(anywidget.AnyWidget):
    """One of the SVG pictures of charts.js: host, bars, vcpus, time; of its own data, or of those of another picture."""

    _esm = _HERE / "charts.js"
    kind = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(220).tag(sync=True)
    data = traitlets.Dict().tag(sync=True)
    source = traitlets.Instance(ipywidgets.Widget, allow_none=True).tag(sync=True, **ipywidgets.widget_serialization)


class TimeSlider(anywidget.AnyWidget):
    """After which operation the views stand, counted from 0; ``max`` is the last one.

    The slider of ipywidgets keeps the end it was made with for the key End, so one that is shown before the first
    result never leaves its first operation.
    """

    _esm = _HERE / "time_slider.js"
    value = traitlets.Int(0).tag(sync=True)
    max = traitlets.Int(0).tag(sync=True)


class NodePicker(anywidget.AnyWidget):
    """Nodes as toggles; with ``weighted`` also a slider for the weight of each chosen one."""

    _esm = _HERE / "node_picker.js"
    label = traitlets.Unicode("nodes").tag(sync=True)
    nodes = traitlets.List(traitlets.Dict()).tag(sync=True)
    selected = traitlets.List(traitlets.Int()).tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)
    weighted = traitlets.Bool(False).tag(sync=True)
    weights = traitlets.Dict(key_trait=traitlets.Unicode(), value_trait=traitlets.Int()).tag(sync=True)
    largest = traitlets.Int(32).tag(sync=True)

    @traitlets.validate("selected")
    def _of_nodes(self, proposal: traitlets.Bunch) -> list[int]:
        selected: list[int] = proposal.value
        if not all(0 <= node < MAX_NUMNODES for node in selected):
            raise traitlets.TraitError("selected: not numbers of nodes")
        return selected

    @traitlets.validate("weights")
    def _by_node(self, proposal: traitlets.Bunch) -> dict[str, int]:
        if not all(is_whole(node) for node in proposal.value):
            raise traitlets.TraitError("weights: keys are numbers of nodes")
        weights: dict[str, int] = proposal.value
        return weights


class Matrix(anywidget.AnyWidget):
    """Distances as an editable grid with heat colours."""

    _esm = _HERE / "matrix.js"
    ids = traitlets.List(traitlets.Int()).tag(sync=True)
    values = traitlets.List(traitlets.List()).tag(sync=True)
    symmetric = traitlets.Bool(True).tag(sync=True)


class Share(anywidget.AnyWidget):
    """A text to copy and files to download; Python answers the message ``{"download": name}`` with the bytes."""

    _esm = _HERE / "share.js"
    text = traitlets.Unicode().tag(sync=True)
    plain = traitlets.Bool(False, help="only buttons, no text").tag(sync=True)
    downloads = traitlets.List(traitlets.Dict()).tag(sync=True)
