"""Names of tags, metrics and checkpoints, and the record of a finished run."""
