"""DataModules: who samples what, and in which order."""
