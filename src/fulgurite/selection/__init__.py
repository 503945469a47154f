"""Selection: pure functions that say which rows are trained on."""
