"""Runs named attacks and decides, image by image, what is still classified correctly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks import sanity
from attacks.build import build, check
from attacks.catalog import ATTACKS, CONTROLS, SEARCHING, Attack, components, expand, transfers
from attacks.corruptions import corrupt
from attacks.record import fingerprint, restore, save
from attacks.result import Cost, Evaluation
from attacks.view import View, frozen, size

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setting:
    """What every attack of one evaluation shares."""

    eps: float
    norm: str
    seed: int
    batch_size: int
    num_classes: int = 0


@dataclass(frozen=True)
class Target:
    """The model under attack, and where adversarial images for it come from."""

    net: nn.Module
    judge: nn.Module  # a frozen copy, in full precision: the only one whose verdict counts
    surrogates: Mapping[str, nn.Module] = field(default_factory=dict)

    def source(self, name: str) -> nn.Module:
        """The network that an attack of this name climbs on."""
        return self.surrogates[name.partition("@")[2]] if "@" in name else self.net


def evaluate(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Iterable[str] = ("aa",),
    *,
    eps: float = 8 / 255,
    norm: str = "Linf",
    seed: int = 0,
    batch_size: int = 250,
    surrogates: Mapping[str, nn.Module] | None = None,
    probes: int = 64,
    record: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Attacks `net`, any module that returns logits (N, K) for images x: (N, C, H, W) in [0, 1] with labels y: (N,).

    attacks: names of the catalogue; NAME@S makes the images on `surrogates[S]`; "corruptions" and its parts such as
    noise-3 are controls, which leave the ball and stay out of `worst`. eps: radius in `norm` ("Linf" or "L2"), in pixel
    units. Each named attack starts from all correctly classified images; inside a name, each component gets what the
    one before left, in consecutive batches of `batch_size`, as the official AutoAttack does; every batch starts from
    `seed`. An adversarial image counts only if it lies in the ball and in [0, 1] and a fresh forward pass of the
    untouched model misclassifies it. `net`, its modes, its gradients and the global random state are left as they were.
    probes: images for the sanity flags, which say why the numbers may not be believed; 0 leaves them out. With
    `record` (an .npz file), verdicts are written after each attack and found again.

    Raises ValueError for what cannot be evaluated; eps = 0 gives the clean verdict, no images empty verdicts.
    """
    chosen, setting = expand(attacks), Setting(eps, norm, seed, batch_size)
    with isolated(seed):
        target = Target(net, frozen(net), surrogates or {})
        setting = replace(setting, num_classes=_check(target, x, y, chosen, setting))
        if not len(x):
            none = torch.zeros(0, dtype=torch.bool)
            return Evaluation(none, dict.fromkeys(chosen, none))
        known = Evaluation(_correct(target.judge, x, y, batch_size).cpu())
        networks = [target.judge, *(frozen(target.surrogates[name]) for name in sorted(target.surrogates))]
        key = fingerprint(networks, x, y, {**vars(setting), "probes": probes})
        if record:
            record.parent.mkdir(parents=True, exist_ok=True)
            restore(record, key, known)
        for name in chosen:
            if name in known.robust or name in known.control:
                continue
            if name in CONTROLS:
                known.control[name] = _corrupted(name, target.judge, x, y, setting)
            else:
                known.robust[name], known.cost[name] = _attack(name, target, x, y, known.clean, setting, progress)
            if record:
                save(record, key, known)
        if probes and not known.probed:
            view = View(net, x[:2])
            known.flags = sanity.training_mode(net) | sanity.probe(view, x[:probes], y[:probes], setting)
            known.probed = True
            if record:
                save(record, key, known)
    return known.of(chosen)


def _attack(
    name: str, target: Target, x: Tensor, y: Tensor, clean: Tensor, setting: Setting, progress: Progress | None
) -> tuple[Tensor, Cost]:
    """Verdicts (N,) after one named attack on the correctly classified images, and what it took."""
    standing = clean.clone()
    base, start = name.partition("@")[0], time.perf_counter()
    view, broken = View(target.source(name), x[:2]), dict[str, int]()
    for part in components(base, setting.num_classes) if setting.eps else ():
        before = int(standing.sum())
        attack = build(part, view, setting.eps, setting.num_classes, setting.seed, setting.norm)
        left = standing.nonzero().squeeze(1)
        for done in range(0, len(left), setting.batch_size):
            if progress:
                progress(f"{name} {part.kind}" if len(ATTACKS[base]) > 1 else name, done, len(left))
            rows = left[done : done + setting.batch_size].to(x.device)
            images, labels = x[rows], y[rows]
            with isolated(setting.seed):
                adv = attack(images, labels).detach()
            standing[rows.cpu()] = ~_broken(target.judge, images, labels, adv, setting, part).cpu()
        broken[part.kind] = before - int(standing.sum())
    seconds = time.perf_counter() - start
    return standing, Cost(seconds, view.forwards, view.backwards, broken, str(x.device))


def _corrupted(name: str, judge: nn.Module, x: Tensor, y: Tensor, setting: Setting) -> Tensor:
    """Which of all images are classified correctly under a corruption: (N,)."""
    with isolated(setting.seed):
        parts = [
            _predict(judge, corrupt(images, *CONTROLS[name])) == labels
            for images, labels in zip(
                torch.split(x, setting.batch_size), torch.split(y, setting.batch_size), strict=True
            )
        ]
    return torch.cat(parts).cpu()


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Gradients on, random state of every device seeded inside and restored outside."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        yield


def _broken(judge: nn.Module, x: Tensor, y: Tensor, adv: Tensor, setting: Setting, part: Attack) -> Tensor:
    """Which adversarial images are misclassified. Raises RuntimeError if one is not an image of the ball.

    From an attack that looks for the nearest one, an image outside the ball is no error and does not count.
    """
    outside = ~(size(adv - x, setting.norm) <= setting.eps * (1 + 1e-5) + 1e-6)  # true for NaN too
    if part.kind in SEARCHING:
        adv = torch.where(outside.view(-1, *[1] * (x.ndim - 1)), x, adv)
    elif outside.any() or adv.amin() < 0 or adv.amax() > 1:
        raise RuntimeError(
            f"{part.kind} returned images outside the ball of {setting.eps:.6g} ({setting.norm}) or outside [0, 1]"
        )
    return _predict(judge, adv) != y


@torch.no_grad()
def _predict(judge: nn.Module, x: Tensor) -> Tensor:
    """Classes (N,). Raises ValueError for what is not finite logits (N, K): no verdict can come from NaN."""
    logits: Tensor = judge(x)
    if logits.ndim != 2 or len(logits) != len(x) or not logits.isfinite().all():
        raise ValueError(f"the model must return finite logits (N, K), not {tuple(logits.shape)} or NaN")
    return logits.argmax(dim=1)


def _check(target: Target, x: Tensor, y: Tensor, chosen: list[str], setting: Setting) -> int:
    """Number of classes, 0 where there are no images; raises ValueError naming the value that cannot be used."""
    for name in chosen:
        _check_name(name, target.surrogates)
    if not 0 <= setting.eps <= (1 if setting.norm == "Linf" else float("inf")):
        raise ValueError(f"eps = {setting.eps} is {'negative or NaN' if setting.norm == 'L2' else 'outside [0, 1]'}")
    if setting.norm not in ("Linf", "L2"):
        raise ValueError(f"norm {setting.norm!r}: Linf or L2")
    if setting.batch_size < 1:
        raise ValueError(f"batch_size = {setting.batch_size}: at least 1")
    if not len(x):
        return 0
    if y.shape != x.shape[:1] or x.ndim < 2 or y.dtype != torch.int64:
        raise ValueError(f"{len(x)} images need as many int64 labels (N,), these are {tuple(y.shape)} {y.dtype}")
    if x.dtype != torch.float32 or not (x.amin() >= 0 and x.amax() <= 1):  # false for NaN too
        raise ValueError(f"images must be float32 in [0, 1], these are {x.dtype} in [{x.amin():.3g}, {x.amax():.3g}]")
    _predict(target.judge, x[:2])
    with torch.no_grad():
        classes: int = target.judge(x[:2]).shape[1]
    if y.amin() < 0 or y.amax() >= classes:
        raise ValueError(f"labels go from {y.amin()} to {y.amax()}, the model has {classes} outputs")
    if classes < 2:
        raise ValueError("the model has a single output: there is no other class to be taken for")
    for name in chosen:
        for part in () if name in CONTROLS else components(name.partition("@")[0], classes):
            check(part, setting.norm, tuple(x.shape[2:]))
    return classes


def _check_name(name: str, surrogates: Mapping[str, nn.Module]) -> None:
    """Raises ValueError for an attack that does not exist or cannot be transferred."""
    base, at, surrogate = name.partition("@")
    if base not in ATTACKS and name not in CONTROLS:
        raise ValueError(f"unknown attack {name!r}: choose from {', '.join(ATTACKS)}, corruptions")
    if at and surrogate not in surrogates:
        raise ValueError(f"{name}: there is no surrogate {surrogate!r}, only {', '.join(surrogates) or 'none'}")
    if at and not transfers(base):
        able = ", ".join(filter(transfers, ATTACKS))
        raise ValueError(f"{name}: {base} stops where the surrogate is fooled; these transfer: {able}")


def _correct(judge: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    return torch.cat([_predict(judge, images) for images in torch.split(x, batch_size)]) == y
