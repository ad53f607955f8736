"""Hyper-parameter search with Optuna, on validation data alone, the same budget for every method.

space: what is searched. storage: where studies live, and who is alive. study: sampler, pruner, first trials, counting.
trial: one training run. workers: processes. outcome: best configuration, figures, MLflow. tune: the verb.
"""

import warnings

import optuna

# Heartbeats, retries, Hyperband and GPSampler are so marked; the versions that may be used are in pyproject.toml.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
