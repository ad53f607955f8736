"""A check that a record's numbers come out again when its checkpoint is evaluated."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from bench.execution import evaluation
from bench.execution.inputs import cached_loader
from bench.models.checkpoint import load
from bench.protocol.spec import Spec
from bench.system.environment import describe_environment, resolve_device
from bench.system.progress import Progress
from leaderboards.read import artifacts, verdicts
from leaderboards.read.store import collect
from leaderboards.schema.record import ACCURACY_TOLERANCE, Record, RecordError, Verdicts

COUNTS = ("test/n", "test/aa_n")
ROUNDING_SHARE = 0.005  # of the images: rounding differs between machines and libraries


def reproduce(
    record: Record, spec: Spec, uri: str, *, checkpoint: Path | None, data_root: Path, device: str
) -> str:
    """Evaluate the best checkpoint again as the spec says; return what was compared.

    `uri` is of the store with the checkpoint, if it is not in a file. Raise RecordError if too many
    images differ or nothing could be compared, BenchError for another checkpoint than stated.
    """
    sha256 = record.checksums.get("best", "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = checkpoint or fetch_checkpoint(uri, sha256, folder / "best.pt")
        if not path or not sha256:
            missing = f"no checkpoint {sha256[:16]}... here; give it with --checkpoint FILE"
            raise RecordError(f"not verified: {missing}")
        data = cached_loader(data_root)(spec)
        stated = record.environment.get("data")
        if not isinstance(stated, dict) or stated.get("sha256") != data.sha256:
            digest = f"{data.sha256[:16]}..."
            raise RecordError(f"not verified: it states other data than those here, {digest}")
        torch_device = resolve_device(device)
        net = load(path, spec.arch, data.info, sha256).to(torch_device)
        (folder / verdicts.VERDICTS_FILE).parent.mkdir()
        stem = folder / verdicts.VERDICTS_FILE.removesuffix("_aa.npz")
        full = "best" in spec.full_checkpoints
        with Progress([(0.0, 0.0)]) as progress:
            progress.start(record.file_name)
            values, flags = evaluation.evaluate_checkpoint(
                net, spec, data.test, full, stem, progress.tick
            )
        survived = verdicts.read_verdicts(folder.as_uri()) if "aa" in values else None
    new_flags = sorted(flags.keys() - json.loads(record.tags.get("flags") or "{}").keys())
    if new_flags:
        flag = f"{new_flags[0]}, {flags[new_flags[0]]}"
        raise RecordError(f"not reproduced: it does not have the flag {flag}")
    metrics = {f"test/{name}": x for name, x in values.items() if not name.startswith("cost/")}
    share = rounding_share(record.environment, torch_device)
    return compare_results(record, metrics, survived, share)


def rounding_share(recorded: Mapping[str, object], device: torch.device) -> float:
    """Return the share of images that rounding may turn, 0 in the environment of the record."""
    here = describe_environment(device)
    # The numbers of a suite are the same in every version of the benchmark.
    del here["bench"]
    return 0.0 if here.items() <= recorded.items() else ROUNDING_SHARE


def fetch_checkpoint(tracking_uri: str, sha256: str, path: Path) -> Path | None:
    """Copy the checkpoint with a checksum from the store to `path`; None if there is none."""
    runs = collect(tracking_uri)
    for uri in runs.loc[runs["sha256.best"] == sha256, "artifact_uri"]:
        # An imported run has no checkpoint.
        with suppress(Exception):
            path.write_bytes(artifacts.read_artifact(uri, "checkpoints/best.pt"))
            return path
    return None


def compare_results(
    record: Record, metrics: dict[str, float], survived: Verdicts | None, share: float
) -> str:
    """Compare with a record. Raise RecordError if more than a share of the images differ."""
    recorded = {name: value for name, value in record.metrics.items() if name.startswith("test/")}
    unmatched = sorted(recorded.keys() ^ metrics.keys())
    if unmatched:
        raise RecordError(f"not reproduced: {unmatched[0]} is in one of record and evaluation")
    for name, value in metrics.items():
        images = metrics["test/n"]
        if name in ("test/aa", "test/worst"):
            images = metrics.get("test/aa_n", images)
        tolerance = int(share * images) / images
        if name in COUNTS:
            tolerance = 0.0
        if abs(value - recorded[name]) > tolerance + ACCURACY_TOLERANCE:
            numbers = f"{name} is {value:.4f} here, recorded {recorded[name]:.4f}"
            raise RecordError(f"not reproduced: {numbers}")
    differing = 0
    if survived is not None:
        differing = int((survived != record.survived).sum())
        if differing > int(share * survived.size):
            count = f"{differing} of {survived.size} images"
            raise RecordError(f"not reproduced: AutoAttack's verdict differs on {count}")
    verdicts_text = f"verdicts of AutoAttack differ on {differing} images"
    return f"reproduced {len(metrics)} numbers; {verdicts_text}"
