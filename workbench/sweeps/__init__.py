"""Grids of scenarios on Dask, resumable."""
