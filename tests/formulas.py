"""The loss of every method in NumPy, and small networks in double precision to try it on."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import methods
from methods.base import Batch, Budget, Method, Net, Nets

Array = NDArray[Any]
NONE, SOME = Budget(0, 0, 0), Budget(0.1, 0.05, 3)
LABELS = [0, 1, 2, 2, 2, 1]


# --- Networks and batches


class Flat(Net):
    """tanh between two matrices, for images (3, 2, 2)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.width, self.num_classes = width, num_classes
        self.first, self.last = nn.Linear(12, width), nn.Linear(width, num_classes)
        nn.init.normal_(self.first.weight)
        nn.init.normal_(self.last.weight)

    def features(self, x: Tensor) -> Tensor:
        return self.first(self.normalise(x).flatten(1)).tanh()

    def head(self, f: Tensor) -> Tensor:
        return self.last(f)


class Normed(Flat):
    """`Flat` with BatchNorm before the tanh."""

    def __init__(self, width: int, num_classes: int, momentum: float = 0.1) -> None:
        super().__init__(width, num_classes)
        self.norm = nn.BatchNorm1d(width, momentum=momentum)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.first(self.normalise(x).flatten(1))).tanh()


def flat_nets(case: Method, twins: bool = False) -> Nets:
    """Build a student, the teachers that `case` reads and its parts, always with the same weights.

    twins: the teachers are copies of the student.
    """
    torch.manual_seed(0)
    student = Flat(5, 3).double()
    teachers: dict[str, Net] = {
        role: copy.deepcopy(student) if twins else Flat(7, 3).double()
        for role in ("robust", "natural")
    }
    teachers = {role: teachers[role] for role in case.teacher_roles}
    parts = nn.ModuleDict(case.build(student, teachers, 64))
    for layer in parts.modules():
        if isinstance(layer, nn.Linear):
            layer.double()
    for teacher in teachers.values():
        teacher.eval().requires_grad_(False)
    return Nets(student, teachers, parts)


def flat_batch(budget: Budget = SOME, epoch: int = 1, epochs: int = 2) -> Batch:
    x = torch.rand(
        len(LABELS), 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return Batch(
        x, torch.tensor(LABELS), torch.arange(len(x)), epoch, epochs, num_train=64, budget=budget
    )


# --- Pieces


def linear(layer: nn.Module, x: Array) -> Array:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def features(net: nn.Module, x: Tensor) -> Array:
    return np.tanh(
        linear(net.get_submodule("first"), 2 * x.detach().numpy().reshape(len(x), -1) - 1)
    )


def logits(net: nn.Module, x: Tensor) -> Array:
    return linear(net.get_submodule("last"), features(net, x))


def input_gradient(net: nn.Module, x: Tensor, of_logits: Array) -> Array:
    """Return the gradient of sum(of_logits * logits) by the chain rule: (B, pixels)."""
    first, last = (
        net.get_parameter(f"{layer}.weight").detach().numpy() for layer in ("first", "last")
    )
    return 2 * ((of_logits @ last) * (1 - features(net, x) ** 2)) @ first


def softmax(z: Array) -> Array:
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def one_hot(y: Array, classes: int) -> Array:
    return np.eye(classes)[y]


def pick_label(z: Array, y: Array) -> Array:
    return z[np.arange(len(y)), y]


def ce(z: Array, y: Array) -> Array:
    return -np.log(pick_label(softmax(z), y))


def kl(target: Array, z: Array, tau: float | Array = 1.0) -> Array:
    return kl_of_probabilities(softmax(target / tau), softmax(z / tau))


def kl_of_probabilities(p: Array, q: Array) -> Array:
    """(B, C), (B, C) -> (B,)."""
    return (p * np.log(p / q)).sum(axis=1)


def entropy(z: Array) -> Array:
    return -(softmax(z) * np.log(softmax(z))).sum(axis=1)


def cosine(a: Array, b: Array) -> Array:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def reduction_factor(reduction: str, classes: int = 3) -> float:
    """Return the factor on the batch's mean of a sum over the classes."""
    mean10 = 1 / 10 if classes == 10 else 1
    factors = {"batchmean": 1, "mean": 1 / classes, "tenth": 1 / 10, "mean10": mean10}
    return factors[reduction]


@dataclass
class At:
    """All that a formula reads: a case, its networks and the images.

    `s`, `t`, `n` are the logits of student, robust and natural teacher, `_adv` those at x~. What a
    formula takes from `sg`, for stop gradient, passes no gradient.
    """

    m: Any
    nets: Nets
    batch: Batch
    adv: Tensor
    sg: At = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.sg = copy.copy(self)
        self.sg.nets = copy.deepcopy(self.nets)

    def with_method(self, m: Method) -> At:
        """Return the same for another method."""
        changed = copy.copy(self)
        changed.sg = copy.copy(self.sg)
        changed.m = changed.sg.m = m
        return changed

    @property
    def x(self) -> Tensor:
        return self.batch.x

    @property
    def y(self) -> Array:
        return self.batch.y.numpy()

    @property
    def done(self) -> float:
        """The share of the epochs before this one."""
        return self.batch.epoch / self.batch.epochs

    @property
    def progress(self) -> float:
        """The share of the epochs up to this one."""
        return (self.batch.epoch + 1) / self.batch.epochs

    @property
    def s(self) -> Array:
        return logits(self.nets.student, self.x)

    @property
    def s_adv(self) -> Array:
        return logits(self.nets.student, self.adv)

    @property
    def t(self) -> Array:
        return logits(self.nets.teacher, self.x)

    @property
    def t_adv(self) -> Array:
        return logits(self.nets.teacher, self.adv)

    @property
    def n(self) -> Array:
        return logits(self.nets.teachers["natural"], self.x)

    @property
    def n_adv(self) -> Array:
        return logits(self.nets.teachers["natural"], self.adv)

    def part_logits(self, name: str) -> Array:
        """Return the logits at x~ of a network among the parts."""
        return logits(self.nets.parts[name], self.adv)

    def buffer(self, name: str) -> Array:
        """Return a buffer of the parts."""
        return self.nets.parts.get_buffer(name).numpy().astype(np.float64)


Terms = dict[str, Any]


# --- Without a teacher


def natural(a: At) -> Terms:
    return {"ce": ce(a.s, a.y).mean()}


def pgd_at(a: At) -> Terms:
    return {"ce_adv": ce(a.s_adv, a.y).mean()}


def trades(a: At) -> Terms:
    return {"ce": ce(a.s, a.y).mean(), "kl_adv": a.m.beta * kl(a.s, a.s_adv).mean()}


def mart(a: At) -> Terms:
    p = softmax(a.s_adv)
    rival = np.where(one_hot(a.y, 3) > 0, 0, p).max(axis=1)
    missed = 1.0000001 - pick_label(softmax(a.s), a.y)
    return {
        "bce": (-np.log(pick_label(p, a.y)) - np.log(1.0001 - rival)).mean(),
        "kl_adv": a.m.beta * (missed * kl(a.s, a.s_adv)).mean(),
    }


def peeraid(a: At) -> Terms:
    m, peer, soft = a.m, a.part_logits("peer"), a.m.tau**2 * reduction_factor(a.m.reduction)
    target = a.sg if m.detach else a
    return {
        "kl_peer": m.l2 * soft * kl(a.sg.part_logits("peer"), a.s_adv, m.tau).mean(),
        "kl_self": m.l3 * soft * kl(target.s, a.s_adv, m.tau).mean(),
        "peer_ce": m.g1 * ce(peer, a.y).mean(),
        "peer_kl": m.g2 * reduction_factor(m.reduction) * kl(target.s_adv, peer).mean(),
    }


def lbgat(a: At) -> Terms:
    n = logits(a.nets.parts["natural"], a.x)
    return {
        "mse": ((a.s_adv - n) ** 2).mean(),
        "natural_ce": ce(n, a.y).mean(),
        "kl_adv": a.m.beta * kl(a.s, a.s_adv).mean(),
    }


def gkl_at(a: At) -> Terms:
    """The clean logits pass a gradient in the squared error alone."""
    return gkl_terms(a, a.s, a.sg.s)


# --- Soft labels of one teacher


def gkl(a: At) -> Terms:
    return gkl_terms(a, a.t, a.t)


def gkl_terms(a: At, target: Array, fixed: Array) -> Terms:
    """Sum over all pairs of classes, of the weights too."""
    q = a.buffer("classes.prior")[a.y] ** a.m.gamma
    total, weight = 0.0, 0.0
    for t, s, row in zip(target, a.s_adv, q, strict=True):
        for i in range(len(row)):
            for j in range(len(row)):
                total += row[i] * row[j] * ((t[i] - t[j]) - (s[i] - s[j])) ** 2
                weight += row[i] * row[j]
    soft = -(softmax(fixed) * np.log(softmax(a.s_adv))).sum(axis=1).mean()
    return {
        "ce": ce(a.s, a.y).mean(),
        "soft_ce": a.m.alpha * soft,
        "wmse": a.m.beta * total / weight / 4,
    }


def kd(a: At) -> Terms:
    m = a.m
    return {
        "ce": (1 - m.alpha) * ce(a.s, a.y).mean(),
        "kl": m.alpha * m.tau**2 * kl(a.t, a.s, m.tau).mean(),
    }


def ard(a: At) -> Terms:
    m = a.m
    soft = m.alpha * m.tau**2 * reduction_factor(m.reduction) * kl(a.t, a.s_adv, m.tau).mean()
    return {"kl_adv": soft} | ({"ce": (1 - m.alpha) * ce(a.s, a.y).mean()} if m.alpha < 1 else {})


def iad(a: At) -> Terms:
    return introspective(a, a.t)


def adaiad(a: At) -> Terms:
    return introspective(a, a.t_adv)


def introspective(a: At, target: Array) -> Terms:
    """With the script's switches: full weight of the teacher's term, self term not softened."""
    m = a.m
    weight = pick_label(softmax(a.t_adv), a.y) ** (m.beta if a.done >= m.begin else 0)
    teacher_weight = 1 if m.trust_all else weight
    target_self, tau_self = (a.sg if m.detach else a).s, (1 if m.plain_self else m.tau)
    return {
        "kl_teacher": m.tau**2 * (teacher_weight * kl(target, a.s_adv, m.tau)).mean(),
        "kl_self": tau_self**2 * ((1 - weight) * kl(target_self, a.s_adv, tau_self)).mean(),
    }


def akd(a: At) -> Terms:
    m = a.m
    target = {"adv": a.t_adv, "clean": a.t}[m.teacher_input]
    return {
        "ce_adv": (1 - m.alpha) * ce(a.s_adv, a.y).mean(),
        "kl_adv": m.alpha * m.tau**2 * kl(target, a.s_adv, m.tau).mean(),
    }


def rslad(a: At) -> Terms:
    share, w = a.m.alpha, reduction_factor(a.m.reduction)
    return {
        "kl_adv": share * w * kl(a.t, a.s_adv).mean(),
        "kl": (1 - share) * w * kl(a.t, a.s).mean(),
    }


def fair_rslad(a: At) -> Terms:
    w, share = a.buffer("fair.weights")[a.y] * reduction_factor(a.m.reduction), a.m.alpha
    return {
        "kl_adv": share * (w * kl(a.t, a.s_adv)).mean(),
        "kl": (1 - share) * (w * kl(a.t, a.s)).mean(),
    }


def absld(a: At) -> Terms:
    share, w, tau = (
        a.m.alpha,
        reduction_factor(a.m.reduction),
        a.buffer("classes.tau")[:, a.y, None],
    )
    tau_nat, tau_adv = (tau[0] * tau[1],) * 2 if a.m.aliased else tau
    target_nat, target_adv = softmax(a.t / tau_nat), softmax(a.t / tau_adv)
    return {
        "kl_adv": share * w * kl_of_probabilities(target_adv, softmax(a.s_adv)).mean(),
        "kl": (1 - share) * w * kl_of_probabilities(target_nat, softmax(a.s)).mean(),
    }


def adaad(a: At) -> Terms:
    share, w = a.m.alpha, reduction_factor(a.m.reduction)
    clean = {"kl": (1 - share) * w * kl(a.t, a.s).mean()} if share < 1 else {}
    return {"kl_adv": share * w * kl(a.t_adv, a.s_adv).mean()} | clean


def dgad(a: At) -> Terms:
    right = a.t.argmax(axis=1) == a.y
    t, t_adv = (swap_true_and_top(z, a.y) if a.m.swap else z for z in (a.t, a.t_adv))
    return {
        "kl_adv": (kl(t_adv, a.s_adv) * right).mean(),
        "kl": (kl(t, a.s) * ~right).mean(),
        "mse": a.m.beta * ((softmax(a.s_adv) - softmax(a.s)) ** 2).mean(),
    }


def swap_true_and_top(z: Array, y: Array) -> Array:
    """Exchange the logit of the true class and the largest one."""
    z = z.copy()
    for row, label in zip(z, y, strict=True):
        top = row.argmax()
        row[label], row[top] = row[top], row[label]
    return z


def gradient_kl(a: At) -> Array:
    """IGDM's divergence of the logit differences between x + d and x - d."""
    behind = a.x - (a.adv - a.x)
    return kl(a.t_adv - logits(a.nets.teacher, behind), a.s_adv - logits(a.nets.student, behind))


def igdm(a: At) -> Terms:
    """With the released scripts' values of the base, which on RSLAD divide 300 epochs by 200."""
    hyper: dict[str, Any] = {}
    if a.m.script_base:
        hyper = {"ard": {"tau": 1.0}, "rslad": {"reduction": "tenth"}}.get(a.m.base, {})
    ramp = 1.5 * a.progress if a.m.script_base and a.m.base == "rslad" else a.progress
    terms = REFERENCES[a.m.base](a.with_method(methods.load(a.m.base)(**hyper)))
    return terms | {"igdm": a.m.alpha * ramp * gradient_kl(a).mean()}


def saad(a: At) -> Terms:
    m, h = a.m, entropy(a.t_adv)
    w, sure = h, 1 - h / np.log(3)
    if m.shifted:
        w, sure = 5 * (h - h.min()), 1 - (h - h.min()) / (h.max() - h.min())
    terms = {
        "kl_adv": (w * kl(a.t_adv, a.s_adv)).mean(),
        "igdm": m.alpha * (a.progress if m.ramp else 1) * (w * gradient_kl(a)).mean(),
    }
    return terms | ({"kl": m.beta * (sure * kl(a.t, a.s)).mean()} if m.beta else {})


def kdiga(a: At) -> Terms:
    m, difference = a.m, input_gradient_difference(a)
    distance = np.linalg.norm(difference, axis=1).mean()
    if m.gradient_norm == "batch":
        # gamma / B times the norm of the mean loss's gradients
        distance = np.linalg.norm(difference / len(a.x)) / len(a.x)
    target, z = (a.t_adv, a.s_adv) if m.inputs == "adv" else (a.t, a.s)
    return {
        "ce": (1 - m.alpha) * ce(a.s, a.y).mean(),
        "kl": m.alpha * m.tau**2 * reduction_factor(m.reduction) * kl(target, z, m.tau).mean(),
        "gradient": m.gamma * distance,
    }


def input_gradient_difference(a: At) -> Array:
    """Return grad_x CE(S(x), y) - grad_x CE(T(x), y) for each image: (B, pixels)."""
    student, teacher = (
        input_gradient(net, a.x, softmax(logits(net, a.x)) - one_hot(a.y, 3))
        for net in (a.nets.student, a.nets.teacher)
    )
    return student - teacher


# --- Two teachers


def iad2(a: At) -> Terms:
    m = a.m
    u, v = m.alpha_robust * m.tau**2, m.alpha_natural * m.tau**2
    weight = pick_label(softmax(a.t_adv), a.y) ** (m.beta if a.done >= m.begin else 0)
    return {
        "ce_adv": (1 - m.alpha_robust - m.alpha_natural) * ce(a.s_adv, a.y).mean(),
        "kl_robust": u * (weight * kl(a.t_adv, a.s_adv, m.tau)).mean(),
        "kl_self": u * ((1 - weight) * kl(a.s, a.s_adv)).mean(),
        "kl_natural": v * kl(a.n_adv, a.s_adv, m.tau).mean(),
    }


def mtard(a: At) -> Terms:
    w, factor = a.buffer("balance.weights"), reduction_factor(a.m.reduction)
    return {
        "kl_robust": w[0] * factor * kl(a.t_adv, a.s_adv).mean(),
        "kl_natural": w[1] * factor * kl(a.n, a.s).mean(),
    }


def bmtard(a: At) -> Terms:
    w, tau, factor = (
        a.buffer("balance.weights"),
        a.buffer("uncertainty.tau"),
        reduction_factor(a.m.reduction),
    )
    return {
        "kl_robust": w[0]
        * factor
        * kl_of_probabilities(softmax(a.t_adv / tau[0]), softmax(a.s_adv)).mean(),
        "kl_natural": w[1]
        * factor
        * kl_of_probabilities(softmax(a.n / tau[1]), softmax(a.s)).mean(),
    }


def ciard(a: At) -> Terms:
    tau, learner, w = (
        a.buffer("uncertainty.tau"),
        a.part_logits("teacher"),
        reduction_factor(a.m.reduction),
    )
    terms = {
        "kl_robust": w
        * kl_of_probabilities(
            softmax(a.sg.part_logits("teacher") / tau[0]), softmax(a.s_adv)
        ).mean(),
        "kl_natural": w * kl_of_probabilities(softmax(a.n / tau[1]), softmax(a.s)).mean(),
    }
    wrong = a.n_adv.argmax(axis=1) != a.y
    push = w * kl_of_probabilities(softmax(a.n_adv), softmax(a.s_adv / 5))[wrong].mean()
    order = [np.floor(np.log10(value)) for value in (min(terms.values()), push)]
    terms["push"] = -a.m.push * 10 ** (order[0] - order[1]) * push
    return terms | ({"teacher_ce": ce(learner, a.y).mean()} if a.done >= a.m.begin else {})


def dard(a: At) -> Terms:
    """The robust teacher sees the attack's own examples; its attack draws nothing."""
    u = a.m.dpgd(a.nets.teacher, a.batch)
    p = (softmax(logits(a.nets.teacher, u)) + softmax(a.n)) / 2
    target = softmax(p) if a.m.resoftened else p
    return {
        "kl_adv": a.m.alpha * kl_of_probabilities(target, softmax(a.s_adv)).mean(),
        "ce_adv": (1 - a.m.alpha) * ce(a.s_adv, a.y).mean(),
    }


# --- Features


def vgap(a: At) -> Terms:
    share, grams = a.m.alpha, {}
    for name, net in (("s", a.nets.student), ("t", a.nets.teacher)):
        f_adv, f_nat = (f - f.mean(axis=0) for f in (features(net, a.adv), features(net, a.x)))
        variance = (f_nat**2).sum()
        grams[name] = f_adv @ f_adv.T / variance, f_nat @ f_nat.T / variance
    distances = [((s - t) ** 2).sum() for s, t in zip(grams["s"], grams["t"], strict=True)]
    return {
        "kl_adv": share * kl(a.t, a.s_adv).mean(),
        "kl": (1 - share) * kl(a.t, a.s).mean(),
        "gram_adv": a.m.beta * distances[0],
        "gram": a.m.beta * distances[1],
    }


def fitnet(a: At) -> Terms:
    v = a.adv if a.m.inputs == "adv" else a.x
    error = linear(a.nets.parts["regressor"], features(a.nets.student, v)) - features(
        a.nets.teacher, v
    )
    return {"ce": ce(logits(a.nets.student, v), a.y).mean(), "mse": a.m.beta * (error**2).mean()}


def rrm(a: At) -> Terms:
    f = linear(a.nets.parts["project"], features(a.nets.student, a.x))
    return {
        "ce": a.m.alpha * ce(a.s, a.y).mean(),
        "cosine": 1 - cosine(f, features(a.nets.teacher, a.x)).mean(),
    }


def crdnd(a: At) -> Terms:
    share = a.m.clean_share
    return {
        "contrast_adv": (1 - share) * nt_xent(a, a.s_adv, a.t_adv),
        "contrast": share * nt_xent(a, a.s, a.t),
    }


def nt_xent(a: At, s: Array, t: Array) -> float:
    """Each of the 2 B logits is an anchor: its image's other view against all others."""
    if a.m.denoise:
        s = s @ denoising_matrix(t, a.y).T
    views = np.concatenate([s, t])
    similar = (
        np.array([cosine(np.broadcast_to(view, views.shape), views) for view in views]) / a.m.tau
    )
    size, losses = len(s), []
    for i, row in enumerate(similar):
        others = np.delete(row, i)
        losses.append(np.log(np.exp(others).sum()) - row[(i + size) % (2 * size)])
    return np.mean(losses)


def denoising_matrix(t: Array, y: Array) -> Array:
    """Return M: in column c the teacher's accuracy on class c in row c, the rest spread out."""
    matrix = np.zeros((3, 3))
    for c in range(3):
        right = (t[y == c].argmax(axis=1) == c).mean()
        matrix[:, c] = (1 - right) / 2
        matrix[c, c] = right
    return matrix


def crd(a: At) -> Terms:
    each = np.ones(len(a.y))
    contrast = against_memory(a) if a.m.memory else contrastive(a, a.x, [a.x], each)
    return {"contrast": a.m.lambda_con * contrast, "ce": ce(a.s, a.y).mean()}


def crd_adv(a: At) -> Terms:
    contrast = contrastive(a, a.x, [a.adv], np.ones(len(a.y)))
    return {"contrast": a.m.lambda_con * contrast, "ce": ce(a.s_adv, a.y).mean()}


def gacd(a: At) -> Terms:
    m = a.m
    u = a.adv if m.teacher_input == "adv" else a.x
    views = {"adv": [a.adv], "clean": [a.x], "both": [a.adv, a.x]}[m.student_input]
    target = logits(a.nets.teacher, u)
    w = {
        "prob": pick_label(softmax(target), a.y) ** m.beta,
        "indicator": 1.0 * (target.argmax(axis=1) == a.y),
        "none": np.ones(len(a.y)),
    }[m.weight]
    contrast = contrastive(a, u, views, w / w.mean(), of_all=m.weigh == "all")
    soft = np.mean([kl(target, logits(a.nets.student, v), m.tau_kd).mean() for v in views])
    return {
        "contrast": m.lambda_con * contrast,
        "ce_adv": m.lambda_ce * ce(a.s_adv, a.y).mean(),
        **({"kl": m.lambda_kd * m.tau_kd**2 * soft} if m.lambda_kd else {}),
    }


def contrastive(a: At, u: Tensor, views: list[Tensor], w: Array, of_all: bool = True) -> float:
    """Return the mean over the student's views. Z, without gradient, moves with each of them."""
    z, losses = 0.0, []
    for v in views:
        mean = exponentials(a.sg, u, v)[~np.eye(len(w), dtype=bool)].mean()
        z = 0.99 * z + 0.01 * mean if losses else mean
        e = exponentials(a, u, v)
        sides = [
            critic(a.m.estimator, scores, z, a.y) for scores in ([e, e.T] if a.m.symmetric else [e])
        ]
        positive, negative = (sum(side) for side in zip(*sides, strict=True))
        losses.append((w * positive + (w if of_all else 1) * negative).mean())
    return float(np.mean(losses))


def against_memory(a: At, z: dict[str, float] | None = None) -> float:
    """Return the loss by CRD's code, all images of other classes being the negatives.

    z: the normaliser of each direction; what is missing is that of a first step, and is added.
    """
    z = {} if z is None else z
    y = a.sg.buffer("contrast.memory_y")
    y[a.batch.index] = a.y
    negative = y[None] != a.y[:, None]
    noise = negative.sum(axis=1, keepdims=True) / len(y)
    losses = np.zeros(len(a.y))
    for side in ("s", "t"):
        e = memory_exponentials(a.nets, a, side)
        if side not in z:
            first = memory_exponentials(a.sg.nets, a, side)
            positive = pick_label(first, a.batch.index.numpy())
            mean = np.concatenate([first[negative], positive]).mean()
            z[side] = len(y) * mean
        p = e / z[side]
        p_positive = pick_label(p, a.batch.index.numpy())
        losses -= np.log(p_positive / (p_positive + noise[:, 0]))
        losses -= (np.log(noise / (p + noise)) * negative).sum(axis=1)
    return float(losses.mean())


def memory_exponentials(nets: Nets, a: At, side: str) -> Array:
    """Return the scores of one network's embeddings, (B, M), with the other's memory."""
    anchor = {"s": "t", "t": "s"}[side]
    net = {"s": nets.student, "t": nets.teacher}[anchor]
    v = linear(nets.parts["contrast"].get_submodule(f"project_{anchor}"), features(net, a.x))
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    return np.exp(v @ a.sg.buffer(f"contrast.memory_{side}").T / a.m.tau)


def exponentials(a: At, u: Tensor, v: Tensor) -> Array:
    """Return scores of anchor i (row) and candidate k (column), the positives on the diagonal."""
    t, s = embed(a, "t", features(a.nets.teacher, u)), embed(a, "s", features(a.nets.student, v))
    return np.exp(t @ s.T / a.m.tau)


def embed(a: At, side: str, f: Array) -> Array:
    v = linear(a.nets.parts["contrast"].get_submodule(f"project_{side}"), f)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def critic(estimator: str, e: Array, z: float, y: Array) -> tuple[Array, Array]:
    negatives = y[:, None] != y[None]
    if estimator == "infonce":
        return -np.log(np.diag(e)), np.log(np.diag(e) + (e * negatives).sum(axis=1))
    r, n = e / z, negatives.sum(axis=1, keepdims=True)
    h = r / (r + n)
    return -np.log(np.diag(h)), -(np.log(1 - h) * negatives).sum(axis=1)


FORMULAS = (
    natural, pgd_at, trades, mart, peeraid, kd, ard, iad, adaiad, akd, rslad, fair_rslad, absld,
    adaad, dgad, igdm, saad, kdiga, iad2, mtard, bmtard, ciard, fitnet, rrm, crdnd, crd, crd_adv,
    gacd, lbgat, gkl, gkl_at, dard, vgap,
)  # fmt: skip
REFERENCES: dict[str, Callable[[At], Terms]] = {formula.__name__: formula for formula in FORMULAS}


# --- The objectives of the attacks, for each image


def true_label(a: At) -> Array:
    return ce(a.s_adv, a.y)


def teacher_clean(a: At) -> Array:
    return kl(a.t, a.s_adv)


def teacher_softened(a: At) -> Array:
    """At the classes' temperatures for adversarial examples, or both temperatures multiplied."""
    tau_nat, tau_adv = a.buffer("classes.tau")[:, a.y, None]
    tau = tau_nat * tau_adv if a.m.aliased else tau_adv
    return kl_of_probabilities(softmax(a.t / tau), softmax(a.s_adv))


def teacher_adv(a: At) -> Array:
    return kl(a.t_adv, a.s_adv)


def own_clean(a: At) -> Array:
    return kl(a.s, a.s_adv)


def peer_clean(a: At) -> Array:
    return kl(logits(a.nets.parts["peer"], a.x), a.s_adv)


def dice_of_the_first_step(a: At) -> Array:
    """DPGD's objective at its first step, whose share of the wrong images is -1 / 2n."""
    return dice_objective(a, -1 / (2 * a.batch.budget.steps))


def dice_objective(a: At, share: float) -> Array:
    p, losses = softmax(a.s_adv), []
    for chosen in (p.argmax(axis=1) == a.y, p.argmax(axis=1) != a.y):
        hot = one_hot(a.y, 3)[chosen]
        top = 2 * (p[chosen] * hot).sum() + 1e-5
        losses.append(1 - top / ((p[chosen] ** 2).sum() + (hot**2).sum() + 1e-5))
    return (1 - share) * losses[0] + share * losses[1]


def linearised(a: At) -> Array:
    hot, d = one_hot(a.y, 3), (a.adv - a.x).numpy().reshape(len(a.y), -1)
    slope = (input_gradient(a.nets.teacher, a.x, hot) * d).sum(axis=1, keepdims=True)
    return kl(a.t + a.m.slope * slope * hot, a.s_adv)


def feature_angle(a: At) -> Array:
    s, t = (
        embed(a, "s", features(a.nets.student, a.adv)),
        embed(a, "t", features(a.nets.teacher, a.x)),
    )
    return 1 - (s * t).sum(axis=1)
