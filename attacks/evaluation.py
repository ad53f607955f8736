"""Run named attacks and decide, image by image, which predictions are still correct.

Each named attack starts from all correctly classified images. Inside a name each component gets the
images that are robust to those before, in consecutive batches, as in the official AutoAttack, and
every batch starts from the same seed. An adversarial example counts only if it lies in the ball and
in [0, 1] and a fresh pass of the untouched model misclassifies it. The model, its modes and
gradients and the global random state are left as they are.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.attacked_model import AttackedModel, frozen_copy, perturbation_norm
from attacks.build import Settings, build_attack
from attacks.catalog import ATTACKS, CONTROLS, MINIMUM_NORM, Attack, attack_components, expand_names
from attacks.corruptions import corrupt_images
from attacks.isolation import isolated_state
from attacks.request import (
    Surrogates,
    Target,
    check_model,
    check_request,
    copy_model,
    name_examples,
    predict_classes,
)
from attacks.result import Cost, Evaluation
from attacks.sanity import probe_model, training_mode_flag
from attacks.search.choice import AUTO, choose_search
from attacks.verdict_file import evaluation_key, load_verdicts, save_verdicts

# Called with the name of the attack, images done and images in all.
Progress = Callable[[str, int, int], None]
# Images in a pass of a device's search.
CUDA_SIZE, CPU_SIZE = 1024, 256
# Images that show whether the training mode changes the logits.
MODE_IMAGES = 8
# Images that show whether folding a model keeps its logits.
FOLDING_IMAGES = 2


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
    search: str = AUTO,
    precision: str = AUTO,
    surrogates: Mapping[str, nn.Module] | None = None,
    images: Mapping[str, Tensor] | None = None,
    probes: int = 64,
    record: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Attack a model with logits (N, K) for images x: (N, C, H, W) in [0, 1] with labels y: (N,).

    Args:
        attacks: names of the catalogue. NAME@S makes its images on `surrogates[S]`; "corruptions",
            or one such as noise-3, is a control outside the ball, no part of `worst`.
        images: adversarial examples of x that others made, by name, judged as `images@NAME`.
        eps: radius in `norm`, "Linf" or "L2", in pixel units; 0 gives the clean verdict.
        seed: of each batch. batch_size: of an official batch; both are in the verdict file's key.
        search: "exact", batch by batch; "device", in full passes; "auto": "device" on CUDA.
        precision: of a device's search: fp32, tf32, bf16 or auto. Verdicts are in fp32.
        probes: images for the sanity flags, 0 for none. progress: called before each batch.
        record: an .npz file of the verdicts so far, from which the same evaluation continues.
    Raises: ValueError for what cannot be evaluated, RuntimeError for an attack outside its ball.
    """
    chosen, (search, precision) = expand_names(attacks), choose_search(search, precision, x.device)
    settings = Settings(eps, norm, seed, batch_size, search=search, precision=precision)
    x, used = x.detach().contiguous(), _used_surrogates(chosen, surrogates or {})
    check_request(chosen, used, x, y, settings, probes)
    with isolated_state(seed):
        if not len(x):
            return _empty_evaluation(chosen)
        return _Evaluator(net, used, x, y, settings, chosen, progress).run(probes, record, images)


def _used_surrogates(
    chosen: list[str], surrogates: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    names = sorted({name.partition("@")[2] for name in chosen} - {""})
    return {name: surrogates[name] for name in names if surrogates.get(name) is not None}


def _empty_evaluation(chosen: list[str]) -> Evaluation:
    no_images = torch.zeros(0, dtype=torch.bool)
    robust = {name: no_images for name in chosen if name not in CONTROLS}
    control = {name: no_images for name in chosen if name in CONTROLS}
    return Evaluation(no_images, robust, control, {name: Cost() for name in robust})


class _Evaluator:
    """An evaluation in progress: its target, images and settings, and the verdicts so far."""

    def __init__(
        self,
        net: nn.Module,
        surrogates: Surrogates,
        x: Tensor,
        y: Tensor,
        settings: Settings,
        chosen: list[str],
        progress: Progress | None,
    ) -> None:
        self.target, self.x, self.y = Target(net, copy_model(net), surrogates), x, y
        self.chosen, self.progress = chosen, progress
        classes = check_model(self.target, x, y, chosen, settings.norm)
        self.settings = replace(settings, num_classes=classes)
        self.attacked_models: dict[nn.Module, AttackedModel] = {}
        # Of a device's search: refused candidates, and images in a pass as far as memory allows.
        self.refused, self.size = 0, CUDA_SIZE if x.is_cuda else CPU_SIZE
        self.record: Path | None = None
        self.key = ""
        predictions = self._predict(x)
        about = {"norm": settings.norm, "eps": settings.eps, "seed": settings.seed}
        self.result = Evaluation(
            (predictions == y).cpu(), predictions=predictions.cpu(), about=about
        )

    def _predict(self, x: Tensor, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the classes of images after a change of them: (N,)."""
        classes = []
        with isolated_state(self.settings.seed):
            for images in torch.split(x, self.settings.batch_size):
                images = change(images) if change else images
                classes.append(predict_classes(self.target.reference_model, images))
        return torch.cat(classes)

    def run(
        self, probes: int, record: Path | None, images: Mapping[str, Tensor] | None
    ) -> Evaluation:
        """Run what the verdict file `record` does not hold. Return the verdicts."""
        examples = name_examples(images or {}, self.x, self.settings)
        self._open_verdict_file(record)
        # Never from the file: two sets of examples may have one name.
        for name, adv in examples.items():
            self.result.robust[name] = (self._predict(adv) == self.y).cpu()
            self._save()
        self._run_attacks()
        self._run_probes(probes)
        # The file may hold other attacks too.
        return self.result.select_attacks([*examples, *self.chosen])

    def _open_verdict_file(self, record: Path | None) -> None:
        """Load the verdicts of a file and check that it can be written."""
        if record is None:
            return
        networks = {"": self.target.reference_model}
        for name, surrogate in self.target.surrogates.items():
            networks[name] = frozen_copy(surrogate)
        self.record = record
        self.key = evaluation_key(networks, self.x, self.y, self.settings.key)
        record.parent.mkdir(parents=True, exist_ok=True)
        load_verdicts(record, self.key, self.result)
        # Fail now, not after hours of attacks.
        self._save()

    def _save(self) -> None:
        if self.record is not None:
            save_verdicts(self.record, self.key, self.result)

    def _run_attacks(self) -> None:
        """Run the attacks and controls that have no verdict yet."""
        for name in self.chosen:
            if name in self.result.robust or name in self.result.control:
                continue
            if name in CONTROLS:
                kind, severity = CONTROLS[name]
                corrupt = partial(corrupt_images, kind=kind, severity=severity)
                self.result.control[name] = (self._predict(self.x, corrupt) == self.y).cpu()
            else:
                self._run_attack(name)
            self._save()

    def _run_probes(self, probes: int) -> None:
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
        net, reference_model = self.target.net, self.target.reference_model
        self.result.flags |= training_mode_flag(
            net, reference_model, self.x[:MODE_IMAGES], self.settings
        )

    def _copy_attacked_model(self, source: nn.Module) -> AttackedModel:
        # Folding a model takes longer than copying a folded one.
        if source not in self.attacked_models:
            self.attacked_models[source] = AttackedModel(source, self.x[:FOLDING_IMAGES])
        return copy.deepcopy(self.attacked_models[source])

    def _run_attack(self, name: str) -> None:
        """Store the verdicts of a named attack and its cost."""
        model = self._copy_attacked_model(self.target.source(name))
        start, base = time.perf_counter(), name.partition("@")[0]
        robust, fooled = self.result.clean.clone(), dict[str, int]()
        self.refused = 0
        components = attack_components(base, self.settings.num_classes)
        if not self.settings.eps:
            components = ()
        for component in components:
            label = f"{name} {component.kind}" if len(ATTACKS[base].components) > 1 else name
            before = int(robust.sum())
            self._run_component(component, model, label, robust)
            count = before - int(robust.sum())
            fooled[component.kind] = fooled.get(component.kind, 0) + count
        seconds, device = time.perf_counter() - start, str(self.x.device)
        self.result.robust[name] = robust
        passes = model.forwards, model.backwards
        self.result.cost[name] = Cost(seconds, *passes, fooled, device, self.refused)

    def _run_component(
        self, component: Attack, model: AttackedModel, label: str, robust: Tensor
    ) -> None:
        """Run one component on the `robust` images: (N,), which it updates."""
        rows = robust.nonzero().squeeze(1)
        if self.settings.search == "device":
            rows = self._search(component, model, label, rows, robust)
        attack, batch_size = build_attack(component, model, self.settings), self.settings.batch_size
        for done in range(0, len(rows), batch_size):
            if self.progress:
                self.progress(label, done, len(rows))
            batch = rows[done : done + batch_size].to(self.x.device)
            images, labels = self.x[batch], self.y[batch]
            with isolated_state(self.settings.seed):
                adv = attack(images, labels).detach()
                fooled = self._verify(images, labels, adv, component)
            robust[batch.cpu()] = ~fooled.cpu()

    def _search(
        self, component: Attack, model: AttackedModel, label: str, rows: Tensor, robust: Tensor
    ) -> Tensor:
        """Run a component on a device's search; return the rows that it says nothing about."""
        from attacks.search.run import can_search, search

        if not len(rows) or not can_search(component, model, self.settings):
            return rows
        batch, total = rows.to(self.x.device), len(rows)
        images, labels = self.x[batch], self.y[batch]

        def tick(done: int) -> None:
            if self.progress:
                self.progress(label, done, total)

        with isolated_state(self.settings.seed):
            result = search(component, model, images, labels, self.settings, self.size, tick)
            fooled = self._verify(images, labels, result.adv, component).cpu()
        robust[rows] = ~fooled
        self.refused, self.size = self.refused + result.refused, result.size
        if unstable := int((result.fooled & ~fooled).sum()):
            warnings.warn(
                f"{label}: {unstable} images fool in one pass, not in another", stacklevel=2
            )
        if result.unclear:
            reason = f"logits not finite in {self.settings.precision}, searched again in fp32"
            warnings.warn(f"{label}: {len(result.unclear)} images: {reason}", stacklevel=2)
        return rows[result.unclear]

    def _verify(self, x: Tensor, y: Tensor, adv: Tensor, component: Attack) -> Tensor:
        """Return which adversarial examples are misclassified: (B,).

        Raises RuntimeError if one is not an image of the ball. Minimum-norm attacks may leave the
        ball; there an image does not count.
        """
        eps, norm, kind = self.settings.eps, self.settings.norm, component.kind
        # False for NaN too.
        inside = perturbation_norm(adv - x, norm) <= self.settings.radius
        if kind in MINIMUM_NORM:
            adv = torch.where(inside.view(-1, 1, 1, 1), adv, x)
        elif adv.isnan().any():
            reason = "the model's gradient is not finite where its logits are"
            raise RuntimeError(f"{kind} returned NaN: {reason}")
        elif not inside.all() or adv.amin() < 0 or adv.amax() > 1:
            ball = f"the ball of {eps:.6g} ({norm})"
            raise RuntimeError(f"{kind} returned images outside {ball} or outside [0, 1]")
        return predict_classes(self.target.reference_model, adv) != y
