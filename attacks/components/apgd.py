"""Auto-PGD of torchattacks, with images dropped as soon as they are fooled.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020.
"""

from __future__ import annotations

import torch
import torchattacks
from torch import Tensor

# Rounding may leave an iterate that was clipped to the ball this far outside it.
ROUNDING_SLACK = 1e-6


class APGD(torchattacks.APGD):  # type: ignore[misc]
    """Auto-PGD; drops an image with its first misclassified iterate unless eot_iter > 1."""

    def attack_single_run(self, x_in: Tensor, y_in: Tensor) -> tuple[None, Tensor, None, Tensor]:
        # For randomised models, on which one misclassification proves nothing.
        if self.eot_iter > 1:
            run: tuple[None, Tensor, None, Tensor] = super().attack_single_run(x_in, y_in)
            return run
        robust, adv = torch.ones_like(y_in, dtype=torch.bool), x_in
        with self.model.early_exit(x_in, y_in, self.eps + ROUNDING_SLACK, self.norm) as early:
            _, robust, _, adv = super().attack_single_run(x_in, y_in)
        return None, robust & early.robust, None, early.merge(adv)


class APGDT(APGD):
    """Auto-PGD on the targeted DLR loss, for the second to the tenth class of the clean prediction.

    torchattacks' own takes the first image's step size for all in L2 (D9 in docs/lab/agreement.md).
    """

    n_target_classes: int
    target: Tensor

    def dlr_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) of logits x: (B, K)."""
        ordered, rows = x.sort(dim=1)[0], torch.arange(len(x))
        spread = ordered[:, -1] - 0.5 * ordered[:, -3] - 0.5 * ordered[:, -4] + 1e-12
        loss: Tensor = -(x[rows, y] - x[rows, self.target]) / spread
        return loss

    def perturb(
        self, x_in: Tensor, y_in: Tensor, best_loss: bool = False, cheap: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return which images are robust, (B,), and the adversarial examples, (B, C, H, W)."""
        torch.manual_seed(self.seed)
        adv = x_in.clone()
        with torch.no_grad():
            robust = self.get_logits(x_in).argmax(dim=1) == y_in
        for rank in range(2, self.n_target_classes + 2):
            rows = robust.nonzero().squeeze(1)
            if not len(rows):
                break
            with torch.no_grad():
                self.target = self.get_logits(x_in[rows]).sort(dim=1)[1][:, -rank]
            _, robust[rows], _, candidates = self.attack_single_run(x_in[rows], y_in[rows])
            adv[rows] = torch.where(robust[rows].view(-1, 1, 1, 1), adv[rows], candidates)
        return robust, adv
