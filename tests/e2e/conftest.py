"""One browser and one app of the explorer for all tests here: each takes longer to start than most tests last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from e2e import servers


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with servers.chromium() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``workbench explore``, with its token."""
    with servers.explorer_app(tmp_path_factory.mktemp("explorer")) as found:
        yield found
