"""Hyper-parameter search with Optuna, on validation data alone, the same budget for every method.

space: search spaces. study: samplers, pruners, counting. storage: databases, locks, retries.
trial: one training run. worker: processes. results: configuration, figures, MLflow. search: `tune`.
"""
