"""The server of the explorer, a process of its own: quiet when it is interrupted, whatever it is at."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Serve with Voila. Its token is in the environment: it takes it as an argument, which the process list shows to all."""
    # Until it serves nothing needs to be ended in order, and Python would answer with the place that it was at.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from voila.app import Voila

    class Served(Voila):  # type: ignore[misc]
        def listen(self) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            super().listen()

    Served.launch_instance([*sys.argv[1:], "--token=" + os.environ.pop("WORKBENCH_TOKEN")])


if __name__ == "__main__":
    main()
