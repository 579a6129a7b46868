"""Synthetic data sets: rendered scenes in the layouts of the real ones."""
