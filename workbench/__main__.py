"""``workbench`` and ``python -m workbench``: from the first moment on, Ctrl-C is one line and exit code 130.

Importing what a command needs takes a second, in which Python would answer with the place that it was importing. SIGTERM,
by which schedulers and ``timeout`` end what they started, and SIGHUP, by which a closed terminal does, are Ctrl-C: the files
and directories that were being written go.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys

ASKED = (signal.SIGTERM, signal.SIGHUP)


def _interrupted(*_: object) -> None:
    with contextlib.suppress(OSError):  # of a terminal that was closed
        os.write(2, b"workbench: interrupted; nothing was written\n")
    os._exit(130)


def _open_what_is_closed() -> None:
    """Who starts us with ``<&-`` or ``>&-`` gives nothing and wants nothing; the next file would get that number."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def main() -> None:
    """Entry point: the command line, with Ctrl-C answered before, while and after it is imported.

    A signal that whoever starts us has us ignore (``nohup``, a shell's background) stays ignored.
    """
    _open_what_is_closed()
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, _interrupted)
    asked = [number for number in ASKED if signal.getsignal(number) is signal.SIG_DFL]
    for number in asked:
        signal.signal(number, _interrupted)
    from workbench.commands import cli, interrupts

    answered = [*asked, *([signal.SIGINT] if heard else [])]
    sys.unraisablehook = interrupts.swallowed
    try:
        for number in answered:
            signal.signal(number, interrupts.heard)
        cli.main()
    except SystemExit as end:
        for number in answered:  # what is left to do when a process ends has nothing to say
            signal.signal(number, lambda *_: os._exit(130))
        if end.code == 130:  # Python ends itself by the signal if it came inside an exec(), as dataclasses are made
            atexit._run_exitfuncs()
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(130)
        raise


if __name__ == "__main__":
    main()
