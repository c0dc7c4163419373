"""Loops that load the memory of the machine they run on: dependent reads, streams of reads and writes, independent reads.

They are timed from outside. Each touches one word of every 64-byte line, because memory moves lines; a stored line is
read first (read for ownership) and written back later, so it counts as one read and one write. What a loop read is part
of what it returns, so that no compiler leaves it out.
"""

from __future__ import annotations

import numpy as np

from workbench.kernels.compile import Int, kernel

WORDS = 8
"""64-bit words of a line."""


@kernel
def link_lines(order: np.ndarray, chain: np.ndarray) -> None:
    """Make ``chain`` one cycle through the lines in the given order: the first word of a line names the next line.

    Parameters
    ----------
    order : int64 (lines,), a permutation of the lines
    chain : int64 (lines * 8,), output
    """
    lines = order.shape[0]
    for place in range(lines):
        chain[order[place] * WORDS] = order[(place + 1) % lines] * WORDS


@kernel
def chase(chain: np.ndarray, start: Int, steps: Int) -> Int:
    """Follow the chain ``steps`` times from ``start``, each read needing the one before; returns where it ends."""
    place = np.int64(start)
    for _ in range(steps):
        place = chain[place]
    return place


@kernel
def stream(words: np.ndarray, first: Int, last: Int, stored: Int, pause: Int) -> Int:
    """Read lines ``first`` to ``last - 1`` in order, storing to the first ``stored`` of every 8.

    Parameters
    ----------
    words : int64 (lines * 8,)
    stored : 0 to 8; reads are 8 / (8 + stored) of the traffic
    pause : steps of dependent arithmetic after every 8 lines, to throttle
    """
    total = np.int64(0)
    spun = np.int64(first)
    line = first
    while line + 8 <= last:
        for offset in range(8):
            at = (line + offset) * WORDS
            if offset < stored:
                words[at] += 1
            else:
                total += words[at]
        for _ in range(pause):
            spun = spun * 5 + 1
        line += 8
    return total + (spun & 1)


@kernel
def gather(words: np.ndarray, seed: Int, steps: Int) -> Int:
    """Read ``steps`` lines at random places, none needing another (a linear congruence draws them)."""
    lines = words.shape[0] // WORDS
    total = np.int64(0)
    state = np.uint64(seed)
    for _ in range(steps):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        total += words[np.int64((state >> np.uint64(24)) % np.uint64(lines)) * WORDS]
    return total


@kernel
def touch(words: np.ndarray, step: Int) -> Int:
    """Store to every ``step``-th word, one of each page; returns how many."""
    count = 0
    for at in range(0, words.shape[0], step):
        words[at] = 1
        count += 1
    return count
