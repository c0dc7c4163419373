"""Huge folios of one file under conversion: split, merge, pins, memory failure."""
