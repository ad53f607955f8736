"""Runs named attacks and decides, image by image, what is still classified correctly."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchattacks
from torch import Tensor, nn

from attacks.build import build, check
from attacks.catalog import ATTACKS
from attacks.view import View, frozen

Progress = Callable[[str, int, int], None]


@dataclass
class Cost:
    """What an attack took: wall-clock seconds, and images passed forwards and backwards through the model."""

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0


@dataclass
class Evaluation:
    """Verdicts, (N,) bool on the CPU, True where the image is still classified correctly, and what each attack took."""

    clean: Tensor
    robust: dict[str, Tensor] = field(default_factory=dict)
    cost: dict[str, Cost] = field(default_factory=dict)

    @property
    def worst(self) -> Tensor:
        """Correct under every attack that was run, and clean."""
        return torch.stack([self.clean, *self.robust.values()]).all(dim=0)

    def accuracy(self) -> dict[str, float]:
        """Share of correct images by attack, with `clean` and `worst`."""
        verdicts = {"clean": self.clean, **self.robust, "worst": self.worst}
        return {name: verdict.float().mean().item() for name, verdict in verdicts.items()}


def evaluate(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Iterable[str] = ("aa",),
    *,
    eps: float = 8 / 255,
    seed: int = 0,
    batch_size: int = 250,
    record: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Attacks `net`, any module that returns logits (N, K) for images x: (N, C, H, W) in [0, 1] with labels y: (N,).

    eps: l-inf radius in pixel units. Each named attack starts from all correctly classified images; inside a name, each
    component gets what the one before left, in consecutive batches of `batch_size`, as the official AutoAttack does;
    every batch starts from `seed`. An adversarial image counts only if it lies in the ball and in [0, 1] and a fresh
    forward pass of the untouched model misclassifies it. `net`, its modes, its gradients and the global random state
    are left as they were. With `record` (an .npz file), verdicts are written after each attack and found again.

    Raises ValueError for what cannot be evaluated; eps = 0 gives the clean verdict.
    """
    chosen = list(attacks)
    with isolated(seed):
        judge = frozen(net)
        setting = Setting(eps, seed, batch_size, _check(judge, x, y, chosen, eps, batch_size))
        known = Evaluation(_correct(judge, x, y, batch_size).cpu())
        key = _fingerprint(judge, x, y, setting)
        if record:
            record.parent.mkdir(parents=True, exist_ok=True)
            _restore(record, key, known)
        for name in chosen:
            if name in known.robust:
                continue
            view = View(net, x[:2])
            start = time.perf_counter()
            known.robust[name] = _attack(name, view, judge, x, y, known.clean, setting, progress)
            known.cost[name] = Cost(time.perf_counter() - start, view.forwards, view.backwards)
            if record:
                _save(record, key, known)
    return Evaluation(
        known.clean, {name: known.robust[name] for name in chosen}, {name: known.cost[name] for name in chosen}
    )


@dataclass(frozen=True)
class Setting:
    """What every attack of one evaluation shares."""

    eps: float
    seed: int
    batch_size: int
    num_classes: int


def _attack(
    name: str,
    view: View,
    judge: nn.Module,
    x: Tensor,
    y: Tensor,
    clean: Tensor,
    setting: Setting,
    progress: Progress | None,
) -> Tensor:
    """Verdicts (N,) after one named attack on the correctly classified images."""
    standing = clean.clone()
    if setting.eps == 0:
        return standing
    for part in ATTACKS[name]:
        attack = build(part, view, setting.eps, setting.num_classes, setting.seed)
        left = standing.nonzero().squeeze(1)
        for done in range(0, len(left), setting.batch_size):
            if progress:
                progress(f"{name} {part.kind}" if len(ATTACKS[name]) > 1 else name, done, len(left))
            rows = left[done : done + setting.batch_size].to(x.device)
            images, labels = x[rows], y[rows]
            with isolated(setting.seed):
                adv = attack(images, labels)
            standing[rows.cpu()] = ~_broken(judge, images, labels, adv, setting.eps, part.kind).cpu()
    return standing


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Gradients on, random state of every device seeded inside and restored outside."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        yield


def _broken(judge: nn.Module, x: Tensor, y: Tensor, adv: Tensor, eps: float, kind: str) -> Tensor:
    """Which adversarial images are misclassified. Raises RuntimeError if one is not an image of the ball."""
    adv = adv.detach()
    outside = (adv - x).abs().amax() > eps + 1e-6 or adv.amin() < 0 or adv.amax() > 1 or not adv.isfinite().all()
    if outside:
        raise RuntimeError(f"{kind} returned images outside the ball of {eps:.6g} or outside [0, 1]")
    return _predict(judge, adv) != y


@torch.no_grad()
def _predict(judge: nn.Module, x: Tensor) -> Tensor:
    """Classes (N,). Raises ValueError for what is not finite logits (N, K): no verdict can come from NaN."""
    logits: Tensor = judge(x)
    if logits.ndim != 2 or len(logits) != len(x) or not logits.isfinite().all():
        raise ValueError(f"the model must return finite logits (N, K), not {tuple(logits.shape)} or NaN")
    return logits.argmax(dim=1)


def _check(judge: nn.Module, x: Tensor, y: Tensor, chosen: list[str], eps: float, batch_size: int) -> int:
    """Number of classes; raises ValueError naming the value that cannot be used."""
    missing = [name for name in chosen if name not in ATTACKS]
    if missing:
        raise ValueError(f"unknown attack {missing[0]!r}: choose from {', '.join(ATTACKS)}")
    if not 0 <= eps <= 1:
        raise ValueError(f"eps = {eps} is outside [0, 1]")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: at least 1")
    if not len(x) or y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(f"{len(x)} images need as many int64 labels (N,), these are {tuple(y.shape)} {y.dtype}")
    if x.dtype != torch.float32 or not (x.amin() >= 0 and x.amax() <= 1):  # false for NaN too
        raise ValueError(f"images must be float32 in [0, 1], these are {x.dtype} in [{x.amin():.3g}, {x.amax():.3g}]")
    _predict(judge, x[:2])
    with torch.no_grad():
        classes: int = judge(x[:2]).shape[1]
    if y.amin() < 0 or y.amax() >= classes:
        raise ValueError(f"labels go from {y.amin()} to {y.amax()}, the model has {classes} outputs")
    for part in (part for name in chosen for part in ATTACKS[name]):
        check(part, classes)
    return classes


def _correct(judge: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    return torch.cat([_predict(judge, images) for images in torch.split(x, batch_size)]) == y


def _fingerprint(judge: nn.Module, x: Tensor, y: Tensor, setting: Setting) -> str:
    """Identifies model, data, attacks and settings, so that verdicts of something else are never taken for these.

    The logits stand for what tensors do not tell: activations, constants, the order of the layers.
    """
    digest = hashlib.sha256(repr((setting, ATTACKS, torchattacks.__version__)).encode())
    with torch.no_grad():
        logits = judge(x[:8])
    for tensor in (*judge.state_dict().values(), logits, x, y):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save(record: Path, key: str, result: Evaluation) -> None:
    """Writes atomically: verdicts as one array each, costs as JSON."""
    costs = json.dumps({name: vars(cost) for name, cost in result.cost.items()})
    arrays: dict[str, Any] = {f"robust_{name}": verdict.numpy() for name, verdict in result.robust.items()}
    part = record.with_name(record.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, key=key, costs=costs, clean=result.clean.numpy(), **arrays)
        file.flush()
        os.fsync(file.fileno())
    part.replace(record)


def is_record(path: Path) -> bool:
    """Whether a file holds verdicts, of whatever evaluation."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {"key", "costs", "clean"} <= set(saved)
    except Exception:  # a file of another kind fails in more ways than can be named
        return False


def _restore(record: Path, key: str, known: Evaluation) -> None:
    """Takes over what `record` holds of the same evaluation; a damaged or foreign file is ignored and replaced."""
    try:
        with np.load(record, allow_pickle=False) as saved:
            if str(saved["key"]) != key:
                return
            costs = {name: Cost(**cost) for name, cost in json.loads(str(saved["costs"])).items()}
            robust = {name: torch.from_numpy(saved[f"robust_{name}"]) for name in costs}
    except Exception:  # a damaged archive fails in more ways than can be named
        return
    known.cost.update(costs)
    known.robust.update(robust)
