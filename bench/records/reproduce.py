"""Whether the numbers of a record come out again when its checkpoint is evaluated anew."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path

from bench.cli import options
from bench.execution import cell
from bench.execution.execute import loader, place
from bench.models import checkpoint
from bench.protocol.spec import Spec
from bench.system import environment
from bench.system.progress import Progress
from leaderboards.read import artifacts, verdicts
from leaderboards.read.store import collect
from leaderboards.schema.record import ACCURACY_TOLERANCE, Record, RecordError, Verdicts

COUNTS = ("test/n", "test/aa_n")
ELSEWHERE = 0.005  # share of the images whose verdict another machine or library may turn by rounding; the same: none


def verify(found: Record, spec: Spec, tracking_uri: str, given: options.Import) -> str:
    """Evaluates the best checkpoint again as the spec says; returns what was compared.

    Raises RecordError where the numbers differ by more images than they may, or nothing could be compared, and BenchError
    for a checkpoint or data that are not as stated.
    """
    sha256 = found.checksums.get("best", "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = given.checkpoint or fetched(tracking_uri, sha256, folder / "best.pt")
        if not path or not sha256:
            raise RecordError(
                f"not verified: no checkpoint {sha256[:16]}... here; give it with --checkpoint FILE"
            )
        data = loader(given.data_root)(*place(spec))
        used = found.environment.get("data")
        if not isinstance(used, dict) or used.get("sha256") != data.sha256:
            raise RecordError(
                f"not verified: it states other data than those here, {data.sha256[:16]}..."
            )
        device = environment.device(given.device)
        net = checkpoint.load(path, spec.arch, data.info, sha256).to(device)
        (folder / verdicts.VERDICTS_FILE).parent.mkdir()
        stem = folder / verdicts.VERDICTS_FILE.removesuffix("_aa.npz")
        with Progress([(0.0, 0.0)]) as progress:
            progress.start(found.file_name)
            values, flags = cell.evaluate(
                net, spec, data.test, "best" in spec.full_checkpoints, stem, progress.tick
            )
        here = environment.describe(device)
        share = 0.0 if here.items() <= found.environment.items() else ELSEWHERE
        again = {
            f"test/{name}": value for name, value in values.items() if not name.startswith("cost/")
        }
        told = json.loads(found.tags.get("flags") or "{}")
        if hidden := sorted(flags.keys() - told.keys()):
            raise RecordError(
                f"not reproduced: it does not have the flag {hidden[0]}, {flags[hidden[0]]}"
            )
        return compare(
            found, again, verdicts.read_verdicts(folder.as_uri()) if "aa" in values else None, share
        )


def fetched(tracking_uri: str, sha256: str, path: Path) -> Path | None:
    """The checkpoint with this checksum, copied from the artifacts of a finished run to `path`; None if there is none."""
    runs = collect(tracking_uri)
    for uri in runs.loc[runs["sha256.best"] == sha256, "artifact_uri"]:
        with suppress(Exception):  # a run that was imported has no checkpoint
            path.write_bytes(artifacts.read_artifact(uri, "checkpoints/best.pt"))
            return path
    return None


def compare(found: Record, again: dict[str, float], survived: Verdicts | None, share: float) -> str:
    """Raises RecordError unless accuracies and verdicts are those of the record, up to a share of the images."""
    told = {name: value for name, value in found.metrics.items() if name.startswith("test/")}
    if odd := sorted(told.keys() ^ again.keys()):
        raise RecordError(
            f"not reproduced: {odd[0]} is in one of the record and its evaluation here"
        )
    for name, value in again.items():
        images = (
            again.get("test/aa_n", again["test/n"])
            if name in ("test/aa", "test/worst")
            else again["test/n"]
        )
        may = 0.0 if name in COUNTS else int(share * images) / images
        if abs(value - told[name]) > may + ACCURACY_TOLERANCE:
            raise RecordError(
                f"not reproduced: {name} is {value:.4f} here, recorded {told[name]:.4f}"
            )
    turned = 0
    if survived is not None:
        turned = int((survived != found.survived).sum())
        if turned > int(share * survived.size):
            raise RecordError(
                f"not reproduced: AutoAttack's verdict differs on {turned} of {survived.size} images"
            )
    return f"reproduced {len(again)} numbers; verdicts of AutoAttack differ on {turned} images"
