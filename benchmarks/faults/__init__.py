"""Faults of a run directory, each done for real and counted."""
