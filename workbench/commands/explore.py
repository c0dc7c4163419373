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
from pathlib import Path
from typing import Annotated

import typer

from workbench.data import root
from workbench.errors import WorkbenchError


def explore(
    scenario: Annotated[
        str | None, typer.Argument(help="scenario file (YAML) or a name in datasets/scenarios to start with")
    ] = None,
    port: Annotated[int, typer.Option(help="port on 127.0.0.1; 0 takes a free one")] = 0,
    browser: Annotated[bool, typer.Option(help="open a browser tab")] = True,
    dark: Annotated[bool, typer.Option(help="dark colours")] = False,
) -> None:
    """Serve the explorer in a browser tab until Ctrl-C: on 127.0.0.1, with a token in the address."""
    if importlib.util.find_spec("voila") is None:
        raise WorkbenchError("explore: the package voila is not installed")
    text = None
    if scenario is not None:
        from workbench.commands.cli import read_scenario

        text = read_scenario(scenario, []).to_yaml()
    token = secrets.token_urlsafe(24)
    port = port or _free_port()
    with tempfile.TemporaryDirectory(prefix="workbench-explore-") as directory:
        notebook = write_notebook(Path(directory), text)
        command = voila_command(notebook, port, token, browser=browser, dark=dark)
        typer.echo(f"explorer: http://127.0.0.1:{port}/?token={token}")
        typer.echo("Ctrl-C ends it")
        process = subprocess.Popen(command, env=environment())
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait(15)
            return
    if code:
        raise WorkbenchError(f"explore: the server ended with code {code}; is port {port} free?")


def write_notebook(directory: Path, scenario: str | None) -> Path:
    """The notebook that the app shows: one cell."""
    start = "None"
    if scenario is not None:
        path = directory / "scenario.yaml"
        path.write_text(scenario)
        start = repr(str(path))
    source = f"import os\nos.chdir({os.getcwd()!r})\nfrom workbench.explorer import explore\nexplore({start})"
    cell = {"cell_type": "code", "execution_count": None, "id": "app", "metadata": {}, "outputs": [], "source": source}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    target = directory / "explorer.ipynb"
    target.write_text(json.dumps(notebook))
    return target


def voila_command(notebook: Path, port: int, token: str, *, browser: bool = False, dark: bool = False) -> list[str]:
    """Voila on 127.0.0.1 with a token; nobody without the address gets in."""
    return [
        *(sys.executable, "-m", "voila", str(notebook), "--Voila.ip=127.0.0.1", f"--port={port}", "--port_retries=0"),
        *(f"--token={token}", "--template=explorer", "--show_tracebacks=True", "--Voila.log_level=WARN"),
        *([] if browser else ["--no-browser"]),
        *(["--theme=dark"] if dark else ["--theme=light"]),
    ]


def environment() -> dict[str, str]:
    """Our Voila template is found by way of JUPYTER_PATH."""
    ours = str(root("explorer") / "jupyter")
    return os.environ | {"JUPYTER_PATH": os.pathsep.join(filter(None, [ours, os.environ.get("JUPYTER_PATH")]))}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def register(app: typer.Typer) -> None:
    """Add the command of this module to the application."""
    app.command()(explore)
