"""Losses: pure functions from log-probabilities to a sum over kept tokens; the caller divides by the denominator."""
