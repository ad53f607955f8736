"""The chain of a run: plan, cost, job, evaluation."""
