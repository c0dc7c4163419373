"""Is the model right: recordings of real kernels and published measurements."""
