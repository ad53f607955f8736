"""The training loop, and what makes its steps fast or spreads them over devices."""
