"""A check that a record's numbers come out again when its checkpoint is evaluated."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from bench.execution import evaluation
from bench.execution.inputs import cached_loader
from bench.models import check_stated
from bench.models.checkpoint import load
from bench.records.trained import fetch_published
from bench.system.environment import describe_environment, resolve_device
from bench.system.progress import Progress
from bench.tracking.store import TrackingStore, fetch_artifact, suite_runs
from leaderboards.schema import metrics
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.fields import checkpoint_artifact, checksum_tag
from leaderboards.schema.packing import Verdicts
from leaderboards.schema.record import ACCURACY_TOLERANCE, Record, RecordError

ROUNDING_SHARE = 0.005  # of the images: rounding differs between machines and libraries


def reproduce(
    record: Record, store: TrackingStore, *, checkpoint: Path | None, data_root: Path, device: str
) -> str:
    """Evaluate the best checkpoint again as the spec says; return what was compared.

    A checkpoint that is not in a file is in `store`, or where the record says. Raise RecordError if
    too many images differ or nothing could be compared, BenchError for another checkpoint than
    stated.
    """
    spec, sha256 = record.spec, record.checksums.get(BEST, "")
    check_stated(spec.arch, "not verified: its network")
    with tempfile.TemporaryDirectory() as name:
        path = checkpoint or find_checkpoint(store, record, Path(name))
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
        with Progress({1: (0.0, 0.0)}, 1) as progress:
            progress.start(1, record.spec.record_name)
            result = evaluation.evaluate_checkpoint(
                net, spec, BEST, data.test, Path(name, "verdicts"), progress.tick
            )
    new_flags = sorted(result.flags.keys() - record.flags.keys())
    if new_flags:
        flag = f"{new_flags[0]}, {result.flags[new_flags[0]]}"
        raise RecordError(f"not reproduced: it does not have the flag {flag}")
    survived = None if result.survived is None else result.survived.numpy()
    share = rounding_share(record.environment, torch_device)
    return compare_results(record, result.metrics(BEST), survived, share)


def rounding_share(recorded: Mapping[str, object], device: torch.device) -> float:
    """Return the share of images that rounding may turn, 0 in the environment of the record."""
    here = describe_environment(device)
    # The numbers of a suite are the same in every version of the benchmark.
    del here["bench"]
    return 0.0 if here.items() <= recorded.items() else ROUNDING_SHARE


def find_checkpoint(store: TrackingStore, record: Record, folder: Path) -> Path | None:
    """Return the checkpoint with a record's hash: in the store, or from a hub; None without any."""
    condition = f"tags.`{checksum_tag(BEST)}` = '{record.checksums.get(BEST, '')}'"
    for run in suite_runs(store.client, condition):
        # An imported run has no checkpoint.
        with suppress(Exception):
            artifact = checkpoint_artifact(BEST)
            return fetch_artifact(store.client, store.root, run.info.run_id, artifact, folder)
    return fetch_published(record, BEST)


def compare_results(
    record: Record, measured: dict[str, float], survived: Verdicts | None, share: float
) -> str:
    """Compare with a record. Raise RecordError if more than a share of the images differ."""
    recorded = record.metrics_of(BEST)
    unmatched = sorted(recorded.keys() ^ measured.keys())
    if unmatched:
        raise RecordError(f"not reproduced: {unmatched[0]} is in one of record and evaluation")
    for name, value in measured.items():
        images = measured[metrics.NUM_IMAGES]
        if name in (metrics.RANK_METRIC, metrics.WORST):
            images = measured.get(metrics.NUM_ATTACKED, images)
        tolerance = int(share * images) / images
        if not metrics.is_accuracy(name):
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
    return f"reproduced {len(measured)} numbers; {verdicts_text}"
