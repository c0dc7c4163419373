"""Notebooks in batch, and the offline pages that are made of them."""
