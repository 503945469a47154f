"""The rounds of a run as a page that opens without network."""
