"""Errors, files, signals, databases, progress and machine: what every subpackage needs."""
