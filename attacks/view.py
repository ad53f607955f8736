"""What an attack sees of a model: a private, frozen, counted copy. The model itself is never touched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from attacks.dense import unrolled

FOLD_TOLERANCE = 1e-4  # relative to the largest logit
GRADIENT_TOLERANCE = (
    0.05  # relative, in L2: rounding turns a ReLU here and there, another backward pass everything
)


def frozen(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters take no gradient."""
    return Apart(copy.deepcopy(model)).eval().requires_grad_(False)


class Apart(nn.Module):
    """A model that gets a copy of its images: it may write into them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.clone())
        return logits


def size(delta: Tensor, norm: str) -> Tensor:
    """The norm of each perturbation: (B, ...) -> (B,)."""
    flat = delta.flatten(1)
    return flat.abs().amax(dim=1) if norm == "Linf" else flat.norm(dim=1)


class AllBroken(Exception):
    """Nothing is left to attack in a watched batch."""


class Watch:
    """Which images x: (B, C, H, W) of a batch still stand, and the first adversarial image found for each of the others."""

    def __init__(self, x: Tensor, y: Tensor, reach: float, norm: str) -> None:
        self.x, self.y, self.reach, self.norm = x, y, reach, norm
        self.standing = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.found = x.clone()

    def merge(self, adv: Tensor) -> Tensor:
        """The images found here, those of `adv` where none was."""
        return torch.where(self.standing.view(-1, *[1] * (adv.ndim - 1)), adv, self.found)


class View(nn.Module):
    """A frozen copy with BatchNorm folded where that can be traced; counts the images that pass through.

    Returns fresh float32 logits: some attacks write into what the model returns. Within `watching`, an image leaves as
    soon as the unfolded copy misclassifies it inside the ball: it is not passed through the network again, and the
    attack gets its last logits without a gradient. No image's logits depend on another's, so no verdict changes.
    """

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        super().__init__()
        self.forwards = 0
        self.backwards = 0
        self.judge = frozen(model)
        # Of another copy: one that keeps its logits, with their graph, could not be copied any more.
        gradient = input_gradient(frozen(model), sample, _mixture)
        self.connected = gradient is not None
        self.net = self.judge if gradient is None else _folded(self.judge, sample, gradient)
        self.watch: Watch | None = None
        self.last = torch.empty(0)  # logits of the watched batch, the last ones of those that left
        self.anchor = nn.Parameter(
            torch.empty(0, device=sample.device), requires_grad=False
        )  # torchattacks reads it
        self.eval()  # torchattacks gives back the mode that it found

    def forward(self, x: Tensor) -> Tensor:
        if self.watch is None or len(x) != len(self.watch.x):
            return self._logits(x)
        return self._watched(x, self.watch)

    @contextmanager
    def watching(self, x: Tensor, y: Tensor, reach: float, norm: str) -> Iterator[Watch]:
        """Drops images of the batch x as they are broken within `reach`; leaves the block when none is left."""
        self.watch = Watch(x, y, reach, norm)
        try:
            yield self.watch
        except AllBroken:
            pass
        finally:
            self.watch = None

    def broken(
        self, adv: Tensor, x: Tensor, y: Tensor, wrong: Tensor, reach: float, norm: str
    ) -> Tensor:
        """The rows of those of the `wrong` images that lie within `reach` of x and that the unfolded copy gets wrong."""
        rows = wrong.nonzero().squeeze(1)
        rows = rows[size(adv[rows] - x[rows], norm) <= reach]
        if len(rows):
            rows = rows[self._count(self.judge(adv[rows])).argmax(dim=1) != y[rows]]
        return rows

    def _watched(self, x: Tensor, watch: Watch) -> Tensor:
        rows = watch.standing.nonzero().squeeze(1)
        whole = len(rows) == len(x)
        logits = self._logits(x if whole else x[rows])
        filled = logits if whole else self.last.index_put((rows,), logits)
        with torch.no_grad():
            wrong = torch.zeros_like(watch.standing).index_put_(
                (rows,), logits.argmax(dim=1) != watch.y[rows]
            )
            wrong = self.broken(x, watch.x, watch.y, wrong, watch.reach, watch.norm)
            if len(wrong):
                watch.found[wrong] = x[wrong]
                watch.standing[wrong] = False
                if not watch.standing.any():
                    raise AllBroken
            self.last = filled.detach().clone()
        return filled

    def _logits(self, x: Tensor) -> Tensor:
        if x.requires_grad:  # from weights that lie channels-last it would come so, which torchattacks' L2 cannot view
            x.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        logits = self._count(self.net(x).float())
        if (
            x.requires_grad and not self.connected
        ):  # a gradient of zero, for attacks to fail on and flags to tell
            logits = logits.detach() + 0 * x.flatten(1).sum(dim=1, keepdim=True)
        if logits.requires_grad:
            logits.register_hook(self._count_back)  # type: ignore[no-untyped-call]
        return logits.clone()

    def _count(self, logits: Tensor) -> Tensor:
        self.forwards += len(logits)
        return logits

    def _count_back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def _folded(model: nn.Module, sample: Tensor, gradient: Tensor) -> nn.Module:
    """Convolutions with BatchNorm folded in, channels last, small ones as matrices.

    The model as it is where that changes what an attack sees: tracing forgets custom backward passes and bakes in random
    choices, so logits, their gradient and their repetition are compared.
    """
    try:
        folded = unrolled(fuse(model).to(memory_format=torch.channels_last), sample)
        with torch.no_grad():
            want, got, *again = model(sample), folded(sample), model(sample), model(sample)
        other = input_gradient(folded, sample, _mixture)
    except (
        Exception
    ):  # tracing fails in many ways on models that are not plain graphs; folding is only for speed
        return model
    same = (
        other is not None
        and (gradient - other).norm() <= GRADIENT_TOLERANCE * gradient.norm()
        and (want - got).abs().max() <= FOLD_TOLERANCE * want.abs().max()
        and all(torch.equal(want, logits) for logits in again)
    )
    return folded if same else model


def input_gradient(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The gradient of the summed loss of the logits for images x: (B, ...); None where no graph leads to them."""
    with torch.inference_mode(False), torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        logits = model(images)
        if not logits.requires_grad:
            return None
        return torch.autograd.grad(loss(logits).sum(), images, allow_unused=True)[0]


def _mixture(logits: Tensor) -> Tensor:
    """A fixed combination that depends on every logit."""
    return logits * torch.linspace(-1, 2, logits.shape[1], device=logits.device, dtype=logits.dtype)
