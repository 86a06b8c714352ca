"""Probes, read out: the paper's Figures 1 to 4 with their statistics."""
