"""Bytes of a run by file, event, kind and node, whatever the size of its folios.

``run`` is a Dataset of a simulation or the :class:`workbench.answer.Answer` behind it: both give their variables by name.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Protocol

import numpy as np

from workbench.units import PAGE_SIZE

MODELLED_KINDS = ("pamt", "state_tree", "light_map")
"""Kinds of metadata of no released kernel, or whose place is not known; the others are counted by the kernel's rules."""


class HasVariables(Container[str], Protocol):
    """Variables by name."""

    def __getitem__(self, name: str, /) -> Any: ...


def bytes_per_node(run: HasVariables) -> np.ndarray:
    """Bytes of each file on each node, int64 (file, node)."""
    amount: np.ndarray = np.asarray(run["pages_per_node"]) * np.asarray(run["file_page_size"])[:, None]
    return amount + PAGE_SIZE * np.asarray(run["small_pages_per_node"]) if "small_pages_per_node" in run else amount


def one_name_each(run: HasVariables) -> np.ndarray:
    """Whether a name is the first of its file, bool (file,) or (design, file): what several share is once in a sum."""
    names = np.asarray(run["file_page_size"]).shape[-1]
    first: np.ndarray = np.asarray(run["file_inode"]) if "file_inode" in run else np.arange(names)
    return first == np.arange(names)


def bytes_of_all_files(run: HasVariables) -> np.ndarray:
    """Bytes of all files on each node, int64 (node,); a file of several names is one."""
    amount: np.ndarray = bytes_per_node(run)[one_name_each(run)].sum(axis=0)
    return amount


def size_of_all_files(run: HasVariables) -> np.ndarray:
    """Bytes of all files, allocated or not, int64 () or (design,); a file of several names is one."""
    sizes: np.ndarray = np.asarray(run["file_page_size"]) * np.asarray(run["file_pages"])
    amount: np.ndarray = np.sum(sizes, axis=-1, where=one_name_each(run))
    return amount


def placed_bytes(run: HasVariables) -> np.ndarray:
    """Bytes newly placed by each event on each node, int64 (event, node)."""
    amount: np.ndarray = np.asarray(run["event_pages"]) * int(run["page_size"])
    return amount + PAGE_SIZE * np.asarray(run["event_small_pages"]) if "event_small_pages" in run else amount


def metadata_bytes(run: HasVariables) -> np.ndarray:
    """Bytes of the metadata of each kind on each node after the last event, int64 (kind, node); no kind if not counted."""
    pages = np.asarray(run["metadata_pages"]) if "metadata_pages" in run else np.zeros((0, 0, 0), np.int64)
    amount: np.ndarray = (
        pages[-1] * PAGE_SIZE if len(pages) else np.zeros((0, len(np.asarray(run["node_kind"]))), np.int64)
    )
    return amount


def metadata_of_nodes(run: HasVariables) -> np.ndarray:
    """Bytes of all metadata on each node after the last event, int64 (node,)."""
    amount: np.ndarray = metadata_bytes(run).sum(axis=0)
    return amount


def modelled_metadata(run: HasVariables) -> int:
    """Bytes of metadata after the last event of the kinds that are modelled."""
    kinds = np.asarray(run["kind"]) if "metadata_pages" in run else np.zeros(0, str)
    return int(metadata_bytes(run)[np.isin(kinds, MODELLED_KINDS)].sum())


def free_bytes(run: HasVariables) -> np.ndarray:
    """Free bytes of each node after each event, int64 (event, node)."""
    owner = np.asarray(run["zone_node"])[:, None] == np.asarray(run["node"])
    amount: np.ndarray = (np.asarray(run["free_pages"]) * np.asarray(run["zone_page_size"])) @ owner.astype(np.int64)
    return amount
