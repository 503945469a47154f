"""Verbs that train nothing."""
