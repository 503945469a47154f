"""Methods side by side at the same budget."""
