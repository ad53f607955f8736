"""Sanity flags: signs that a model hides its gradients or that an evaluation cannot be believed.

Each test is small and states its threshold; the literature it follows is Athalye et al. 2018 ("Obfuscated gradients"),
Carlini et al. 2019 ("On evaluating adversarial robustness") and the checks of the official AutoAttack. A flag does not say
that the model is not robust: it says that the numbers do not show it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.build import REFERENCE_EPS, build
from attacks.catalog import Attack
from attacks.components import margin
from attacks.isolation import isolated
from attacks.view import View, input_gradient, size

if TYPE_CHECKING:
    from attacks.request import Setting

Found = Iterator[tuple[str, str]]


def training_mode(net: nn.Module, judge: nn.Module, x: Tensor, setting: Setting) -> dict[str, str]:
    """A model handed over in training mode although that changes its logits; it is evaluated in eval mode."""
    if not any(module.training for module in net.modules()):
        return {}
    outputs = []
    for model in (copy.deepcopy(net), judge):
        with isolated(setting.seed), torch.no_grad():
            try:
                outputs.append(model(x.clone()) + 0)
            except (
                Exception
            ) as error:  # of one image, say, BatchNorm has no variance; others return a tuple then
                return {
                    "training-mode": f"in the modes given the model fails: {type(error).__name__}"
                }
    apart = float((outputs[0] - outputs[1]).abs().max())
    return (
        {"training-mode": f"logits differ by {apart:.2g} between the modes given and eval mode"}
        if apart > 1e-3
        else {}
    )


def probe(view: View, x: Tensor, y: Tensor, setting: Setting) -> dict[str, str]:
    """Flags of a model on a few images x: (n, C, H, W), labels y: (n,): name -> evidence. Repeatable."""
    if not setting.eps:
        return {}
    with isolated(setting.seed):
        flags = dict(_outputs(view.judge, x, y))
        with torch.no_grad():
            right = view.judge(x).argmax(dim=1) == y
        if right.any():
            flags |= _gradients(view.judge, x[right], y[right], setting)
            flags |= _attacks(view, x[right], y[right], setting, len(x))
    return flags


def _outputs(net: nn.Module, x: Tensor, y: Tensor) -> Found:
    """What can be told without gradients: randomness, dependence on the batch, probabilities instead of logits."""
    with torch.no_grad():
        passes = torch.stack([net(x) for _ in range(5)])
        alone = torch.cat([net(image[None]) for image in x[:32]])
        together = net(x[:32])
    logits, units = passes[0], F.normalize(passes, dim=2)
    spread = float((units[:, None] - units[None]).norm(dim=3).max())
    counts = (passes.argmax(dim=2) == y).sum(dim=1)
    if spread > 1e-4 or counts.min() < counts.max():
        yield (
            "randomised-output",
            f"five passes differ by {spread:.2g} in unit logits; use aa_rand and eotpgd",
        )
    else:
        off = float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-12))
        if off > 1e-3:
            yield (
                "batch-dependent-output",
                f"logits of an image alone and in a batch differ by {off:.2g}, relatively",
            )
    if (
        logits.min() >= -1e-5
        and logits.max() <= 1 + 1e-5
        and (logits.sum(dim=1) - 1).abs().max() < 1e-5
    ):
        yield "softmax-output", "every output is a probability distribution, not logits"


def _gradients(net: nn.Module, x: Tensor, y: Tensor, setting: Setting) -> Found:
    """Gradients of exactly zero for more than 1 % of the images, and gradients that finite differences do not confirm."""
    start = (x + setting.eps * (2 * torch.rand(x.shape, device=x.device) - 1)).clamp(0, 1)
    for name, loss in LOSSES.items():
        for where, images in (("the images", x), ("random starts", start)):
            largest = _gradient(net, images, y, loss).nan_to_num().flatten(1).abs().amax(dim=1)
            zero = float((largest == 0).float().mean())
            if zero > 0.01:
                yield f"zero-gradient-{name}", f"{zero:.0%} at {where}"
    gradient = _gradient(net, x, y, margin)
    finite = float(gradient.isfinite().flatten(1).all(dim=1).float().mean())
    if finite < 0.99:
        yield (
            "gradient-not-finite",
            f"NaN or inf in the gradients of {1 - finite:.0%} of the images",
        )
    yield from _faithful(net, x, y, gradient.nan_to_num(), setting)


def _faithful(net: nn.Module, x: Tensor, y: Tensor, gradient: Tensor, setting: Setting) -> Found:
    """Gradients of the margin that finite differences do not confirm.

    Along the gradient's own sign, where attacks go, it must have about the size of the difference. Along random signs it
    must be close to it, and is not where it leaves out some pixels or a branch of the network.
    """
    reach = setting.eps if setting.norm == "Linf" else setting.eps / x[0].numel() ** 0.5

    @torch.no_grad()
    def rise(way: Tensor, step: float) -> Tensor:
        return (margin(net(x + step * way), y) - margin(net(x - step * way), y)) / (2 * step)

    ratio = rise(gradient.sign(), reach / 8) / gradient.abs().flatten(1).sum(dim=1).clamp(min=1e-30)
    faithful = float(((ratio >= 0.5) & (ratio <= 2)).float().mean())
    if faithful < 0.8:
        yield (
            "gradient-not-faithful",
            f"finite differences confirm {faithful:.0%} of the gradients of the margin",
        )
        return
    ways = [torch.randn(x.shape, device=x.device).sign() for _ in range(4)]
    told = torch.stack([(gradient * way).flatten(1).sum(dim=1) for way in ways])

    def missed(step: float) -> float:
        """How far the gradient is off, relative to its norm: root mean square of the signs, median of the images."""
        differences = torch.stack([rise(way, step) for way in ways])
        scale = gradient.flatten(1).norm(dim=1).clamp(min=1e-30)
        return float(((told - differences).square().mean(dim=0).sqrt() / scale).median())

    off = min(
        missed(reach / 8), missed(reach / 32)
    )  # the long step bends more, the short one is nearer to rounding
    if off > 0.25:
        yield (
            "gradient-not-faithful",
            f"along random signs it is {off:.0%} of its norm off finite differences",
        )


def _attacks(view: View, x: Tensor, y: Tensor, setting: Setting, total: int) -> Found:
    """Small attacks on the correctly classified ones of `total` images that must stand in a known order.

    Two accuracies are taken for different when they are more than max(1 %, 2 images) apart.
    """
    few = max(0.01, 2 / total) + 1e-6

    def fooled(attack: Attack, eps: float = setting.eps) -> tuple[float, float, Tensor]:
        """Accuracy, mean cross-entropy and the images broken."""
        torch.manual_seed(setting.seed)
        adv = build(attack, view, eps, setting.num_classes, setting.seed, setting.norm)(
            x, y
        ).detach()
        with torch.no_grad():
            logits = view.judge(adv)
        wrong = logits.argmax(dim=1) != y
        return int((~wrong).sum()) / total, float(F.cross_entropy(logits, y)), wrong

    one, *_, one_wrong = fooled(_steps(1, setting.eps))
    ten, *_ = fooled(_steps(10))
    fifty, *_, wrong = fooled(_steps(50))
    by_margin, *_, margin_wrong = fooled(Attack("cw", 20, 2 / 255))
    noise = _corner(view.judge, x, y, setting) / total
    if one > noise + few:
        yield "noise-beats-one-step", f"one step {one:.1%}, random noise {noise:.1%}"
    if ten > one + few:
        yield "one-step-beats-many", f"1 step {one:.1%}, 10 steps {ten:.1%}"
    if fifty > ten + few:
        yield "more-steps-weaker", f"10 steps {ten:.1%}, 50 steps {fifty:.1%}"
    if ten - fifty > few + 0.02:
        yield "not-converged", f"10 steps {ten:.1%}, 50 steps {fifty:.1%}"
    if fifty - by_margin > max(0.10, few):
        yield (
            "cross-entropy-too-weak",
            f"50 steps on the cross-entropy {fifty:.1%}, 20 on the margin {by_margin:.1%}",
        )
    square = Attack("square", 200)
    possible = len(set(x.shape[2:])) == 1 and x.shape[2] >= 5
    alone = int((fooled(square)[2] & ~(one_wrong | wrong | margin_wrong)).sum()) if possible else 0
    if alone > max(0.002 * total, 3):
        yield (
            "black-box-beats-white-box",
            f"200 queries of Square broke {alone} that no gradient had",
        )
    yield from _growth([(eps, *fooled(_steps(20), eps)[:2]) for eps in _radii(setting, x)], few)


def _growth(rows: list[tuple[float, float, float]], few: float) -> Found:
    """What a larger ball must bring, for rows of (eps, accuracy, loss): lower accuracy, in the end 0, and higher loss."""
    for (small, better, low), (large, worse, high) in pairwise(rows):
        if worse > better + few:
            yield (
                "larger-eps-weaker",
                f"eps {small:.3g}: {better:.1%}, eps {large:.3g}: {worse:.1%}",
            )
        if high < 0.99 * low and worse > 0:  # an attack on what is broken has nothing left to raise
            yield (
                "larger-eps-lower-loss",
                f"eps {small:.3g}: {low:.3g}, eps {large:.3g}: {high:.3g}",
            )
    least = min(accuracy for _, accuracy, _ in rows)
    if least > few / 2:
        yield "unbounded-attack-fails", f"{least:.1%} stand at eps {rows[-1][0]:.3g}"


def _radii(setting: Setting, x: Tensor) -> list[float]:
    """From a quarter of eps to the whole cube."""
    everything = 1.0 if setting.norm == "Linf" else float(x[0].numel() ** 0.5)
    return [
        eps for factor in (0.25, 1.0, 4.0) if (eps := factor * setting.eps) < everything / 2
    ] + [
        everything / 2,
        everything,
    ]


def _steps(count: int, step: float = 2 / 255) -> Attack:
    """PGD with `count` steps; a single one is as large as the ball."""
    return Attack("pgd", count, REFERENCE_EPS if count == 1 else step)


def _corner(net: nn.Module, x: Tensor, y: Tensor, setting: Setting) -> int:
    """How many images stand under one random perturbation of full size."""
    way = torch.randn(x.shape, device=x.device)
    way = way.sign() if setting.norm == "Linf" else way / size(way, "L2").view(-1, 1, 1, 1)
    with torch.no_grad():
        return int((net((x + setting.eps * way).clamp(0, 1)).argmax(dim=1) == y).sum())


def _gradient(
    net: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    gradient = input_gradient(net, x, lambda logits: loss(logits, y))
    return torch.zeros_like(x) if gradient is None else gradient


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
    "margin": margin,
}
