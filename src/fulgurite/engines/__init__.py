"""Engines draw completions: one protocol, one set of contract tests for all of them."""
