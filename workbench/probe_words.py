"""Words of the probe's scripts and recordings that both who writes and who reads them must know alike."""

from __future__ import annotations

ORDERS = {"sequential": "seq", "reverse": "rev", "random": "rand", "strided": "stride"}
"""Order in which a scenario's fault touches pages -> its word in a script."""
TOUCHES = {"host": "touch", "guest": "vtouch", "prefault": "prefault"}
"""Who touches in a scenario's fault -> the verb of a script (reads through the host mapping are ``rtouch``)."""
