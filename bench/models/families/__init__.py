"""One file a family of networks, collected by itself: bench/models/__init__.py says what it holds.

A file without `NAMES` is shared by families.
"""
