"""Attack checkpoint files and modules, for `bench.evaluate` and the command `evaluate`."""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from bench.api.keywords import KeywordReader, call_log, takes_options
from bench.protocol.options import CommonOptions, Json, Search, SearchPrecision, option
from bench.system.errors import BenchError, UsageError, unknown_name
from leaderboards.schema.fields import Norm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attacks import Evaluation
    from bench.teachers.releases import Release
    from methods.base import Net

    Images: TypeAlias = tuple[Tensor, Tensor]

DEFAULT_ATTACKS = {"Linf": ("fgsm", "pgd20", "pgd20_trades", "cw_inf", "aa"), "L2": ("pgd20", "aa")}
DEFAULT_ATTACKS_HINT = "fgsm,pgd20,pgd20_trades,cw_inf,aa in Linf, pgd20,aa in L2"
DEFAULT_EPS_L2 = 0.5
NEEDED = "the release's"
IMAGES_DIGITS = 16  # of the sha256 of a file of images, in the name of its verdicts
# Options that are about files.
FILE_OPTIONS = {
    *("arch", "release", "key", "mean", "std", "sha256", "device", "surrogate", "surrogate_arch"),
    *("surrogate_mean", "surrogate_std"),
}


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
    norm: Annotated[Norm, option(text="of the perturbation")] = "Linf"
    eps: Annotated[
        float | None, option("X", "radius", "the release's or suite's in Linf, 0.5 in L2")
    ] = None
    images: Annotated[
        Path | None, option("FILE", "judge what others made, alone or with --attacks", "none")
    ] = None
    surrogate: Annotated[Path | None, option("FILE", "network that NAME@surrogate attacks")] = None
    surrogate_arch: Annotated[str, option("MODEL", "of the surrogate", "--arch")] = ""
    surrogate_mean: Annotated[tuple[float, ...], option(text="if that file has none")] = ()
    surrogate_std: Annotated[tuple[float, ...], option(text="as --surrogate-mean")] = ()
    limit_test: Annotated[int | None, option("N", "use the first N test images", "all")] = None
    batch_size: Annotated[int, option("N", "images attacked at once")] = 250
    search: Search = "auto"
    search_precision: SearchPrecision = "auto"
    seed: Annotated[int, option("N", "of the attacks' random numbers")] = 0
    sha256: Annotated[str, option("HEX", "refuse the file unless this is its hash")] = ""
    out: Annotated[Path | None, option("FILE", "verdicts, .npz; a second call continues")] = None
    json: Json = False


@takes_options(EvaluateOptions)
def evaluate(
    checkpoint: str | Path | nn.Module,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    verbose: bool = False,
    **options: Any,
) -> Evaluation:
    """Attack a checkpoint file or a network in memory.

    The options are the flags of the command `evaluate`; names with commas may be a list.

    Args:
        checkpoint: a file, or a module that maps images in [0, 1] to logits. A module stays as it
            is, and is judged in eval mode on its device; it needs a data set, or images and `eps`.
        x: images (N, C, H, W) in [0, 1], instead of a data set's test images.
        y: their labels (N,).
        verbose: print progress.
        options: as below, None for the default. `surrogate` may be a module too.

    Returns: verdicts, accuracies, costs and flags; its text is what the command prints.

    Raises:
        bench.system.errors.BenchError: options are wrong (UsageError), or the file cannot be
            evaluated; the message is that of the command.
    """
    from attacks.isolation import default_state

    keywords = {"checkpoint": checkpoint, **options}
    modules = {name: value for name, value in keywords.items() if is_module(value)}
    keywords |= {name: type(module).__name__ for name, module in modules.items()}
    with call_log("evaluate", keywords, verbose), default_state():
        request = KeywordReader("evaluate", keywords).read(EvaluateOptions)
        if not modules and x is None and y is None:
            return attack_checkpoint(request)
        if "checkpoint" not in modules or (x is None) != (y is None):
            raise UsageError("images, x and y, and a surrogate module need a checkpoint in memory")
        if stated := sorted(f"--{name}" for name in FILE_OPTIONS & options.keys() - modules.keys()):
            raise UsageError(f"{', '.join(stated)}: for files, and the checkpoint is in memory")
        return attack_module(modules, None if x is None or y is None else (x, y), request)


def is_module(value: Any) -> bool:
    """Return whether a value is a network in memory."""
    # Without torch there is none.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def attack_checkpoint(options: EvaluateOptions) -> Evaluation:
    """Attack a checkpoint file on the test images of its data set."""
    from bench import datasets
    from bench.datasets.augmentation import to_float
    from bench.datasets.loading import load_data
    from bench.system import environment
    from bench.teachers import checks
    from bench.teachers.releases import load_file

    options = fetch_files(options)
    release = describe_file(options)
    info = datasets.get(release.dataset)
    check_options(options)
    eps = choose_eps(options, release.eps)
    device = environment.resolve_device(options.device)
    networks = {"": load_file(options.checkpoint, release).to(device)}
    if options.surrogate:
        surrogate = describe_surrogate(options, release)
        networks["surrogate"] = load_file(options.surrogate, surrogate).to(device)
    test = load_data(info.name, options.data_root, limit_test=options.limit_test).test
    evaluation = attack_networks(networks, to_float(test.x), test.y, options, eps)
    evaluation.flags |= checks.normalisation_flags(networks, test, info.name)
    evaluation.about = describe_checkpoint(options, release, networks[""]) | evaluation.about
    return evaluation


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
    return replace(options, checkpoint=file, surrogate=surrogate, arch=arch, dataset=dataset)


def describe_checkpoint(options: EvaluateOptions, release: Release, net: Net) -> dict[str, Any]:
    """Return what is known of the network in a file."""
    from bench.system.files import sha256_of_file

    return {
        "checkpoint": str(options.checkpoint),
        "sha256": sha256_of_file(options.checkpoint),
        "arch": release.arch,
        "dataset": release.dataset,
        "mean": net.mean.flatten().tolist(),
        "std": net.std.flatten().tolist(),
    }


def attack_module(
    modules: Mapping[str, nn.Module], images: Images | None, options: EvaluateOptions
) -> Evaluation:
    """Attack the module "checkpoint" on its device, on images or else on test images."""
    from bench.datasets.augmentation import to_float
    from bench.datasets.loading import checked_limit, load_data
    from bench.protocol import suites

    if images is None and not options.dataset:
        raise UsageError("missing: --dataset, or x and y")
    if options.eps is None and options.norm == "Linf" and not options.dataset:
        raise UsageError("missing: --eps, or --dataset, whose suite has one")
    check_options(options)
    eps = choose_eps(options, suites.default_eps(options.dataset))
    if images is None:
        test = load_data(options.dataset, options.data_root, limit_test=options.limit_test).test
        images = to_float(test.x), test.y
    networks = {"": modules["checkpoint"], **modules}
    x, y = (plain_tensor(values) for values in images)
    count = checked_limit("test", options.limit_test, len(x))
    evaluation = attack_networks(networks, x[:count], y[:count], options, eps)
    about = {"network": type(networks[""]).__name__, "dataset": options.dataset}
    evaluation.about = about | evaluation.about
    return evaluation


def plain_tensor(values: Any) -> Tensor:
    """Return an array or a list of real numbers as a tensor. Raise UsageError for what is none."""
    import torch

    # torch raises whatever fits.
    with suppress(Exception):
        tensor = torch.as_tensor(values)
        is_plain = tensor.layout == torch.strided and not (tensor.is_complex() or tensor.is_meta)
        if is_plain and tensor.ndim:
            return tensor
    kind = reprlib.repr(values)
    raise UsageError(f"x and y must be tensors or arrays of plain numbers, not {kind}")


def attack_networks(
    networks: Mapping[str, nn.Module], x: Tensor, y: Tensor, options: EvaluateOptions, eps: float
) -> Evaluation:
    """Attack the network "" on images in [0, 1]; the others are surrogates."""
    from bench.execution.evaluation import attack_images

    net = networks[""]
    device = next(net.parameters(), x).device
    images, about = read_images(options, x)
    with explain_memory_errors(options.batch_size):
        evaluation = attack_images(
            net, x.to(device), y.to(device), attack_names(options), options.out,
            surrogates=networks, images=images, eps=eps, norm=options.norm, seed=options.seed,
            batch_size=options.batch_size, search=options.search,
            precision=options.search_precision)  # fmt: skip
    evaluation.about |= about
    return evaluation


def read_images(
    options: EvaluateOptions, x: Tensor
) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:
    """Return the adversarial examples of a file by digits of its sha256, and which file that is."""
    from bench.execution.adversarial_file import read_examples
    from bench.system.files import sha256_of_file

    if not options.images:
        return {}, {}
    images = read_examples(options.images, tuple(x.shape[1:]))
    if len(images) != len(x):
        remedy = "" if len(images) > len(x) else f": --limit-test {len(images)} takes the first"
        counts = f"{len(images)} images for {len(x)} test images"
        raise UsageError(f"{str(options.images)!r} holds {counts}{remedy}")
    sha256 = sha256_of_file(options.images)
    about = {"images": {"file": str(options.images), "sha256": sha256}}
    # Only now: a file of a few bytes can hold a view with more images than memory.
    return {sha256[:IMAGES_DIGITS]: images.float()}, about


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


def describe_surrogate(options: EvaluateOptions, release: Release) -> Release:
    """Return the network that the options describe beside the attacked one."""
    from bench.teachers.releases import Release, check_description

    arch, mean, std = options.surrogate_arch, options.surrogate_mean, options.surrogate_std
    request = Release("surrogate", release.dataset, arch or release.arch, mean=mean, std=std)
    try:
        return check_description(request)
    except UsageError as error:
        raise UsageError(f"{error} (of the surrogate)") from error


def attack_names(options: EvaluateOptions) -> Sequence[str]:
    """Return the attacks.

    Raise UsageError for unknown ones, and where `--surrogate` and the attacks disagree.
    """
    from attacks import catalog
    from bench.execution.plan import split_names

    default_attacks = () if options.images else DEFAULT_ATTACKS[options.norm]
    attacks = split_names(options.attacks) or default_attacks
    for name in catalog.expand_names(attacks):
        base, at, surrogate = name.partition("@")
        if base not in catalog.ATTACKS and name not in catalog.CONTROLS:
            raise unknown_name("attack", name, [*catalog.ATTACKS, "corruptions", *catalog.CONTROLS])
        if at and (surrogate != "surrogate" or not options.surrogate):
            raise UsageError(f"{name}: write {base}@surrogate and give the file with --surrogate")
    described = options.surrogate_arch or options.surrogate_mean or options.surrogate_std
    has_surrogate = options.surrogate or described
    if has_surrogate and not any("@" in name for name in attacks):
        advice = "name one with --attacks"
        raise UsageError(f"--surrogate is for attacks such as pgd20@surrogate: {advice}")
    return attacks


def choose_eps(options: EvaluateOptions, default: float) -> float:
    """Return the radius, in l-inf a default. Raises UsageError for one out of range."""
    limit, rule = 1.0, "between 0 and 1, in pixels of [0, 1], such as 8/255 = 0.03137"
    if options.norm == "L2":
        default, limit, rule = DEFAULT_EPS_L2, math.inf, "at least 0, in pixels of [0, 1]"
    eps = default if options.eps is None else options.eps
    if not 0 <= eps <= limit:
        raise UsageError(f"--eps {eps}: {rule}")
    return eps


def check_options(options: EvaluateOptions) -> None:
    """Raise UsageError for attacks, a seed, a batch size or a file for verdicts of no use."""
    from attacks.verdict_file import is_verdict_file

    attack_names(options)
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
