"""Measurements: pure statistics and the paper's evaluations."""
