"""What an evaluation found and what it took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Cost:
    """What an attack took: wall-clock seconds, images passed forwards and backwards through the model, the device.

    Counted is all that the attack passed, also what fills a forward pass or was tried in vain; not the pass that verifies
    what it returned. `broken`: how many images each of its components broke.
    """

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    broken: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def images_per_second(self) -> float:
        """Passes in either direction, a second."""
        return (self.forwards + self.backwards) / self.seconds if self.seconds else 0.0


@dataclass
class Evaluation:
    """Verdicts, (N,) bool on the CPU, True where the image is still classified correctly, and what each attack took.

    `control` holds the verdicts under corruptions, which are no attacks. `flags` says why these numbers may not be
    believed: name of the flag -> the evidence.
    """

    clean: Tensor
    robust: dict[str, Tensor] = field(default_factory=dict)
    control: dict[str, Tensor] = field(default_factory=dict)
    cost: dict[str, Cost] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    probed: int = 0  # images that the flags were looked for on

    @property
    def worst(self) -> Tensor:
        """Correct under every attack that was run, and clean."""
        return torch.stack([self.clean, *self.robust.values()]).all(dim=0)

    def accuracy(self) -> dict[str, float]:
        """Share of correct images by attack and control, with `clean` and `worst`."""
        verdicts = {"clean": self.clean, **self.robust, **self.control, "worst": self.worst}
        return {name: verdict.float().mean().item() for name, verdict in verdicts.items()}

    def of(self, chosen: Iterable[str]) -> Evaluation:
        """The part that concerns the chosen names, in their order, with what their verdicts say against themselves."""
        chosen = list(chosen)
        robust = {name: self.robust[name] for name in chosen if name in self.robust}
        control = {name: self.control[name] for name in chosen if name in self.control}
        cost = {name: self.cost[name] for name in robust if name in self.cost}
        found = Evaluation(self.clean, robust, control, cost, dict(self.flags), self.probed)
        found.flags |= found.contradictions()
        return found

    def first(self, count: int) -> Evaluation:
        """The verdicts of the first `count` images, without costs."""
        return Evaluation(
            self.clean[:count], {name: verdict[:count] for name, verdict in self.robust.items()}
        )

    def __or__(self, other: Evaluation) -> Evaluation:
        """The verdicts of two evaluations of the same images."""
        return Evaluation(
            self.clean,
            self.robust | other.robust,
            self.control | other.control,
            self.cost | other.cost,
        )

    def contradictions(self) -> dict[str, str]:
        """Flags that the verdicts themselves raise.

        A weaker attack may beat a stronger one on a few images by chance: each rule has a tolerance of max(1 %, 2 images),
        but for attacks without gradients, where it is the 0.2 % of the official AutoAttack and at least 3 images.
        """
        n, flags = len(self.clean), dict[str, str]()
        if not n:
            return flags
        few, accuracy = max(0.01, 2 / n) + 1e-6, self.accuracy()

        def gap(weak: str, strong: str) -> float:
            """By how much accuracy under the stronger attack exceeds that under the weaker one."""
            return (
                accuracy[strong] - accuracy[weak] if {weak, strong} <= self.robust.keys() else 0.0
            )

        for weak, strong in (
            ("fgsm", "pgd20"),
            ("pgd10", "pgd50"),
            ("pgd10", "pgd100"),
            ("pgd20", "pgd100"),
        ):
            if gap(weak, strong) > few:
                name = "one-step-beats-many" if weak == "fgsm" else "more-steps-weaker"
                flags[name] = f"{weak} {accuracy[weak]:.1%}, {strong} {accuracy[strong]:.1%}"
        for weak in ("pgd20", "pgd20_trades", "pgd100"):
            if gap("aa", weak) > 0.10:
                flags["pgd-far-above-aa"] = (
                    f"{weak} {accuracy[weak]:.1%}, AutoAttack {accuracy['aa']:.1%}"
                )
        for name, cost in self.cost.items():
            last = list(cost.broken)[-1:] == ["square"] and len(cost.broken) > 1
            if last and cost.broken["square"] > max(0.002 * n, 3):
                flags["black-box-beats-white-box"] = (
                    f"{name}: Square broke {cost.broken['square']} that no gradient had"
                )
        white = [
            verdict for name, verdict in self.robust.items() if "@" not in name and name != "square"
        ]
        for name, verdict in self.robust.items() if white else ():
            alone = int((~verdict & torch.stack(white).all(dim=0)).sum())
            if alone > max(0.002 * n, 3) and ("@" in name or name == "square"):
                flag = "transfer-beats-white-box" if "@" in name else "black-box-beats-white-box"
                flags[flag] = f"{name} broke {alone} that no gradient of the model had"
        return flags
