"""What ``workbench measure`` finds of this machine, against a plain C pointer chase and a plain C read, as ratios.

The loops are run in turn on the same buffers, so that a busy machine slows both; the whole ``measure`` is then compared
with the same C chase, which it must agree with within :data:`FACTOR`.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

import numpy as np

from bench.harness import NO_COMPILER, Variant, compile_c, duration, measure, pointer, print_table, verdict
from workbench.cost import measure as measuring
from workbench.kernels import measure as loops

SIZE = 256 << 20
STEPS = 1 << 20
LOOP_FACTOR = 1.15
"""Most that a loop of ours may take of C's time."""
FACTOR = 1.5
"""Most by which the latency that ``measure`` writes may differ from C's chase, to either side."""


def main() -> int:
    """Print both tables; 1 if a goal is missed."""
    port = compile_c((Path(__file__).parent / "measure_port.c").read_text())
    if port is None:
        print(NO_COMPILER)
        return 0
    for name in ("chase", "read_lines"):
        getattr(port, name).restype = ctypes.c_int64
    buffer = measuring.Buffer(SIZE)
    lines = measuring.chain_of(buffer)
    where = pointer(buffer.words)
    place = np.zeros(2, np.int64)

    def ours() -> None:
        place[0] = loops.chase(buffer.words, int(place[0]), STEPS)

    def theirs() -> None:
        place[1] = port.chase(where, ctypes.c_int64(int(place[1])), ctypes.c_int64(STEPS))

    times = measure(
        {
            "chase": Variant(ours), "chase in C": Variant(theirs),
            "read": Variant(lambda: loops.stream(buffer.words, 0, lines, 0, 0)),
            "read in C": Variant(lambda: port.read_lines(where, ctypes.c_int64(lines))),
        },
        repetitions=5,
    )  # fmt: skip
    rows, missed = [], False
    for name in ("chase", "read"):
        ratio = times.ratio(name, f"{name} in C")
        missed |= ratio > LOOP_FACTOR
        each = times[name] / (STEPS if name == "chase" else lines)
        rows.append((name, duration(each), f"{ratio:.2f}", f"{LOOP_FACTOR}", verdict(ratio, LOOP_FACTOR)))
    print_table("Loops against C, per line", ("loop", "ours", "times C", "goal", ""), rows)

    made = measuring.measure(budget=20.0, buffer_bytes=SIZE)
    begin = time.thread_time_ns()
    theirs()
    in_c = (time.thread_time_ns() - begin) / STEPS
    ratio = made.memories[0].idle_latency / in_c
    missed |= not 1 / FACTOR <= ratio <= FACTOR
    row = (f"{made.memories[0].idle_latency:.1f} ns", f"{in_c:.1f} ns", f"{ratio:.2f}", f"1/{FACTOR} to {FACTOR}",
           verdict(max(ratio, 1 / ratio), FACTOR))  # fmt: skip
    print_table(
        "Idle latency that `measure` writes, against the chase in C", ("measure", "C", "ratio", "goal", ""), [row]
    )
    for text in made.not_measured:
        print(f"not measured: {text}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
