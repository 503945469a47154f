"""Language models as the rest of the house sees them: loaded, scored, sharded and saved in one place."""
