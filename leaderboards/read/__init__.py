"""Readers that turn any store of runs into one DataFrame."""
