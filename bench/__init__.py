"""The application: command line, protocols, data, networks, training, tracking, execution."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from methods.base import Net

__version__ = "0.2.0.dev0"


def load(
    source: str | Path,
    store: str | Path = "runs",
    checkpoint: str = "best",
    arch: str = "",
    dataset: str = "",
) -> Net:
    """Load a trained network in eval mode on the CPU: images in [0, 1] -> logits.

    Args:
        source: the id of a run, its first digits or its spec's id; a row as
            "digits/digits/resnet8-w8/rslad", of whose seeds validation chooses one; or the path of
            a .safetensors or .pt file, a str that ends so or any Path; or
            `hf:OWNER/NAME[@REVISION][:FILE]`, of a hub of models.
        store: the folder of the run's store.
        checkpoint: of the run: "best", "last", "ema" or "swa".
        arch: the network of a .pt file, which does not say it.
        dataset: of a .pt file too.

    Returns: a module that maps (N, C, H, W) to (N, classes).

    Raises:
        bench.system.errors.BenchError: there is no such network, several, or a damaged file; the
            message is one line.
    """
    # Most users of this package's constants need no torch.
    trained = import_module("bench.records.trained")
    net: Net = trained.load(source, Path(store), checkpoint, arch, dataset)
    return net
