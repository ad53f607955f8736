"""Hyper-parameter search with Optuna, on validation data alone, the same budget for every method.

space: what is searched. storage: where studies live, and who is alive. study: sampler, pruner, first trials, counting.
trial: one training run. workers: processes. outcome: best configuration, figures, MLflow. tune: the verb.
"""
