"""What every search does with logits: keep an iterate that fools."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.attacked_model import perturbation_norm
from attacks.components.margin_attacks import logit_margin
from attacks.search.passes import State


def per_image(values: Tensor) -> Tensor:
    """Return (B,) as (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def keep_fooling(state: State, adv: Tensor, logits: Tensor, radius: float, norm: str) -> State:
    """Return a state's candidates, with the images of `adv` that fool more and lie in the ball.

    Of the images between two looks the one that fools most is kept: it is the likeliest to fool
    the reference model too. A run that is done has no more of them.
    """
    margin = logit_margin(logits, state["y"])
    wrong = logits.argmax(dim=1) != state["y"]
    inside = perturbation_norm(adv - state["x"], norm) <= radius
    better = wrong & inside & (margin > state["margin"]) & ~state["done"]
    return {
        "candidate": torch.where(per_image(better), adv, state["candidate"]),
        "margin": torch.where(better, margin, state["margin"]),
        "finite": state["finite"] & logits.isfinite().all(dim=1),
    }
