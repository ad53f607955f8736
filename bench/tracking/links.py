"""Links of a run in MLflow: its data set, its teachers, its best checkpoint.

No result depends on them: each is made in a `RunLogger.optional_step`. A run that continues finds
those that it has. The logged model names the checkpoint file. A version in the registry has the
network a second time, as `mlflow.pytorch.load_model` reads it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.datasets.splits import Data
from bench.models.formats import export_program
from bench.tracking.note import NOTE_TAG
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import TrackingStore
from leaderboards.schema.fields import Artifact, file_name
from leaderboards.schema.spec import Spec
from methods.base import Net

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, LoggedModel
    from mlflow.entities.model_registry import ModelVersion

DIGEST_LENGTH = 32  # digits of the data's sha256: MLflow takes 36 characters
CONTEXT = "training, validation, test"
BEST, TEACHER = "best", "teacher"  # aliases
DESCRIPTIONS = {
    BEST: "Students that were the best of their kind when they ended. The alias `best` follows the "
    "accuracy under PGD on the validation images, which are the same for all of them; test images "
    "have no say in it.",
    TEACHER: "The checkpoint that is used is the one with the alias `teacher`.",
}
MODEL_TAGS = ("method", "variant", "student", "dataset", "teacher", "seed", "suite", "role")


def log_inputs(logger: RunLogger, spec: Spec, data: Data) -> None:
    """Link a run to its data set and to those of its teachers that were trained in this store."""
    from mlflow.entities import DatasetInput, InputTag, LoggedModelInput

    inputs = logger.client.get_run(logger.run_id).inputs
    linked_ids = {model.model_id for model in inputs.model_inputs} if inputs else set()
    model_ids = set()
    for identity in spec.teachers.values():
        version = find_alias(logger.client, registered_name(spec, identity), TEACHER)
        if version:
            model_ids.add(version.tags["model_id"])
    models = [LoggedModelInput(model_id) for model_id in sorted(model_ids - linked_ids)]
    dataset_input = DatasetInput(mlflow_dataset(data), [InputTag("mlflow.data.context", CONTEXT)])
    logger.client.log_inputs(logger.run_id, [dataset_input], models)


def mlflow_dataset(data: Data) -> Dataset:
    """Describe the data as used. The digest is the start of its sha256."""
    from mlflow.entities import Dataset

    info = data.info
    images = {"dtype": "uint8", "shape": [-1, *info.shape]}
    labels = {"dtype": "int64", "shape": [-1]}
    tensors = {}
    for name, spec in {"features": images, "targets": labels}.items():
        tensors[name] = json.dumps([{"type": "tensor", "tensor-spec": spec}])
    files = info.files()
    kind, origin = "local", {"uri": info.source}
    if files:
        kind, origin = "http", {"url": files.downloads[0].urls[0]}
    sizes = {"training": len(data.train), "validation": len(data.val), "test": len(data.test)}
    about = {"classes": info.num_classes, "sha256": data.sha256}
    profile = json.dumps({"num_rows": sum(sizes.values()), **sizes, **about})
    schema = json.dumps({"mlflow_tensorspec": tensors})
    digest = data.sha256[:DIGEST_LENGTH]
    return Dataset(info.name, digest, kind, json.dumps(origin), schema, profile)


def log_checkpoint(logger: RunLogger, spec: Spec, tags: dict[str, str]) -> LoggedModel:
    """Return the logged model of the best checkpoint, created on first use."""
    from mlflow.entities import LoggedModelOutput

    client, run = logger.client, logger.client.get_run(logger.run_id)
    experiment_id = run.info.experiment_id
    same_run = f"source_run_id = '{logger.run_id}'"
    models = client.search_logged_models([experiment_id], same_run, max_results=1)
    model = models[0] if models else create_model(logger, experiment_id, spec, tags)
    if not (run.outputs and run.outputs.model_outputs):
        epochs = spec.training.epochs
        client.log_outputs(logger.run_id, [LoggedModelOutput(model.model_id, epochs)])
    return model


def create_model(
    logger: RunLogger, experiment_id: str, spec: Spec, tags: dict[str, str]
) -> LoggedModel:
    """Create the logged model of the best checkpoint, with its hyper-parameters."""
    file = f"runs:/{logger.run_id}/checkpoints/best.pt"
    note = f"The checkpoint that validation chose: `{file}`."
    model_tags = {name: tags[name] for name in MODEL_TAGS} | {NOTE_TAG: note, "checkpoint": file}
    params = {}
    for name, value in spec.flat().items():
        if name.startswith(("hyper.", "training.")):
            params[name] = str(value)
    # Names of logged models have no dots either.
    name = f"{spec.method} {file_name(spec.arch)} seed {spec.seed}".replace(".", "-")
    create = logger.client.create_logged_model
    return create(experiment_id, name, logger.run_id, model_tags, params, "checkpoint")


def metric_link(model: LoggedModel | None, data: Data, values: dict[str, float]) -> dict[str, str]:
    """Return the model and the data of metrics; {} without a model or if it has the metrics."""
    if not model:
        return {}
    logged = {metric.key: metric.value for metric in model.metrics or []}
    if values.items() <= logged.items():
        return {}
    link = {"model_id": model.model_id, "dataset_name": data.info.name}
    return link | {"dataset_digest": data.sha256[:DIGEST_LENGTH]}


def register_model(
    store: TrackingStore,
    logger: RunLogger,
    model: LoggedModel,
    spec: Spec,
    name: str,
    score: float,
    log_network: Callable[[], None],
) -> None:
    """Mark a logged model as ready, and register it if an alias is due to it.

    A teacher's model is named by its identity, `name`. All students of one network on one data set
    share a model. A run becomes a version of it if its `score`, the accuracy under PGD on the
    validation images, is above that of the alias. `log_network` logs what the version loads.
    """
    client = store.client
    client.finalize_logged_model(model.model_id, "READY")
    alias, model_name = BEST, registered_name(spec, spec.arch)
    if spec.role == "teacher":
        alias, model_name = TEACHER, registered_name(spec, name)
    if not is_due(client, model_name, alias, logger.run_id, score):
        return
    # Outside the lock: a large network takes long. Another run may get the alias meanwhile.
    log_network()
    with store.alone(spec.suite, f"{model_name} {alias}"):
        if is_due(client, model_name, alias, logger.run_id, score):
            tags = {"model_id": model.model_id, "val_robust": score}
            tags["checkpoint"] = model.tags["checkpoint"]
            set_alias(client, model_name, alias, logger.run_id, tags)


def is_due(client: MlflowClient, name: str, alias: str, run_id: str, score: float) -> bool:
    """Return whether a run, which does not have an alias, is to get it."""
    version = find_alias(client, name, alias)
    if version and version.run_id == run_id:
        return False
    return not version or alias == TEACHER or float(version.tags["val_robust"]) < score


def set_alias(
    client: MlflowClient, name: str, alias: str, run_id: str, tags: dict[str, Any]
) -> None:
    """Give an alias to the exported network of a run, as a version of a registered model."""
    from mlflow.exceptions import MlflowException

    # The model may exist.
    with suppress(MlflowException):
        client.create_registered_model(name, description=DESCRIPTIONS[alias])
    same_run = f"name = '{name}' and run_id = '{run_id}'"
    versions = client.search_model_versions(same_run, max_results=1)
    if versions:
        version = versions[0]
    else:
        folder = f"runs:/{run_id}/{Artifact.MODEL}"
        version = client.create_model_version(name, folder, run_id, tags=tags)
    client.set_registered_model_alias(name, alias, version.version)
    # The page of a logged model shows the versions in this tag.
    versions_tag = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(tags["model_id"], {"mlflow.modelVersions": versions_tag})


def log_network(logger: RunLogger, net: Net, shape: tuple[int, ...], folder: Path) -> None:
    """Log a network as a graph of torch.export, in the format of MLflow's pytorch flavor.

    What is loaded takes any number of images in [0, 1] and needs no part of this program. The file
    has the weights and the graph, and nothing that is unpickled without torch's restrictions.

    Args:
        logger: the run that gets the artifact folder `model`.
        net: the network, in eval mode on the CPU, where the loaded one will be.
        shape: channels, height and width of an image.
        folder: a new folder for the files, called `model` too.
    """
    from mlflow.models import Model

    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    # Where torch itself writes a file and the disk is full, it ends the process.
    program = io.BytesIO()
    torch.export.save(export_program(net, shape), program)
    (data / "model.pt2").write_bytes(program.getbuffer())
    model = Model(artifact_path=Artifact.MODEL.value, run_id=logger.run_id)
    model.add_flavor(
        "pytorch", model_data=data.name, pytorch_version=str(torch.__version__), code=None
    )
    model.save(folder / "MLmodel")
    logger.log_folder(folder)


def registered_name(spec: Spec, name: str) -> str:
    """Return the name of a registered model."""
    return file_name(f"{spec.suite}.{spec.dataset}.{name}")


def find_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Return the version of a registered model with an alias, if there is one."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        # No such model, no such alias.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
