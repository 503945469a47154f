"""Fulgurite: reinforcement learning with verifiable rewards on Lightning. Importing it loads nothing heavy."""

__version__ = "0.1.0"
