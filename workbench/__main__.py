"""``workbench`` and ``python -m workbench``: from the first moment on, Ctrl-C is one line and exit code 130.

Importing what a command needs takes a second, in which Python would answer with the place that it was importing. SIGTERM,
by which schedulers and ``timeout`` end what they started, is Ctrl-C: the files and directories that were being written go.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys


def _interrupted(*_: object) -> None:
    os.write(2, b"workbench: interrupted; nothing was written\n")
    os._exit(130)


def main() -> None:
    """Entry point: the command line, with Ctrl-C answered before, while and after it is imported."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, _interrupted)
    asked = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    from workbench.commands import cli

    try:
        if asked:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except SystemExit as end:
        if heard:  # what is left to do when a process ends has nothing to say
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        if asked:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(130))
        if end.code == 130:  # Python ends itself by the signal if it came inside an exec(), as dataclasses are made
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(130)
        raise


if __name__ == "__main__":
    main()
