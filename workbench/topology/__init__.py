"""Hosts: nodes, zones and distances, and the readers of what machines say about themselves."""
