"""Settings that every test shares."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A shell that runs the tests in the background makes them ignore Ctrl-C, and programs that they start inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The first call of a kernel compiles it, so a deadline per example would fail by chance.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("local", **_COMMON)
# In CI the same examples every time: a red run must mean that the change is at fault.
settings.register_profile("ci", derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "local"))
