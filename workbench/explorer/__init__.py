"""The explorer: change topology, guest, policy and workload in a notebook and see at once where the pages land.

``controller`` holds the state and runs the engine, ``edits`` changes scenarios, ``pictures`` turns Datasets into plain
data for the views; the widgets on top of them are thin.
"""

from __future__ import annotations

from workbench.explorer.app import Explorer, explore

__all__ = ["Explorer", "explore"]
