"""Trained flows: loading, sampling, densities."""
