"""The chain of a run: plan, cost, grid, executors, job."""
