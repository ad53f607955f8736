"""The model as attacks see it: a private copy, frozen and folded, that counts its passes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attacks.folding import fold_model, mixture_gradient


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose parameters take no gradient."""
    return CopyInput(copy.deepcopy(model)).eval().requires_grad_(False)


class CopyInput(nn.Module):
    """A model that gets a copy of its images, because it may write into them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.clone())
        return logits


def perturbation_norm(delta: Tensor, norm: str) -> Tensor:
    """Return the norm of each perturbation: (B, ...) -> (B,)."""
    flat = delta.flatten(1)
    return flat.abs().amax(dim=1) if norm == "Linf" else flat.norm(dim=1)


class AllFooled(Exception):
    """No robust image is left in a batch."""


class EarlyExit:
    """State of a batch whose images are dropped as soon as they are fooled.

    robust: (B,) bool. adv: (B, C, H, W), the first adversarial example of each fooled image.
    """

    def __init__(self, x: Tensor, y: Tensor, radius: float, norm: str) -> None:
        self.x, self.y, self.radius, self.norm = x, y, radius, norm
        self.robust = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.adv = x.clone()

    def merge(self, adv: Tensor) -> Tensor:
        """Return the stored adversarial examples, with `adv` for the robust images."""
        return torch.where(self.robust.view(-1, 1, 1, 1), adv, self.adv)


class AttackedModel(nn.Module):
    """A frozen copy of a model, folded if that changes nothing; counts images passed each way.

    Returns float32 logits. Inside `early_exit` it drops an image once the reference model
    misclassifies it in the ball: the image is not passed again, the attack gets its last logits
    without a gradient.
    """

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        super().__init__()
        self.forwards = 0
        self.backwards = 0
        self.reference_model = frozen_copy(model)
        # Of another copy: a model that stores its logits, and so their graph, cannot be copied.
        gradient = mixture_gradient(frozen_copy(model), sample)
        self.differentiable = gradient is not None
        self.network = self.reference_model
        if gradient is not None:
            self.network = fold_model(self.reference_model, sample, gradient)
        self.early: EarlyExit | None = None
        # Logits of the whole batch: the last ones of dropped images.
        self.last_logits = torch.empty(0)
        # torchattacks takes the device of the first parameter.
        self.anchor = nn.Parameter(torch.empty(0, device=sample.device), requires_grad=False)
        # torchattacks restores this mode after each attack.
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (B, C, H, W) -> (B, K)."""
        if self.early is None or len(x) != len(self.early.x):
            return self._counted_logits(x)
        return self._pass_robust(x, self.early)

    @contextmanager
    def early_exit(self, x: Tensor, y: Tensor, radius: float, norm: str) -> Iterator[EarlyExit]:
        """Drop images of the batch x once they are fooled within `radius`."""
        # No image's logits depend on another's, so dropping some changes no verdict.
        self.early = EarlyExit(x, y, radius, norm)
        try:
            yield self.early
        except AllFooled:
            pass
        finally:
            self.early = None

    def confirm_fooled(
        self, adv: Tensor, x: Tensor, y: Tensor, wrong: Tensor, radius: float, norm: str
    ) -> Tensor:
        """Return the rows of `wrong` images within `radius` that fool the reference model too."""
        rows = wrong.nonzero().squeeze(1)
        rows = rows[perturbation_norm(adv[rows] - x[rows], norm) <= radius]
        if not len(rows):
            return rows
        logits = self._count_forward(self.reference_model(adv[rows]))
        return rows[logits.argmax(dim=1) != y[rows]]

    def _pass_robust(self, x: Tensor, early: EarlyExit) -> Tensor:
        """Return logits of a batch, but pass only its robust images."""
        rows = early.robust.nonzero().squeeze(1)
        if len(rows) == len(x):
            logits = passed = self._counted_logits(x)
        else:
            passed = self._counted_logits(x[rows])
            logits = self.last_logits.index_put((rows,), passed)
        with torch.no_grad():
            wrong = torch.zeros_like(early.robust)
            wrong[rows] = passed.argmax(dim=1) != early.y[rows]
            fooled = self.confirm_fooled(x, early.x, early.y, wrong, early.radius, early.norm)
            early.adv[fooled] = x[fooled]
            early.robust[fooled] = False
            if len(fooled) and not early.robust.any():
                raise AllFooled
            self.last_logits = logits.detach().clone()
        return logits

    def _counted_logits(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            # Channels-last weights give a channels-last gradient: torchattacks' L2 cannot view it.
            x.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        logits = self._count_forward(self.network(x).float())
        if x.requires_grad and not self.differentiable:
            # A gradient of zero instead of an error: attacks fail and a sanity flag says why.
            logits = logits.detach() + 0 * x.flatten(1).sum(dim=1, keepdim=True)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        # A copy: Square writes into the logits that a model returned (D17).
        return logits.clone()

    def _count_forward(self, logits: Tensor) -> Tensor:
        self.forwards += len(logits)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
