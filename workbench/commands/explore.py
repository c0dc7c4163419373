"""The command ``explore``: the explorer in a browser tab, served on this computer only."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from workbench import children
from workbench.data import root
from workbench.errors import WorkbenchError

IDLE_SECONDS = 600
"""A kernel whose tab is gone ends when it has been idle so long."""
_TCP_LISTEN = "0A"


def explore(
    scenario: Annotated[
        str | None, typer.Argument(help="scenario file (YAML) or a name in datasets/scenarios to start with")
    ] = None,
    port: Annotated[int, typer.Option(help="port on 127.0.0.1; 0 takes a free one")] = 0,
    browser: Annotated[bool, typer.Option(help="open a browser tab")] = True,
    dark: Annotated[bool, typer.Option(help="dark colours")] = False,
) -> None:
    """Serve the explorer in a browser tab until Ctrl-C: on 127.0.0.1, with a token in the address. Eight tabs at most."""
    if importlib.util.find_spec("voila") is None:
        raise WorkbenchError("explore: the package voila is not installed")
    text = None
    if scenario is not None:
        from workbench.commands.cli import read_scenario

        text = read_scenario(scenario, []).to_yaml()
    token = secrets.token_urlsafe(24)
    port = _port_to_use(port)
    with tempfile.TemporaryDirectory(prefix="workbench-explore-") as directory:
        notebook = write_notebook(Path(directory), text)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            code = _serve(voila_command(notebook, port, browser=browser, dark=dark), token, port)
        except KeyboardInterrupt:
            return
        finally:
            signal.signal(signal.SIGTERM, before)
    if code:
        raise WorkbenchError(f"explore: the server ended with code {code}; is port {port} free?")


def _port_to_use(port: int) -> int:
    """A port of ours: the one asked for, if nobody has it, or a free one. Raises WorkbenchError."""
    if not 0 <= port < 1 << 16:
        raise WorkbenchError(f"--port: {port} is not a port; ports are 1 to 65535, and 0 takes a free one")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen(1)
        except OSError as error:
            raise WorkbenchError(f"--port: {port} cannot be had: {error.strerror}") from None
        return int(sock.getsockname()[1])


def _listens(pid: int, port: int) -> bool:
    """Whether this process, and no stranger, listens on 127.0.0.1:port (/proc/net/tcp and its descriptors)."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    sockets = {
        f"socket:[{words[9]}]"
        for words in map(str.split, lines)
        if words[1] == f"0100007F:{port:04X}" and words[3] == _TCP_LISTEN
    }
    try:
        return any(os.readlink(entry) in sockets for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it ended, or closed a descriptor meanwhile
        return False


def _serve(command: list[str], token: str, port: int) -> int:
    """Run the server until it ends, and return its code, or until Ctrl-C, which ends it; so does the end of its parent."""
    with children.interrupts_wait() as waiting:
        process = subprocess.Popen(command, env=environment(token), preexec_fn=children.tied(signal.SIGINT))
        try:
            while process.poll() is None and not waiting.arrived and not _listens(process.pid, port):
                time.sleep(0.1)
            if process.returncode is None and not waiting.arrived:
                typer.echo(f"explorer: http://127.0.0.1:{port}/?token={token}")
                typer.echo("Ctrl-C ends it")
            while process.poll() is None and not waiting.arrived:
                time.sleep(0.2)
        finally:
            _end(process)
    return process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, which also ends the kernels; after a while without asking."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_notebook(directory: Path, scenario: str | None) -> Path:
    """The notebook that the app shows: one cell."""
    start = "None"
    if scenario is not None:
        path = directory / "scenario.yaml"
        path.write_text(scenario)
        start = repr(str(path))
    source = f"import os\nos.chdir({os.getcwd()!r})\nfrom workbench.explorer import explore\nexplore({start})"
    cell: dict[str, object] = {
        "cell_type": "code",
        "execution_count": None,
        "id": "app",
        "metadata": {},
        "outputs": [],
        "source": source,
    }
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    target = directory / "explorer.ipynb"
    target.write_text(json.dumps(notebook))
    return target


def voila_command(notebook: Path, port: int, *, browser: bool = False, dark: bool = False) -> list[str]:
    """Voila on 127.0.0.1 with the token of its environment; nobody without the address gets in.

    Kernels of tabs that are gone end after :data:`IDLE_SECONDS`; of them there are
    :data:`workbench.commands.explorer_sessions.MOST_SESSIONS` at most.
    """
    return [
        *(sys.executable, "-m", "workbench.commands.explorer_server", str(notebook)),
        *("--Voila.ip=127.0.0.1", f"--port={port}", "--Voila.port_retries=0"),
        *("--template=explorer", "--show_tracebacks=True", "--Voila.log_level=WARN"),
        "--VoilaConfiguration.multi_kernel_manager_class=workbench.commands.explorer_sessions.Sessions",
        *(f"--MappingKernelManager.cull_idle_timeout={IDLE_SECONDS}", "--MappingKernelManager.cull_interval=30"),
        *([] if browser else ["--no-browser"]),
        *(["--theme=dark"] if dark else ["--theme=light"]),
    ]


def environment(token: str) -> dict[str, str]:
    """Our Voila template is found by way of JUPYTER_PATH; the token stands here, where other users do not see it."""
    ours = str(root("explorer") / "jupyter")
    return os.environ | {
        "WORKBENCH_TOKEN": token,
        "JUPYTER_PATH": os.pathsep.join(filter(None, [ours, os.environ.get("JUPYTER_PATH")])),
    }


def register(app: typer.Typer) -> None:
    """Add the command of this module to the application."""
    app.command()(explore)
