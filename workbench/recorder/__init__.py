"""Runs scenarios on a real Linux kernel in QEMU and writes down what it did.

``record.py`` is the entry; ``qemu.py`` turns a Host into an emulated machine, ``initramfs.py`` packs the probe
(``probe.c``, PID 1 there) with the script, ``probe_output.py`` reads what it printed, ``translate.py`` turns a Scenario
into a script, ``scenario_generator.py`` makes families of scripts and ``coverage.py`` says what recordings exercise.
"""
