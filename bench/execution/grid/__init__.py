"""A grid of runs: what is left of it, and who carries it out."""
