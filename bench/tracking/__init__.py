"""The MLflow store, the run being written, and what MLflow shows of a run."""
