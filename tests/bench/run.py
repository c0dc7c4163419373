"""Run the benchmarks, each in a fresh process: ``python tests/bench/run.py [name ...]``.

Names are those of ``bench_NAME.py`` in this directory; none means all. What is printed is Markdown.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def processor() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def main(names: list[str]) -> int:
    """Run the named benchmarks; 1 when one of them failed."""
    known = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    print(f"{processor()}, {os.cpu_count()} CPUs, Python {platform.python_version()}", flush=True)
    path = os.pathsep.join([str(ROOT), str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    status = 0
    for name in names or known:
        print(f"\n## {name}", flush=True)
        result = subprocess.run([sys.executable, str(known[name])], env={**os.environ, "PYTHONPATH": path})
        if result.returncode:
            print(f"\n{name} ended with exit code {result.returncode}", flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
