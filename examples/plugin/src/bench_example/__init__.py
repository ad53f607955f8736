"""A method, a model, a data set and a suite for robust-distill-bench."""
