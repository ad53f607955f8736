"""What ties a run in MLflow to its data, its teachers and its best checkpoint, so that MLflow's own pages can follow it.

None of it is a result: `Record.aside` stands around each call, and a run is finished without it. What is there already
is found again, so that a run which was killed and goes on makes nothing twice. Tensors are stored once, as artifacts of
the run: the logged model names its file, a version in the registry has the address of its folder.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bench.datasets import official_files
from bench.datasets.splits import Data
from bench.execution.plan import Cell
from bench.protocol.spec import Spec
from bench.tracking import note
from bench.tracking.note import Outcome
from bench.tracking.track import Record, Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, LoggedModel
    from mlflow.entities.model_registry import ModelVersion

DIGITS = 32  # of the data's sha256: MLflow takes 36 characters
CONTEXT = "training, validation, test"
BEST, TEACHER = "best", "teacher"  # aliases
ABOUT = {
    BEST: "Students that were the best of their kind when they ended. The alias `best` follows the accuracy under PGD on "
    "the validation images, which are the same for all of them; test images have no say in it.",
    TEACHER: "The checkpoint that taught is the one with the alias `teacher`.",
}
MODEL_TAGS = ("method", "variant", "student", "dataset", "teacher", "seed", "suite", "role")


def inputs(record: Record, spec: Spec, data: Data) -> None:
    """Links the run to its data set and to those of its teachers that were trained in this store."""
    from mlflow.entities import DatasetInput, InputTag, LoggedModelInput

    before = record.client.get_run(record.run_id).inputs
    known = {model.model_id for model in before.model_inputs} if before else set()
    taught = [
        holder(record.client, f"{place(spec)}.{name}", TEACHER) for name in spec.teachers.values()
    ]
    models = {version.tags["model_id"] for version in taught if version} - known
    about = DatasetInput(dataset(data), [InputTag("mlflow.data.context", CONTEXT)])
    record.client.log_inputs(
        record.run_id, [about], [LoggedModelInput(model) for model in sorted(models)]
    )


def dataset(data: Data) -> Dataset:
    """The data as used, for MLflow; the digest is how its sha256 begins."""
    from mlflow.entities import Dataset

    info, sizes = (
        data.info,
        {"training": len(data.train), "validation": len(data.val), "test": len(data.test)},
    )
    images, labels = (
        {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *shape]}}
        for dtype, shape in (("uint8", info.shape), ("int64", ()))
    )
    schema = {
        "mlflow_tensorspec": {"features": json.dumps([images]), "targets": json.dumps([labels])}
    }
    if info.name == "digits":
        kind, source = "local", {"uri": "sklearn.datasets.load_digits"}
    else:
        kind, source = "http", {"url": official_files.official_class(info).url}
    profile = {
        "num_rows": sum(sizes.values()),
        **sizes,
        "classes": info.num_classes,
        "sha256": data.sha256,
    }
    return Dataset(
        info.name, data.sha256[:DIGITS], kind, *map(json.dumps, (source, schema, profile))
    )


def checkpoint(record: Record, cell: Cell, tags: dict[str, str]) -> LoggedModel:
    """The logged model of the best checkpoint, an output of the run; made on first use."""
    from mlflow.entities import LoggedModelOutput

    client, run = record.client, record.client.get_run(record.run_id)
    place = [run.info.experiment_id]
    found = client.search_logged_models(place, f"source_run_id = '{record.run_id}'", max_results=1)
    model = found[0] if found else create(record, run.info.experiment_id, cell, tags)
    if not (run.outputs and run.outputs.model_outputs):
        client.log_outputs(
            record.run_id, [LoggedModelOutput(model.model_id, cell.spec.training.epochs)]
        )
    return model


def create(record: Record, experiment: str, cell: Cell, tags: dict[str, str]) -> LoggedModel:
    file = f"runs:/{record.run_id}/checkpoints/best.pt"
    about = {note.TAG: f"The checkpoint that validation chose: `{file}`.", "checkpoint": file}
    return record.client.create_logged_model(
        experiment,
        f"{cell.spec.method} {cell.spec.arch} seed {cell.spec.seed}",
        record.run_id,
        {name: tags[name] for name in MODEL_TAGS} | about,
        {
            name: str(value)
            for name, value in cell.spec.flat().items()
            if name.startswith(("hyper.", "training."))
        },
        "checkpoint",
    )


def link(model: LoggedModel | None, data: Data, values: dict[str, float]) -> dict[str, str]:
    """What the metrics `values` say of their model and data; {} without a model, or where it has them already."""
    if (
        not model
        or values.items() <= {metric.key: metric.value for metric in model.metrics or []}.items()
    ):
        return {}
    return {
        "model_id": model.model_id,
        "dataset_name": data.info.name,
        "dataset_digest": data.sha256[:DIGITS],
    }


def register(store: Store, record: Record, cell: Cell, model: LoggedModel, found: Outcome) -> None:
    """Marks the logged model as ready, and puts it into the registry if an alias is due to it.

    A teacher's model has the name of its identity. All students of one network on one data set share a model, and a run
    becomes a version of it if its accuracy under PGD on the validation images is above that of the alias.
    """
    store.client.finalize_logged_model(model.model_id, "READY")
    if cell.spec.role == "teacher":
        name, alias = f"{place(cell.spec)}.{cell.identity}", TEACHER
    else:
        name, alias = f"{place(cell.spec)}.{cell.spec.arch}", BEST
    score = found.chosen["val/robust"]
    with store.alone():
        before = holder(store.client, name, alias)
        beaten = alias == BEST and before and float(before.tags["val_robust"]) >= score
        if beaten or (before and before.run_id == record.run_id):
            return
        promote(
            store.client,
            name,
            alias,
            record.run_id,
            {"model_id": model.model_id, "val_robust": score},
        )


def promote(client: MlflowClient, name: str, alias: str, run_id: str, tags: dict[str, Any]) -> None:
    """Gives the alias to the run's checkpoints, as a version of the registered model."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # it exists
        client.create_registered_model(name, description=ABOUT[alias])
    own = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'", max_results=1)
    source = f"runs:/{run_id}/checkpoints"
    version = own[0] if own else client.create_model_version(name, source, run_id, tags=tags)
    client.set_registered_model_alias(name, alias, version.version)
    shown = [{"name": name, "version": version.version}]  # what the logged model's page shows
    client.set_logged_model_tags(tags["model_id"], {"mlflow.modelVersions": json.dumps(shown)})


def place(spec: Spec) -> str:
    return f"{spec.suite}.{spec.dataset}"


def holder(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that has the alias, if any has."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in (
            "RESOURCE_DOES_NOT_EXIST",
            "INVALID_PARAMETER_VALUE",
        ):  # no such model, no such alias
            return None
        raise
