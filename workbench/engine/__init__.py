"""The simulated kernel: system calls on state made of arrays."""
