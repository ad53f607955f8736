"""The network of a registered version, as `mlflow.pytorch.load_model` reads it."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.models.formats import export_program
from bench.tracking.run_logger import RunLogger
from methods.base import Net

# Of the artifacts of a run.
FOLDER = "model"


def log_network(logger: RunLogger, net: Net, shape: tuple[int, ...], folder: Path) -> None:
    """Log a network as a graph of torch.export, in the format of MLflow's pytorch flavor.

    What is loaded takes any number of images in [0, 1] and needs no part of this program. The file
    has the weights and the graph, and nothing that is unpickled without torch's restrictions.

    Args:
        logger: the run that gets the artifact folder `model`.
        net: the network, in eval mode on the CPU, where the loaded one will be.
        shape: channels, height and width of an image.
        folder: a new folder for the files.
    """
    from mlflow.models import Model

    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    torch.export.save(export_program(net, shape), data / "model.pt2")
    model = Model(artifact_path=FOLDER, run_id=logger.run_id)
    model.add_flavor(
        "pytorch", model_data=data.name, pytorch_version=str(torch.__version__), code=None
    )
    model.save(folder / "MLmodel")
    logger.log_folder(folder, FOLDER)
