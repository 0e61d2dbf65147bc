"""The cookbook: `recipes/<topic>/<pattern>.py`, one pattern a module."""
