"""Attack any checkpoint file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from bench.cli.parsing import Command
from bench.protocol.options import CommonOptions, Json, Search, SearchPrecision, option
from bench.system.errors import BenchError, UsageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from attacks import Evaluation
    from bench.datasets.splits import Split
    from bench.teachers.releases import Release
    from methods.base import Net

DEFAULT_ATTACKS = {"Linf": ("fgsm", "pgd20", "pgd20_trades", "cw_inf", "aa"), "L2": ("pgd20", "aa")}
DEFAULT_ATTACKS_HINT = "fgsm,pgd20,pgd20_trades,cw_inf,aa in Linf, pgd20,aa in L2"
DEFAULT_EPS_L2 = 0.5
NEEDED = "the release's"
IMAGES_DIGITS = 16  # of the sha256 of a file of images, in the name of its verdicts
NORMS = {"Linf": "l-inf", "L2": "L2"}


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(CommonOptions):
    """Attack any checkpoint file.

    The name "corruptions" among the attacks adds noise, blur, contrast and JPEG as a control.
    """

    checkpoint: Annotated[Path, option("FILE", "or `hf:OWNER/NAME[@REVISION][:FILE]`")]
    arch: Annotated[str, option("MODEL", "such as resnet18; see `list`", NEEDED)] = ""
    dataset: Annotated[str, option("NAME", "whose test images", NEEDED)] = ""
    release: Annotated[str, option("NAME", "what the file is; see `teacher list`", "none")] = ""
    key: Annotated[str, option("NAME", "which network of the file, where several fit")] = ""
    mean: Annotated[tuple[float, ...], option(text="per channel, if the file has none")] = ()
    std: Annotated[tuple[float, ...], option(text="as --mean")] = ()
    attacks: Annotated[str, option("NAMES", "with commas; see `list`", DEFAULT_ATTACKS_HINT)] = ""
    norm: Annotated[Literal["Linf", "L2"], option(text="of the perturbation")] = "Linf"
    eps: Annotated[
        float | None, option("X", "radius", "the release's or suite's in Linf, 0.5 in L2")
    ] = None
    images: Annotated[
        Path | None, option("FILE", "judge what others made, alone or with --attacks", "none")
    ] = None
    surrogate: Annotated[Path | None, option("FILE", "network that NAME@surrogate attacks")] = None
    surrogate_arch: Annotated[str, option("MODEL", "of the surrogate", "--arch")] = ""
    limit_test: Annotated[int | None, option("N", "use the first N test images", "all")] = None
    batch_size: Annotated[int, option("N", "images attacked at once")] = 250
    search: Search = "auto"
    search_precision: SearchPrecision = "auto"
    seed: Annotated[int, option("N", "of the attacks' random numbers")] = 0
    sha256: Annotated[str, option("HEX", "refuse the file unless this is its hash")] = ""
    out: Annotated[Path | None, option("FILE", "verdicts, .npz; a second call continues")] = None
    json: Json = False


def evaluate(options: EvaluateOptions) -> None:
    """Attack a checkpoint and print a line for each attack."""
    from bench import datasets, models
    from bench.cli.evaluation import attack_test_images, print_accuracies
    from bench.cli.output import print_json
    from bench.datasets.loading import load_data
    from bench.execution.plan import split_names
    from bench.models import checkpoint
    from bench.system import environment
    from bench.teachers import checks
    from bench.teachers.releases import load_file

    options = fetch_files(options)
    release = describe_file(options)
    info = datasets.get(release.dataset)
    default_attacks = () if options.images else DEFAULT_ATTACKS[options.norm]
    attacks = split_names(options.attacks) or default_attacks
    check_attacks(attacks, options)
    eps = choose_eps(options, release)
    check_numbers(options)
    models.check(release.arch, info)
    device = environment.resolve_device(options.device)
    net = load_file(options.checkpoint, release).to(device)
    surrogates: dict[str, Net] = {}
    if options.surrogate:
        arch = options.surrogate_arch or release.arch
        surrogates["surrogate"] = checkpoint.load(options.surrogate, arch, info).to(device)
    test = load_data(info.name, options.data_root, limit_test=options.limit_test).test
    images = read_images(options, test)
    with explain_memory_errors(options.batch_size):
        evaluation = attack_test_images(
            net, test, attacks, device, options.out, surrogates=surrogates, images=images, eps=eps,
            norm=options.norm, seed=options.seed, batch_size=options.batch_size,
            search=options.search, precision=options.search_precision)  # fmt: skip
    evaluation.flags |= checks.normalisation_flags({"": net, **surrogates}, test, info.name)
    if options.json:
        print_json(to_document(evaluation, options, release, net, eps))
    else:
        print_accuracies(evaluation, len(test), f"{NORMS[options.norm]} {eps:.4g}")


def fetch_files(options: EvaluateOptions) -> EvaluateOptions:
    """Return the options with files for addresses on a hub, and with what the file's head states.

    Raise BenchError for an address that has no file.
    """
    from bench.teachers.releases import locate_file

    named = options.arch, options.dataset
    file, *stated = locate_file(options.checkpoint, *named)
    arch, dataset = named if options.release else stated
    surrogate = options.surrogate
    if surrogate:
        surrogate, *_ = locate_file(surrogate, options.surrogate_arch or arch, dataset)
    return dataclasses.replace(
        options, checkpoint=file, surrogate=surrogate, arch=arch, dataset=dataset
    )


def describe_file(options: EvaluateOptions) -> Release:
    """Return the release that is named, or else the network that the options describe."""
    from bench.teachers.releases import RELEASES, Release, resolve_release

    names = {release.name for release in RELEASES}
    if options.release and options.release not in names:
        raise unknown_name("release", options.release, names)
    if not options.release and not (options.arch and options.dataset):
        raise UsageError("missing: --arch and --dataset, or --release")
    name, sha256, key = options.release or "file", options.sha256.lower(), options.key
    mean, std = options.mean, options.std
    request = Release(
        name, options.dataset, options.arch, sha256=sha256, mean=mean, std=std, key=key
    )
    return resolve_release(request)


def read_images(options: EvaluateOptions, test: Split) -> dict[str, Tensor]:
    """Return the adversarial examples of a file by the first digits of its sha256."""
    from bench.execution.adversarial_file import read_examples
    from bench.system.files import sha256_of_file

    if not options.images:
        return {}
    images = read_examples(options.images, tuple(test.x.shape[1:]))
    if len(images) != len(test):
        remedy = "" if len(images) > len(test) else f": --limit-test {len(images)} takes the first"
        counts = f"{len(images)} images for {len(test)} test images"
        raise UsageError(f"{str(options.images)!r} holds {counts}{remedy}")
    return {sha256_of_file(options.images)[:IMAGES_DIGITS]: images}


def to_document(
    evaluation: Evaluation, options: EvaluateOptions, release: Release, net: Net, eps: float
) -> dict[str, Any]:
    """Return the result for programs: accuracies in [0, 1], costs in passes and seconds."""
    from bench.system.files import sha256_of_file

    images = options.images
    return {
        "checkpoint": str(options.checkpoint),
        "sha256": sha256_of_file(options.checkpoint),
        "arch": release.arch,
        "dataset": release.dataset,
        "mean": net.mean.flatten().tolist(),
        "std": net.std.flatten().tolist(),
        "norm": options.norm,
        "eps": eps,
        "seed": options.seed,
        "n": len(evaluation.worst),
        "images": {"file": str(images), "sha256": sha256_of_file(images)} if images else None,
        "accuracy": evaluation.accuracy(),
        "cost": {name: dataclasses.asdict(cost) for name, cost in evaluation.cost.items()},
        "flags": evaluation.flags,
    }


def check_attacks(attacks: Sequence[str], options: EvaluateOptions) -> None:
    """Raise UsageError for unknown attacks, and where `--surrogate` and the attacks disagree."""
    from attacks import catalog

    for name in catalog.expand_names(attacks):
        base, at, surrogate = name.partition("@")
        if base not in catalog.ATTACKS and name not in catalog.CONTROLS:
            raise unknown_name("attack", name, [*catalog.ATTACKS, "corruptions", *catalog.CONTROLS])
        if at and (surrogate != "surrogate" or not options.surrogate):
            raise UsageError(f"{name}: write {base}@surrogate and give the file with --surrogate")
    has_surrogate = options.surrogate or options.surrogate_arch
    if has_surrogate and not any("@" in name for name in attacks):
        advice = "name one with --attacks"
        raise UsageError(f"--surrogate is for attacks such as pgd20@surrogate: {advice}")


def choose_eps(options: EvaluateOptions, release: Release) -> float:
    """Return the radius. Raises UsageError for one out of range."""
    if options.norm == "Linf":
        default, limit = release.eps, 1.0
    else:
        default, limit = DEFAULT_EPS_L2, math.inf
    eps = default if options.eps is None else options.eps
    if not 0 <= eps <= limit:
        rule = "between 0 and 1, in pixels of [0, 1], such as 8/255 = 0.03137"
        raise UsageError(f"--eps {eps}: {rule}")
    return eps


def check_numbers(options: EvaluateOptions) -> None:
    """Raise UsageError for a seed, a batch size or a file for verdicts that cannot be used."""
    from attacks.verdict_file import is_verdict_file

    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed {options.seed}: between 0 and 2^63 - 1")
    if options.out and options.out.exists() and not is_verdict_file(options.out):
        path = str(options.out)
        raise UsageError(f"--out {path!r} exists and holds no verdicts: choose another file")
    if options.batch_size < 1:
        raise UsageError(f"--batch-size {options.batch_size}: at least 1")


@contextmanager
def explain_memory_errors(batch_size: int) -> Iterator[None]:
    """Turn a lack of memory into a BenchError that names the option."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch has an error class for a lack of memory on CUDA devices alone.
        out_of_memory = re.search("(out of|allocate) memory", str(error))
        if not out_of_memory and not isinstance(error, MemoryError):
            raise
        raise BenchError(f"out of memory: a --batch-size below {batch_size} needs less") from error


COMMAND = Command(EvaluateOptions, evaluate)
