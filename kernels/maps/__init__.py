"""Structures that map a file's offsets to pfns."""
