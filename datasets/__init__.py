"""Machines, scenarios, recordings and published measurements, each with its source: data, imported as resources."""
