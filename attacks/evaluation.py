"""Runs named attacks and decides, image by image, what is still classified correctly."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks import sanity
from attacks.build import build
from attacks.catalog import ATTACKS, CONTROLS, SEARCHING, Attack, components, expand
from attacks.corruptions import corrupt
from attacks.isolation import isolated
from attacks.record import fingerprint, restore, save
from attacks.request import Setting, Target, check_model, check_request, predict, private
from attacks.result import Cost, Evaluation
from attacks.view import View, frozen, size

Progress = Callable[[str, int, int], None]


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
    `record` (an .npz file), verdicts are written after each attack and found again; other evaluations need other files.

    Raises ValueError for what cannot be evaluated; eps = 0 gives the clean verdict, no images empty verdicts.
    """
    chosen, setting, x = (
        expand(attacks),
        Setting(eps, norm, seed, batch_size),
        x.detach().contiguous(),
    )
    used = {
        name: (surrogates or {}).get(name)
        for name in sorted({name.partition("@")[2] for name in chosen} - {""})
    }
    check_request(chosen, used, x, y, setting, probes)
    with isolated(seed):
        target = Target(
            net, private(net), {name: other for name, other in used.items() if other is not None}
        )
        if not len(x):
            return _empty(chosen)
        setting = replace(setting, num_classes=check_model(target, x, y, chosen, setting))
        known = Evaluation(_correct(target.judge, x, y, setting).cpu())
        keep = _recorded(record, target, x, y, setting, known)
        seen = cache(
            lambda source: View(source, x[:2])
        )  # folding takes longer than copying what was folded
        for name in chosen:
            if name in known.robust or name in known.control:
                continue
            if name in CONTROLS:
                known.control[name] = _corrupted(name, target.judge, x, y, setting)
            else:
                known.robust[name], known.cost[name] = _attack(
                    name,
                    target,
                    copy.deepcopy(seen(target.source(name))),
                    x,
                    y,
                    known.clean,
                    setting,
                    progress,
                )
            keep()
        if probes and known.probed != probes:
            known.flags = sanity.probe(copy.deepcopy(seen(net)), x[:probes], y[:probes], setting)
            known.probed = probes
            keep()
        if (
            probes
        ):  # never from the record, which does not tell the modes that the model was handed over in
            known.flags |= sanity.training_mode(net, target.judge, x[:8], setting)
    return known.of(chosen)


def _recorded(
    record: Path | None, target: Target, x: Tensor, y: Tensor, setting: Setting, known: Evaluation
) -> Callable[[], None]:
    """Takes over what `record` holds into `known`; returns what writes `known` there. Raises as `restore` does."""
    if record is None:
        return lambda: None
    networks = {"": target.judge} | {
        name: frozen(other) for name, other in target.surrogates.items()
    }
    key = fingerprint(networks, x, y, vars(setting))
    record.parent.mkdir(parents=True, exist_ok=True)
    restore(record, key, known)
    keep = partial(save, record, key, known)
    keep()  # what cannot be written is told before hours of work
    return keep


def _attack(
    name: str,
    target: Target,
    view: View,
    x: Tensor,
    y: Tensor,
    clean: Tensor,
    setting: Setting,
    progress: Progress | None,
) -> tuple[Tensor, Cost]:
    """Verdicts (N,) after one named attack on the correctly classified images, and what it took."""
    standing = clean.clone()
    base, start = name.partition("@")[0], time.perf_counter()
    broken = dict[str, int]()
    for part in components(base, setting.num_classes) if setting.eps else ():
        before = int(standing.sum())
        attack = build(
            part,
            view,
            setting.eps,
            setting.num_classes,
            setting.seed,
            setting.norm,
            setting.batch_size,
        )
        left = standing.nonzero().squeeze(1)
        for done in range(0, len(left), setting.batch_size):
            if progress:
                progress(f"{name} {part.kind}" if len(ATTACKS[base]) > 1 else name, done, len(left))
            rows = left[done : done + setting.batch_size].to(x.device)
            images, labels = x[rows], y[rows]
            with isolated(setting.seed):
                adv = attack(images, labels).detach()
                standing[rows.cpu()] = ~_broken(
                    target.judge, images, labels, adv, setting, part
                ).cpu()
        broken[part.kind] = broken.get(part.kind, 0) + before - int(standing.sum())
    seconds = time.perf_counter() - start
    return standing, Cost(seconds, view.forwards, view.backwards, broken, str(x.device))


def _corrupted(name: str, judge: nn.Module, x: Tensor, y: Tensor, setting: Setting) -> Tensor:
    """Which of all images are classified correctly under a corruption: (N,)."""
    with isolated(setting.seed):
        parts = [
            predict(judge, corrupt(images, *CONTROLS[name])) == labels
            for images, labels in zip(
                torch.split(x, setting.batch_size), torch.split(y, setting.batch_size), strict=True
            )
        ]
    return torch.cat(parts).cpu()


def _broken(
    judge: nn.Module, x: Tensor, y: Tensor, adv: Tensor, setting: Setting, part: Attack
) -> Tensor:
    """Which adversarial images are misclassified. Raises RuntimeError if one is not an image of the ball.

    From an attack that looks for the nearest one, an image outside the ball is no error and does not count.
    """
    outside = ~(size(adv - x, setting.norm) <= setting.eps * (1 + 1e-5) + 1e-6)  # true for NaN too
    if part.kind in SEARCHING:
        adv = torch.where(outside.view(-1, *[1] * (x.ndim - 1)), x, adv)
    elif adv.isnan().any():
        raise RuntimeError(
            f"{part.kind} returned NaN: the model's gradient is not finite where its logits are"
        )
    elif outside.any() or adv.amin() < 0 or adv.amax() > 1:
        raise RuntimeError(
            f"{part.kind} returned images outside the ball of {setting.eps:.6g} ({setting.norm}) or outside [0, 1]"
        )
    return predict(judge, adv) != y


def _empty(chosen: list[str]) -> Evaluation:
    none = torch.zeros(0, dtype=torch.bool)
    robust = [name for name in chosen if name not in CONTROLS]
    controls = [name for name in chosen if name in CONTROLS]
    costs = {name: Cost() for name in robust}
    return Evaluation(none, dict.fromkeys(robust, none), dict.fromkeys(controls, none), costs)


def _correct(judge: nn.Module, x: Tensor, y: Tensor, setting: Setting) -> Tensor:
    with isolated(setting.seed):
        return (
            torch.cat([predict(judge, images) for images in torch.split(x, setting.batch_size)])
            == y
        )
