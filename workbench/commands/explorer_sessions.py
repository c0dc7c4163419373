"""How many tabs of the explorer may be open at once: each has a kernel of its own, which takes some 300 MB."""

from __future__ import annotations

from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError

MOST_SESSIONS = 8


class Sessions(AsyncMappingKernelManager):
    """Kernels of one explorer; one tab more than :data:`MOST_SESSIONS` is told so, and the others go on."""

    starting = 0

    async def start_kernel(self, **options: Any) -> str:  # type: ignore[override, unused-ignore]
        """Start a kernel for a tab. Raises HTTPError 503 when there are as many as may be."""
        if len(self) + self.starting >= MOST_SESSIONS:
            raise HTTPError(
                503,
                reason=f"{MOST_SESSIONS} explorers are open, as many as may be: close a tab and wait until it has ended",
            )
        self.starting += 1  # two tabs that open at once
        try:
            return str(await super().start_kernel(**options))
        finally:
            self.starting -= 1
