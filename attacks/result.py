"""Verdicts of an evaluation, costs, and the flags that verdicts raise against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

# A weaker attack and a stronger one, with the flag for the case that the weaker one wins.
ATTACK_ORDER = (
    ("fgsm", "pgd20", "one-step-beats-many"),
    ("pgd10", "pgd50", "more-steps-weaker"),
    ("pgd10", "pgd100", "more-steps-weaker"),
    ("pgd20", "pgd100", "more-steps-weaker"),
)

Flag = tuple[str, str]
NORMS = {"Linf": "l-inf", "L2": "L2"}


@dataclass
class Cost:
    """Cost of an attack: wall-clock seconds, images passed forwards and backwards, the device.

    Passes that fill a batch or are in vain count, the one that verifies adversarial examples does
    not. fooled: images fooled by each component. refused: candidates of a device's search that the
    model withstood in full precision.
    """

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    fooled: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"
    refused: int = 0

    @property
    def images_per_second(self) -> float:
        """Images passed in either direction in a second."""
        return (self.forwards + self.backwards) / self.seconds if self.seconds else 0.0


@dataclass
class Evaluation:
    """Verdicts, (N,) bool on the CPU, True where an image is classified correctly, with costs.

    robust: by attack. control: by corruption, which is no attack. flags: flag -> evidence, reasons
    not to believe the numbers. probed: images that the sanity flags were computed on. predictions:
    (N,) classes of the clean images, None for a part of an evaluation. about: norm, eps and seed,
    and what else is known of network and images.

    Its text is a line for each attack.
    """

    clean: Tensor
    robust: dict[str, Tensor] = field(default_factory=dict)
    control: dict[str, Tensor] = field(default_factory=dict)
    cost: dict[str, Cost] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    probed: int = 0
    predictions: Tensor | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        count, norm = len(self.clean), self.about.get("norm")
        threat = f", {NORMS[norm]} {self.about['eps']:.4g}" if norm else ""
        lines = [f"{count} test images{threat}"]
        accuracy = self.accuracy()
        width = max(14, *(len(name) + 1 for name in accuracy))
        for name, value in accuracy.items():
            line, cost = f"{name:{width}}{100 * value:6.2f} %", self.cost.get(name)
            if cost and count:
                passes = f"{cost.forwards / count:8.0f} forward passes an image"
                line += f"{cost.seconds:8.1f} s {passes} {cost.images_per_second:9.0f} passes/s"
            lines.append(line)
        return "\n".join([*lines, *(f"flag {name}: {text}" for name, text in self.flags.items())])

    def to_frame(self) -> pd.DataFrame:
        """Return accuracy in [0, 1], seconds and passes by attack and control."""
        import pandas as pd

        names, costs = ("seconds", "forwards", "backwards"), []
        for attack in self.accuracy():
            cost = self.cost.get(attack)
            costs.append([getattr(cost, name, None) for name in names])
        index = pd.Index([*self.accuracy()], name="attack")
        frame = pd.DataFrame(costs, columns=[*names], index=index)
        frame.insert(0, "accuracy", [*self.accuracy().values()])
        return frame

    def to_document(self) -> dict[str, Any]:
        """Return everything but the verdicts on single images as values for JSON."""
        return {
            **self.about,
            "n": len(self.clean),
            "accuracy": self.accuracy(),
            "cost": {name: asdict(cost) for name, cost in self.cost.items()},
            "flags": self.flags,
        }

    @property
    def worst(self) -> Tensor:
        """Images that are classified correctly, clean and under every attack."""
        return torch.stack([self.clean, *self.robust.values()]).all(dim=0)

    def accuracy(self) -> dict[str, float]:
        """Return the share of correct images by attack and control, with `clean` and `worst`."""
        verdicts = {"clean": self.clean, **self.robust, **self.control, "worst": self.worst}
        return {name: verdict.float().mean().item() for name, verdict in verdicts.items()}

    def select_attacks(self, names: list[str]) -> Evaluation:
        """Return the verdicts of some attacks and controls, in that order, with their flags."""
        robust = {name: self.robust[name] for name in names if name in self.robust}
        control = {name: self.control[name] for name in names if name in self.control}
        cost = {name: self.cost[name] for name in names if name in self.cost}
        selected = replace(self, robust=robust, control=control, cost=cost, flags=dict(self.flags))
        selected.flags |= selected.contradictions()
        return selected

    def first_images(self, count: int) -> Evaluation:
        """Return the verdicts on the first `count` images under attacks, without costs."""
        robust = {name: verdict[:count] for name, verdict in self.robust.items()}
        return Evaluation(self.clean[:count], robust)

    def __or__(self, other: Evaluation) -> Evaluation:
        """Return the verdicts of two evaluations of the same images."""
        robust, control = self.robust | other.robust, self.control | other.control
        return Evaluation(self.clean, robust, control, self.cost | other.cost)

    def contradictions(self) -> dict[str, str]:
        """Return the flags that the verdicts raise against each other.

        A weaker attack may beat a stronger one on a few images by chance. The tolerance is max(1 %,
        2 images), without gradients max(0.2 %, 3 images), the 0.2 % of the official AutoAttack.
        """
        if not len(self.clean):
            return {}
        return dict([*self._order_flags(), *self._cascade_flags(), *self._gradient_free_flags()])

    def _order_flags(self) -> Iterator[Flag]:
        """Compare attacks of known order by accuracy."""
        accuracy = self.accuracy()
        tolerance = max(0.01, 2 / len(self.clean)) + 1e-6
        for weak, strong, flag in ATTACK_ORDER:
            if not {weak, strong} <= self.robust.keys():
                continue
            if accuracy[strong] - accuracy[weak] > tolerance:
                yield flag, f"{weak} {accuracy[weak]:.1%}, {strong} {accuracy[strong]:.1%}"
        for name in ("pgd20", "pgd20_trades", "pgd100"):
            if {name, "aa"} <= self.robust.keys() and accuracy[name] - accuracy["aa"] > 0.10:
                evidence = f"{name} {accuracy[name]:.1%}, AutoAttack {accuracy['aa']:.1%}"
                yield "pgd-far-above-aa", evidence

    def _cascade_flags(self) -> Iterator[Flag]:
        """Compare Square with the gradient attacks before it, as in AutoAttack."""
        for name, cost in self.cost.items():
            kinds = list(cost.fooled)
            if len(kinds) < 2 or kinds[-1] != "square":
                continue
            if cost.fooled["square"] > self._few_images():
                evidence = f"{name}: Square broke {cost.fooled['square']} that no gradient had"
                yield "black-box-beats-white-box", evidence

    def _gradient_free_flags(self) -> Iterator[Flag]:
        """Check what Square and transfer attacks fool that no white-box attack does."""
        gradient_free = [name for name in self.robust if "@" in name or name == "square"]
        white_box = [self.robust[name] for name in self.robust if name not in gradient_free]
        if not white_box:
            return
        robust_to_gradients = torch.stack(white_box).all(dim=0)
        for name in gradient_free:
            fooled = int((~self.robust[name] & robust_to_gradients).sum())
            if fooled > self._few_images():
                flag = "transfer-beats-white-box" if "@" in name else "black-box-beats-white-box"
                yield flag, f"{name} broke {fooled} that no gradient of the model had"

    def _few_images(self) -> float:
        return max(0.002 * len(self.clean), 3)
