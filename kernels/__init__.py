"""Numba kernels of the guest_memfd NUMA workbench: arrays and integers in, arrays and integers out.

Nothing here knows xarray, pydantic, files or classes of ``workbench``. Each module models one part of
Linux and says in its docstring which file and function it follows. :mod:`workbench.kernels.compile` decides, for all
of them, how they are compiled and where compiled code is kept.
"""
