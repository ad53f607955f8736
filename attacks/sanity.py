"""Sanity flags: signs that a model hides its gradients or that an evaluation cannot be believed.

Each test is small and states its threshold. They follow Athalye et al. 2018 ("Obfuscated
gradients"), Carlini et al. 2019 ("On evaluating adversarial robustness") and the checks of the
official AutoAttack.
A flag does not say that the model is not robust: it says that the numbers do not show it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.attacked_model import AttackedModel, perturbation_norm
from attacks.build import REFERENCE_EPS, Settings, build_attack
from attacks.catalog import Attack
from attacks.components.margin_attacks import logit_margin
from attacks.folding import input_gradient
from attacks.isolation import isolated_state
from attacks.request import largest_eps
from attacks.result import Flag

Flags = Iterator[Flag]
Loss = Callable[[Tensor, Tensor], Tensor]


def training_mode_flag(
    net: nn.Module, reference_model: nn.Module, x: Tensor, settings: Settings
) -> dict[str, str]:
    """Flag a model in training mode whose logits differ from the evaluated ones, of eval mode."""
    if not any(module.training for module in net.modules()):
        return {}
    outputs = []
    for model in (copy.deepcopy(net), reference_model):
        with isolated_state(settings.seed), torch.no_grad():
            try:
                outputs.append(model(x.clone()) + 0)
            # BatchNorm fails on a single image; other models return a tuple in training mode.
            except Exception as error:
                evidence = f"in the modes given the model fails: {type(error).__name__}"
                return {"training-mode": evidence}
    change = float((outputs[0] - outputs[1]).abs().max())
    if change > 1e-3:
        evidence = f"logits differ by {change:.2g} between the modes given and eval mode"
        return {"training-mode": evidence}
    return {}


def probe_model(model: AttackedModel, x: Tensor, y: Tensor, settings: Settings) -> dict[str, str]:
    """Return the flags of a model on a few images x: (n, C, H, W), labels y: (n,). Repeatable."""
    if not settings.eps:
        return {}
    net = model.reference_model
    with isolated_state(settings.seed):
        flags = dict(_output_flags(net, x, y))
        with torch.no_grad():
            correct = net(x).argmax(dim=1) == y
        if correct.any():
            total = len(x)
            x, y = x[correct], y[correct]
            flags |= _gradient_flags(net, x, y, settings)
            flags |= _attack_flags(_Probe(model, x, y, settings, total))
    return flags


def _output_flags(net: nn.Module, x: Tensor, y: Tensor) -> Flags:
    """Flag randomness, dependence on the batch, and probabilities instead of logits."""
    with torch.no_grad():
        passes = torch.stack([net(x) for _ in range(5)])
        single = torch.cat([net(image[None]) for image in x[:32]])
        batched = net(x[:32])
    logits, units = passes[0], F.normalize(passes, dim=2)
    spread = float((units[:, None] - units[None]).norm(dim=3).max())
    counts = (passes.argmax(dim=2) == y).sum(dim=1)
    change = float((batched - single).abs().max() / single.abs().max().clamp(min=1e-12))
    if spread > 1e-4 or counts.min() < counts.max():
        evidence = f"five passes differ by {spread:.2g} in unit logits; use aa_rand and eotpgd"
        yield "randomised-output", evidence
    elif change > 1e-3:
        evidence = f"logits of an image alone and in a batch differ by {change:.2g}, relatively"
        yield "batch-dependent-output", evidence
    in_unit_interval = logits.min() >= -1e-5 and logits.max() <= 1 + 1e-5
    if in_unit_interval and (logits.sum(dim=1) - 1).abs().max() < 1e-5:
        yield "softmax-output", "every output is a probability distribution, not logits"


def _gradient_flags(net: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Flags:
    """Flag gradients of zero or not finite for more than 1 % of the images, or unfaithful ones."""
    noise = settings.eps * (2 * torch.rand(x.shape, device=x.device) - 1)
    starts = {"the images": x, "random starts": (x + noise).clamp(0, 1)}
    for name, loss in LOSSES.items():
        for where, images in starts.items():
            gradient = _loss_gradient(net, images, y, loss).nan_to_num()
            largest = gradient.flatten(1).abs().amax(dim=1)
            zero = float((largest == 0).float().mean())
            if zero > 0.01:
                yield f"zero-gradient-{name}", f"{zero:.0%} at {where}"
    gradient = _loss_gradient(net, x, y, logit_margin)
    finite = float(gradient.isfinite().flatten(1).all(dim=1).float().mean())
    if finite < 0.99:
        evidence = f"NaN or inf in the gradients of {1 - finite:.0%} of the images"
        yield "gradient-not-finite", evidence
    yield from _faithfulness_flags(net, x, y, gradient.nan_to_num(), settings)


def _faithfulness_flags(
    net: nn.Module, x: Tensor, y: Tensor, gradient: Tensor, settings: Settings
) -> Flags:
    """Flag gradients of the margin that finite differences do not confirm.

    Along its own sign, where attacks go, it must have about the size of the difference. Along
    random signs it must be close, and is not if it omits some pixels or a branch of the network:
    the error is the root mean square over the signs, then the median over the images.
    """
    radius = settings.eps if settings.norm == "Linf" else settings.eps / x[0].numel() ** 0.5

    @torch.no_grad()
    def slope(direction: Tensor, step: float) -> Tensor:
        ahead, behind = net(x + step * direction), net(x - step * direction)
        return (logit_margin(ahead, y) - logit_margin(behind, y)) / (2 * step)

    expected = gradient.abs().flatten(1).sum(dim=1).clamp(min=1e-30)
    ratio = slope(gradient.sign(), radius / 8) / expected
    faithful = float(((ratio >= 0.5) & (ratio <= 2)).float().mean())
    if faithful < 0.8:
        evidence = f"finite differences confirm {faithful:.0%} of the gradients of the margin"
        yield "gradient-not-faithful", evidence
        return
    directions = [torch.randn(x.shape, device=x.device).sign() for _ in range(4)]
    predicted = torch.stack([(gradient * sign).flatten(1).sum(dim=1) for sign in directions])
    norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-30)
    errors = []
    # The long step meets more curvature, the short one more rounding: the better one counts.
    for step in (radius / 8, radius / 32):
        measured = torch.stack([slope(direction, step) for direction in directions])
        error = (predicted - measured).square().mean(dim=0).sqrt() / norm
        errors.append(float(error.median()))
    if min(errors) > 0.25:
        evidence = f"along random signs it is {min(errors):.0%} of its norm off finite differences"
        yield "gradient-not-faithful", evidence


@dataclass(frozen=True)
class _Score:
    """Result of a small attack. accuracy: of all probed images. fooled: (n,)."""

    accuracy: float
    loss: float
    fooled: Tensor


@dataclass(frozen=True)
class _Probe:
    """Small attacks on the correctly classified images x: (n, C, H, W) of `total` probed ones."""

    model: AttackedModel
    x: Tensor
    y: Tensor
    settings: Settings
    total: int

    def run(self, attack: Attack, eps: float | None = None) -> _Score:
        """Run an attack; eps: by default that of the evaluation."""
        settings = self.settings if eps is None else replace(self.settings, eps=eps)
        torch.manual_seed(settings.seed)
        adv = build_attack(attack, self.model, settings)(self.x, self.y).detach()
        with torch.no_grad():
            logits = self.model.reference_model(adv)
        fooled = logits.argmax(dim=1) != self.y
        loss = float(F.cross_entropy(logits, self.y))
        return _Score(int((~fooled).sum()) / self.total, loss, fooled)

    def run_noise(self) -> float:
        """Return the accuracy under one random perturbation of full size."""
        direction = torch.randn(self.x.shape, device=self.x.device)
        if self.settings.norm == "Linf":
            direction = direction.sign()
        else:
            direction = direction / perturbation_norm(direction, "L2").view(-1, 1, 1, 1)
        noisy = (self.x + self.settings.eps * direction).clamp(0, 1)
        with torch.no_grad():
            robust = self.model.reference_model(noisy).argmax(dim=1) == self.y
        return int(robust.sum()) / self.total

    @property
    def tolerance(self) -> float:
        """Accuracies differ if they are more than max(1 %, 2 images) apart."""
        return max(0.01, 2 / self.total) + 1e-6


def _attack_flags(probe: _Probe) -> Flags:
    """Flag small attacks whose accuracies are not in the expected order."""
    tolerance = probe.tolerance
    one_step = probe.run(_pgd(1))
    ten_steps = probe.run(_pgd(10))
    fifty_steps = probe.run(_pgd(50))
    margin = probe.run(Attack("cw", 20, 2 / 255))
    # After the attacks: the noise continues their random stream.
    noise = probe.run_noise()
    one, ten, fifty = one_step.accuracy, ten_steps.accuracy, fifty_steps.accuracy
    if one > noise + tolerance:
        yield "noise-beats-one-step", f"one step {one:.1%}, random noise {noise:.1%}"
    if ten > one + tolerance:
        yield "one-step-beats-many", f"1 step {one:.1%}, 10 steps {ten:.1%}"
    if fifty > ten + tolerance:
        yield "more-steps-weaker", f"10 steps {ten:.1%}, 50 steps {fifty:.1%}"
    if ten - fifty > tolerance + 0.02:
        yield "not-converged", f"10 steps {ten:.1%}, 50 steps {fifty:.1%}"
    if fifty - margin.accuracy > max(0.10, tolerance):
        evidence = (
            f"50 steps on the cross-entropy {fifty:.1%}, 20 on the margin {margin.accuracy:.1%}"
        )
        yield "cross-entropy-too-weak", evidence
    height, width = probe.x.shape[2:]
    if height == width >= 5:
        by_gradients = one_step.fooled | fifty_steps.fooled | margin.fooled
        square = probe.run(Attack("square", 200))
        count = int((square.fooled & ~by_gradients).sum())
        if count > max(0.002 * probe.total, 3):
            evidence = f"200 queries of Square broke {count} that no gradient had"
            yield "black-box-beats-white-box", evidence
    yield from _growth_flags(probe)


def _growth_flags(probe: _Probe) -> Flags:
    """Flag a larger ball that does not give lower accuracy, in the end 0, and higher loss."""
    scores = {eps: probe.run(_pgd(20), eps) for eps in _probe_radii(probe)}
    for (small, lower), (large, higher) in pairwise(scores.items()):
        if higher.accuracy > lower.accuracy + probe.tolerance:
            change = f"{lower.accuracy:.1%}, eps {large:.3g}: {higher.accuracy:.1%}"
            yield "larger-eps-weaker", f"eps {small:.3g}: {change}"
        # Once all images are fooled, an attack has no loss left to raise.
        if higher.loss < 0.99 * lower.loss and higher.accuracy > 0:
            change = f"{lower.loss:.3g}, eps {large:.3g}: {higher.loss:.3g}"
            yield "larger-eps-lower-loss", f"eps {small:.3g}: {change}"
    least = min(score.accuracy for score in scores.values())
    if least > probe.tolerance / 2:
        yield "unbounded-attack-fails", f"{least:.1%} stand at eps {max(scores):.3g}"


def _probe_radii(probe: _Probe) -> list[float]:
    """Return radii from a quarter of eps to the whole cube."""
    largest = largest_eps(probe.x, probe.settings.norm)
    radii = [factor * probe.settings.eps for factor in (0.25, 1.0, 4.0)]
    return [radius for radius in radii if radius < largest / 2] + [largest / 2, largest]


def _pgd(steps: int) -> Attack:
    """PGD; a single step is as large as the ball."""
    return Attack("pgd", steps, REFERENCE_EPS if steps == 1 else 2 / 255)


def _loss_gradient(net: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    gradient = input_gradient(net, x, lambda logits: loss(logits, y))
    return torch.zeros_like(x) if gradient is None else gradient


def _cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


LOSSES: dict[str, Loss] = {"cross-entropy": _cross_entropies, "margin": logit_margin}
