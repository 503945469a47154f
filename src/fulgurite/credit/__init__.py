"""Credit: pure functions from rewards and columns to coefficients, one per row and stream."""
