"""Indirect gradient distillation (IGDM): a term that any other method, the base, can be given.

From the paper: logit differences along d = x~ - x expose the input gradient of networks that are
locally linear; the weight grows over the epochs; alpha = 5 is its value for AdaAD and ResNet-18 on
CIFAR-10 (ARD 5, IAD 50, AKD 7, RSLAD 0.9, TRADES 20, PGD-AT 60). From the code, VLM_Distillation's
copy at 2b7ef6ed1e: x - d is not clipped, epochs count from 1, and the student sees x~ once for the
base and once for the term, so BatchNorm counts it twice.

What alpha means depends on the scale of the base's loss. Scripts are released for three bases, on
CIFAR-100 (`script_base`): AdaAD's KL is batchmean, as here. RSLAD's is a tenth of that, so that
alpha = 0.9 is ten times as strong as beside our RSLAD, whose alpha for the same share is 9; its
ramp divides by 200 in a training of 300 epochs, which `--official` sets too, and ends at 1.5 alpha.
ARD's is batchmean without a temperature, where ours has 30; its attack takes steps of 2/225, here
the suite's. Of other bases no script is known: they stay at their defaults, under `--official` too.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

import methods
from methods.base import Batch, Method, Net, Nets, Paper, hp, kl, quirk
from methods.inner import still_statistics, update_statistics
from methods.recipes import FREE_START, Recipe, sgd


@dataclass(frozen=True)
class Script:
    """What a released script does. Without values: nothing is known.

    hyper: values of the base. passes: the student's in train mode, at x~ ("adv"), x ("nat") or
    x - d ("behind"). ramp_end: the factor on alpha in the last epoch. recipe: added to Igdm's.
    """

    hyper: dict[str, Any] = field(default_factory=dict)
    passes: tuple[str, ...] = ()
    ramp_end: float = 1.0
    recipe: Recipe = ()


SCRIPTS = {
    "adaad": Script({}, ("adv", "nat", "behind", "adv"), recipe=FREE_START),
    # Its attack begins inside [0, 1].
    "ard": Script({"tau": 1.0}, ("adv", "nat", "behind")),
    "rslad": Script(
        {"reduction": "tenth"},
        ("adv", "adv", "nat", "behind"),
        ramp_end=300 / 200,
        recipe=(
            *sgd(
                300,
                *(0.7, 0.86, 0.95),
                weight_decay=2e-4,
                why={"milestones": "epochs 210, 258, 285; the paper's: 215, 260, 285"},
            ),
            *FREE_START,
        ),
    ),
}


@dataclass(frozen=True)
class Igdm(Method):
    """L_base + alpha (epoch / epochs) KL(T(x~) - T(x - d) || S(x~) - S(x - d)), d = x~ - x.

    x~: the base's. epoch counts from 1.
    """

    formula = r"""
        L &= L_{\mathrm{base}}
          + \alpha\,\frac{\mathrm{epoch}}{\mathrm{epochs}}\,
          \mathrm{KL}(T(\tilde{x}) - T(x - d)\,\|\,S(\tilde{x}) - S(x - d)) \\
        d &= \tilde{x} - x
    """
    paper = Paper(
        "Lee, Cho and Kim",
        "Indirect Gradient Matching for Adversarial Robust Distillation",
        "ICLR",
        2025,
        "https://arxiv.org/abs/2312.03286",
    )
    recipe = sgd(200, 0.5, 0.75, weight_decay=2e-4)

    base: str = hp("adaad", "the method given the term, at its defaults; it must attack")
    alpha: float = hp(
        5.0, "weight of the term at the end of training", low=0.2, high=220.0, log=True
    )
    script_base: bool = quirk(
        False,
        True,
        "rslad: a tenth of its KL and a ramp to 1.5 alpha; ard: no temperature of 30",
        later=True,
    )
    script_passes: bool = quirk(
        False,
        True,
        "BatchNorm sees x too; x~ once for ard, last for adaad, first for rslad",
        later=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        usable = self.base in methods.names() and not isinstance(self.base_method, Igdm)
        if not usable or not self.base_method.adversarial:
            choice = "choose another method that has an attack, such as adaad or rslad"
            raise ValueError(f"base = {self.base!r}: {choice}")

    @cached_property
    def base_method(self) -> Method:
        """The method that is given the term."""
        return methods.load(self.base)(**(self.script.hyper if self.script_base else {}))

    @property
    def script(self) -> Script:
        """The released script with this base."""
        return SCRIPTS.get(self.base, Script())

    def official_recipe(self) -> Recipe:
        return (*self.recipe, *self.script.recipe)

    @property
    def teacher_roles(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys((*self.base_method.teacher_roles, "robust")))

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return self.base_method.build(student, teachers, num_train)

    def param_groups(self, nets: Nets) -> list[dict[str, Any]]:
        return self.base_method.param_groups(nets)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return self.base_method.attack(nets, batch)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        passes = self.script.passes if self.script_passes else ()
        with still_statistics(nets.student) if passes else nullcontext():
            terms = self.base_method.loss(nets, batch, adv)
            target_adv, logits_adv = nets.teacher_logits_at(adv), nets.student(adv)
            term = gradient_kl(nets, batch, adv, target_adv, logits_adv).mean()
        images = {"adv": adv, "nat": batch.x, "behind": reflected(batch, adv)}
        update_statistics(nets.student, *(images[name] for name in passes))
        ramp = batch.progress * (self.script.ramp_end if self.script_base else 1.0)
        return {**terms, "igdm": self.alpha * ramp * term}

    def after_step(self, nets: Nets, batch: Batch) -> None:
        self.base_method.after_step(nets, batch)

    def monitor(self, nets: Nets) -> dict[str, Tensor]:
        return self.base_method.monitor(nets)


def gradient_kl(nets: Nets, batch: Batch, adv: Tensor, target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(T(x~) - T(x - d) || S(x~) - S(x - d)), (B,), from both logits at x~."""
    behind = reflected(batch, adv)
    return kl(target - nets.teacher_logits_at(behind), logits - nets.student(behind))


def reflected(batch: Batch, adv: Tensor) -> Tensor:
    """Return x - d, which is not clipped to [0, 1]: the differences are along one line."""
    return 2 * batch.x - adv


METHOD = Igdm
