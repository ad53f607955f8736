"""Input gradients of the cross-entropy: the student's against the teacher's, and their sparsity.

Sparsity: Hoyer, "Non-negative Matrix Factorization with Sparseness Constraints", JMLR 2004.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.isolation import full_precision
from bench.analysis.measures.examples import view_images
from bench.analysis.measures.findings import Findings, GapError
from bench.analysis.measures.outputs import (
    BATCH_SIZE,
    check_images,
    check_labels,
    check_same_classes,
    collect_logits,
)
from bench.analysis.measures.subject import Subject
from methods.base import Net

GROUP = "gradients"


def measure(subject: Subject) -> Findings:
    """Measure the student's gradients and compare them with the teacher's, in both views."""
    findings = Findings()
    fault = missing_teacher(subject)
    if fault:
        for name in ("cosine", "distance"):
            findings.gaps[f"{GROUP}/{name}"] = fault
    for view, images in view_images(subject, findings, GROUP).items():
        student = input_gradients(subject.student, images, subject.y)
        findings.add_measured((GROUP, "sparsity", view), mean_sparsity, student)
        if subject.teacher is None or fault:
            continue
        teacher = input_gradients(subject.teacher, images, subject.y)
        findings.add_measured((GROUP, "cosine", view), mean_cosine, student, teacher)
        findings.add_measured((GROUP, "distance", view), mean_distance, student, teacher)
    return findings


def missing_teacher(subject: Subject) -> str:
    """Return why there are no gradients of a teacher to compare with, "" if there are."""
    if subject.teacher is None:
        return "no teacher to compare with"
    try:
        images = subject.x[:2]
        student, teacher = (
            collect_logits(net, images) for net in (subject.student, subject.teacher)
        )
        check_same_classes(student, teacher)
    except GapError as error:
        return str(error)
    return ""


@torch.enable_grad()
def input_gradients(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each image's cross-entropy: (N, C, H, W) -> (N, pixels), on the CPU.

    Raises:
        GapError: if labels are no classes of the network or a gradient is not finite.
    """
    check_images(x)
    gradients = []
    batches = zip(torch.split(x, BATCH_SIZE), torch.split(y, BATCH_SIZE), strict=True)
    with full_precision():
        for images, labels in batches:
            images = images.detach().clone().requires_grad_()
            logits = net(images)
            check_labels(logits, labels)
            loss = confident_cross_entropy(logits, labels).sum()
            gradients.append(image_gradient(loss, images).flatten(1).double().cpu())
    joined = torch.cat(gradients)
    if not joined.isfinite().all():
        raise GapError("the network's gradient is not finite")
    return joined


def image_gradient(loss: Tensor, images: Tensor) -> Tensor:
    """Return the gradient of a loss at images, zero if it does not depend on them."""
    if not loss.requires_grad:
        return torch.zeros_like(images)
    (gradient,) = torch.autograd.grad(loss, images, allow_unused=True)
    return torch.zeros_like(images) if gradient is None else gradient


def confident_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each image: (N, C), (N,) -> (N,).

    Written with the margin to the other classes: log(1 + sum exp(z_c - z_y)). Where the true class
    has probability 1 up to rounding, the gradient of the usual form loses its part.
    """
    margins = logits - logits.gather(1, y[:, None])
    others = margins.scatter(1, y[:, None], -torch.inf)
    return F.softplus(others.logsumexp(dim=1))


def mean_cosine(student: Tensor, teacher: Tensor) -> float:
    """Return the mean cosine of gradients (N, pixels), where neither is zero."""
    rows = (student.norm(dim=1) > 0) & (teacher.norm(dim=1) > 0)
    check_rows(rows)
    return float(F.cosine_similarity(student[rows], teacher[rows], dim=1, eps=0).mean())


def mean_distance(student: Tensor, teacher: Tensor) -> float:
    """Return the mean of ||a - b|| / (||a|| + ||b||) over gradients (N, pixels), in [0, 1]."""
    lengths = student.norm(dim=1) + teacher.norm(dim=1)
    rows = lengths > 0
    check_rows(rows)
    return float(((student - teacher).norm(dim=1)[rows] / lengths[rows]).mean())


def mean_sparsity(gradients: Tensor) -> float:
    """Return the mean Hoyer sparsity of gradients (N, d), where they are not zero.

    (sqrt(d) - ||g||_1 / ||g||_2) / (sqrt(d) - 1), from 0 to 1.
    """
    root = gradients.shape[1] ** 0.5
    if root == 1:
        raise GapError("images of a single pixel")
    rows = gradients.norm(dim=1) > 0
    check_rows(rows)
    ratio = gradients[rows].norm(p=1, dim=1) / gradients[rows].norm(dim=1)
    return float(((root - ratio) / (root - 1)).mean())


def check_rows(rows: Tensor) -> None:
    """Raise GapError if there is no image with a gradient."""
    if not rows.any():
        raise GapError("the input gradient is zero for every image")
