"""Run named attacks and decide, image by image, which predictions are still correct.

Each named attack starts from all correctly classified images. Inside a name each component gets the
images that are robust to those before, in consecutive batches, as in the official AutoAttack, and
every batch starts from the same seed. An adversarial example counts only if it lies in the ball and
in [0, 1] and a fresh pass of the untouched model misclassifies it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.attacked_model import AttackedModel, frozen_copy, perturbation_norm
from attacks.build import build_attack
from attacks.catalog import (
    ATTACKS,
    CONTROLS,
    MINIMUM_NORM,
    Attack,
    attack_components,
    expand_names,
)
from attacks.corruptions import corrupt_images
from attacks.isolation import isolated_state
from attacks.request import (
    Settings,
    Target,
    check_model,
    check_request,
    copy_model,
    predict_classes,
)
from attacks.result import Cost, Evaluation
from attacks.sanity import probe_model, training_mode_flag
from attacks.verdict_file import evaluation_key, load_verdicts, save_verdicts

# Called with the attack's name, images done and images in all.
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
    """Attack `net`, which returns logits (N, K) for images x: (N, C, H, W) in [0, 1], labels y: (N,).

    `net`, its modes and gradients and the global random state are left as they are. eps = 0 gives
    the clean verdict, no images empty verdicts.

    Args:
        attacks: names of the catalogue. NAME@S makes adversarial examples on `surrogates[S]`.
            "corruptions", or one such as noise-3, is a control outside the ball and outside `worst`.
        eps: radius in `norm` ("Linf" or "L2"), in pixel units.
        probes: images for the sanity flags; 0 omits them.
        record: .npz file. Verdicts are saved after each attack and reused by the same evaluation.

    Raises:
        ValueError: the request or the model cannot be evaluated.
    """
    chosen = expand_names(attacks)
    used = _used_surrogates(chosen, surrogates or {})
    x, settings = x.detach().contiguous(), Settings(eps, norm, seed, batch_size)
    check_request(chosen, used, x, y, settings, probes)
    with isolated_state(seed):
        target = Target(net, copy_model(net), used)
        if not len(x):
            return _empty_evaluation(chosen)
        num_classes = check_model(target, x, y, chosen, settings)
        settings = replace(settings, num_classes=num_classes)
        run = _Run(target, x, y, settings, record, progress)
        run.run_attacks(chosen)
        run.run_probes(probes)
    return run.result.select_attacks(chosen)


def _used_surrogates(
    chosen: list[str], surrogates: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    names = sorted({name.partition("@")[2] for name in chosen})
    return {name: surrogates[name] for name in names if surrogates.get(name) is not None}


def _empty_evaluation(chosen: list[str]) -> Evaluation:
    no_images = torch.zeros(0, dtype=torch.bool)
    result = Evaluation(no_images)
    for name in chosen:
        if name in CONTROLS:
            result.control[name] = no_images
        else:
            result.robust[name], result.cost[name] = no_images, Cost()
    return result


class _Run:
    """An evaluation in progress: its target, images and settings, and the verdicts so far."""

    def __init__(
        self,
        target: Target,
        x: Tensor,
        y: Tensor,
        settings: Settings,
        record: Path | None,
        progress: Progress | None,
    ) -> None:
        self.target, self.x, self.y = target, x, y
        self.settings, self.progress = settings, progress
        self.attacked_models: dict[nn.Module, AttackedModel] = {}
        with isolated_state(settings.seed):
            classes = [
                predict_classes(target.reference_model, images)
                for images in x.split(settings.batch_size)
            ]
        self.result = Evaluation((torch.cat(classes) == y).cpu())
        self.record, self.key = record, ""
        if record is not None:
            self._open_verdict_file(record)

    def _open_verdict_file(self, record: Path) -> None:
        networks = {"": self.target.reference_model}
        for name, surrogate in self.target.surrogates.items():
            networks[name] = frozen_copy(surrogate)
        self.key = evaluation_key(networks, self.x, self.y, vars(self.settings))
        record.parent.mkdir(parents=True, exist_ok=True)
        load_verdicts(record, self.key, self.result)
        # A file that cannot be written is an error now, not after hours of attacks.
        self._save()

    def _save(self) -> None:
        if self.record is not None:
            save_verdicts(self.record, self.key, self.result)

    def run_attacks(self, chosen: list[str]) -> None:
        """Run the attacks and controls that have no verdict yet."""
        for name in chosen:
            if name in self.result.robust or name in self.result.control:
                continue
            if name in CONTROLS:
                self.result.control[name] = self._run_corruption(name)
            else:
                self.result.robust[name], self.result.cost[name] = self._run_attack(name)
            self._save()

    def run_probes(self, probes: int) -> None:
        """Raise the sanity flags, on the first `probes` images."""
        if not probes:
            return
        if self.result.probed != probes:
            model = self._copy_attacked_model(self.target.net)
            x, y = self.x[:probes], self.y[:probes]
            self.result.flags = probe_model(model, x, y, self.settings)
            self.result.probed = probes
            self._save()
        # Never from the file: it does not hold the modes of the caller's model.
        self.result.flags |= training_mode_flag(
            self.target.net, self.target.reference_model, self.x[:8], self.settings
        )

    def _copy_attacked_model(self, source: nn.Module) -> AttackedModel:
        # Folding a model takes longer than copying a folded one.
        if source not in self.attacked_models:
            self.attacked_models[source] = AttackedModel(source, self.x[:2])
        return copy.deepcopy(self.attacked_models[source])

    def _run_corruption(self, name: str) -> Tensor:
        """Return which of all images are classified correctly under a corruption: (N,)."""
        kind, severity = CONTROLS[name]
        classes = []
        with isolated_state(self.settings.seed):
            for images in self.x.split(self.settings.batch_size):
                corrupted = corrupt_images(images, kind, severity)
                classes.append(predict_classes(self.target.reference_model, corrupted))
        return (torch.cat(classes) == self.y).cpu()

    def _run_attack(self, name: str) -> tuple[Tensor, Cost]:
        """Return the verdicts (N,) of one named attack, and its cost."""
        model = self._copy_attacked_model(self.target.source(name))
        start = time.perf_counter()
        base = name.partition("@")[0]
        components = attack_components(base, self.settings.num_classes)
        robust = self.result.clean.clone()
        fooled: dict[str, int] = {}
        for component in components if self.settings.eps else ():
            kind = component.kind
            label = f"{name} {kind}" if len(ATTACKS[base]) > 1 else name
            before = int(robust.sum())
            self._run_component(component, model, label, robust)
            fooled[kind] = fooled.get(kind, 0) + before - int(robust.sum())
        seconds = time.perf_counter() - start
        device = str(self.x.device)
        return robust, Cost(seconds, model.forwards, model.backwards, fooled, device)

    def _run_component(
        self, component: Attack, model: AttackedModel, label: str, robust: Tensor
    ) -> None:
        """Run one component on the `robust` images: (N,), which it updates."""
        eps, norm, seed = self.settings.eps, self.settings.norm, self.settings.seed
        batch_size, num_classes = self.settings.batch_size, self.settings.num_classes
        attack = build_attack(component, model, eps, num_classes, seed, norm, batch_size)
        rows = robust.nonzero().squeeze(1)
        for done in range(0, len(rows), batch_size):
            if self.progress:
                self.progress(label, done, len(rows))
            batch = rows[done : done + batch_size].to(self.x.device)
            images, labels = self.x[batch], self.y[batch]
            with isolated_state(seed):
                adv = attack(images, labels).detach()
                fooled = self._verify(images, labels, adv, component)
            robust[batch.cpu()] = ~fooled.cpu()

    def _verify(self, x: Tensor, y: Tensor, adv: Tensor, component: Attack) -> Tensor:
        """Return which adversarial examples are misclassified.

        Raises:
            RuntimeError: one is not an image of the ball. A minimum-norm attack may leave the ball:
                that image does not count.
        """
        eps, norm, kind = self.settings.eps, self.settings.norm, component.kind
        # Written so that NaN is outside too.
        inside = perturbation_norm(adv - x, norm) <= eps * (1 + 1e-5) + 1e-6
        if kind in MINIMUM_NORM:
            adv = torch.where(inside.view(-1, 1, 1, 1), adv, x)
        elif adv.isnan().any():
            raise RuntimeError(
                f"{kind} returned NaN: the model's gradient is not finite where its logits are"
            )
        elif not inside.all() or adv.amin() < 0 or adv.amax() > 1:
            raise RuntimeError(
                f"{kind} returned images outside the ball of {eps:.6g} ({norm}) or outside [0, 1]"
            )
        return predict_classes(self.target.reference_model, adv) != y
