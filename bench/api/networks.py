"""Load trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.api.keywords import call_log

if TYPE_CHECKING:
    from methods.base import Net


def load(
    source: str | Path,
    store: str | Path = "runs",
    checkpoint: str = "best",
    arch: str = "",
    dataset: str = "",
    key: str = "",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Net:
    """Load a trained network in eval mode on the CPU: images in [0, 1] -> logits.

    Args:
        source: the id of a run, its first digits or its spec's id; a row as
            "digits/digits/resnet8-w8/rslad", of whose seeds validation chooses one; or the path of
            a .safetensors or .pt file, a str that ends so or any Path; or
            `hf:OWNER/NAME[@REVISION][:FILE]`, of a hub of models.
        store: the folder of the run's store.
        checkpoint: of the run: "best", "last", "ema" or "swa".
        arch: the network of a file that does not say it.
        dataset: of such a file too.
        key: which network of a file, where several fit.
        mean: per channel, for a file that holds none; without, it takes raw pixels.
        std: as mean.

    Returns: a module that maps (N, C, H, W) to (N, classes).

    Raises:
        bench.system.errors.BenchError: there is no such network, several, or a damaged file; the
            message is one line.
    """
    from attacks.isolation import default_state
    from bench.records import trained

    statistics = tuple(mean), tuple(std)
    with call_log("load", {"source": source}, verbose=False), default_state():
        return trained.load(source, Path(store), checkpoint, arch, dataset, key, *statistics)
