"""Measures of a run."""
