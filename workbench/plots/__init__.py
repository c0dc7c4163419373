"""Figures from Datasets. Plots draw; they compute nothing."""
