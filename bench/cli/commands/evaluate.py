"""Attack any checkpoint file."""

from __future__ import annotations

from bench.api.evaluation import EvaluateOptions, attack_checkpoint
from bench.cli.output import print_json
from bench.cli.parsing import Command


def evaluate(options: EvaluateOptions) -> None:
    """Attack a checkpoint and print a line for each attack."""
    evaluation = attack_checkpoint(options)
    if options.json:
        print_json(evaluation.to_document())
    else:
        print(evaluation)


COMMAND = Command(EvaluateOptions, evaluate)
