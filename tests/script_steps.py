"""Steps of every method from its formula, written a second time: what the methods must equal.

Nothing of `methods` computes here: networks' weights and hyper-parameters are read, and attack,
loss, gradient, update and everything that moves are these lines' own, in double precision and as
plainly as possible. Where a formula and its script differ the method's switches choose. Terms come
in the order of the passes of which BatchNorm takes note.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Net

Terms = dict[str, Tensor]
Objective = Callable[[Tensor], Tensor]
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
EPS, STEP, STEPS = 0.1, 0.04, 4
# Epochs of the steps, of ten: some come twice, some are after a script's milestones.
EPOCHS, ALL_EPOCHS = (0, 3, 3, 9), 10
MILESTONES = (215 / 300, 260 / 300, 285 / 300)


@dataclass
class Run:
    """What a formula reads and what it keeps between steps.

    m: hyper-parameters. parts: trainable modules beyond the student. kept: everything that moves
    and is no weight.
    """

    m: Any
    student: Net
    teachers: dict[str, Net]
    parts: dict[str, nn.Module]
    clamp_start: bool
    kept: dict[str, Any] = field(default_factory=dict)
    x: Tensor = field(default_factory=lambda: torch.empty(0))
    y: Tensor = field(default_factory=lambda: torch.empty(0))
    index: Tensor = field(default_factory=lambda: torch.empty(0))
    epoch: int = 0
    classes: int = 0

    def t(self, x: Tensor) -> Tensor:
        """Return the robust teacher's logits."""
        return self.teachers["robust"](x).detach()

    def n(self, x: Tensor) -> Tensor:
        """Return the natural teacher's logits."""
        return self.teachers["natural"](x).detach()

    def reached(self, share: float) -> bool:
        return self.epoch / ALL_EPOCHS >= share

    @property
    def decay(self) -> float:
        return 0.1 ** sum(self.reached(share) for share in MILESTONES)

    @property
    def factor(self) -> float:
        """The factor on the batch's mean of a sum over the classes."""
        ten = 0.1 if self.classes == 10 else 1
        factors = {"batchmean": 1, "mean": 1 / self.classes, "tenth": 0.1, "mean10": ten}
        return factors[self.m.reduction]

    def ascend(self, objective: Objective, start: str = "gauss", train: bool = False) -> Tensor:
        """Return projected gradient ascent from a random start, the student in eval mode."""
        noise = torch.zeros_like(self.x)
        if start == "gauss":
            noise = 0.001 * torch.randn(self.x.shape)
        elif start == "uniform":
            noise = EPS * (2 * torch.rand(self.x.shape) - 1)
        adv = self.x + noise
        if self.clamp_start:
            adv = adv.clamp(0, 1)
        self.student.train(train)
        for _ in range(STEPS):
            adv.requires_grad_()
            (slope,) = torch.autograd.grad(objective(adv).sum(), adv)
            adv = adv.detach() + STEP * slope.sign()
            adv = torch.minimum(torch.maximum(adv, self.x - EPS), self.x + EPS).clamp(0, 1)
        self.student.train()
        return adv

    def both(self, adv: Tensor, clean_first: bool) -> tuple[Tensor, Tensor]:
        """Return the student's logits of x~ and of x, passed in this order or the other."""
        if clean_first:
            z = self.student(self.x)
            return self.student(adv), z
        return self.student(adv), self.student(self.x)

    def look(self, *passes: Tensor) -> None:
        """Let the student's running statistics see images."""
        for x in passes:
            self.student(x)

    def ce_attack(self, start: str = "gauss", train: bool = False) -> Tensor:
        return self.ascend(lambda adv: ce(self.student(adv), self.y), start, train)

    def kl_attack(self, target: Tensor) -> Tensor:
        return self.ascend(lambda adv: kl(target, self.student(adv)))

    def disagreement(self) -> Tensor:
        teacher = self.teachers["robust"]
        return self.ascend(lambda adv: kl(teacher(adv), self.student(adv)))


# --- Pieces


def ce(z: Tensor, y: Tensor) -> Tensor:
    return -label(z.log_softmax(1), y)


def kl(target: Tensor, z: Tensor, tau: float = 1.0) -> Tensor:
    """(B, C), (B, C) -> (B,)."""
    p, q = (target / tau).softmax(1), (z / tau).softmax(1)
    return (p * (p / q).log()).sum(1)


def label(z: Tensor, y: Tensor) -> Tensor:
    return torch.stack([row[c] for row, c in zip(z, y, strict=True)])


def entropy(z: Tensor) -> Tensor:
    p = z.softmax(1)
    return -(p * p.log()).sum(1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)


def unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=1, keepdim=True)


# --- Without a teacher


def natural(r: Run) -> tuple[Tensor, Terms]:
    return r.x, {"ce": ce(r.student(r.x), r.y).mean()}


def pgd_at(r: Run) -> tuple[Tensor, Terms]:
    adv = r.ce_attack("uniform")
    return adv, {"ce_adv": ce(r.student(adv), r.y).mean()}


def own_target(net: Net, x: Tensor) -> Tensor:
    net.eval()
    target = net(x).detach()
    net.train()
    return target


def trades(r: Run) -> tuple[Tensor, Terms]:
    adv = r.kl_attack(own_target(r.student, r.x))
    z, z_adv = r.student(r.x), r.student(adv)
    target = r.student(r.x) if r.m.script_passes else z
    return adv, {"ce": ce(z, r.y).mean(), "kl_adv": r.m.beta * kl(target, z_adv).mean()}


def mart(r: Run) -> tuple[Tensor, Terms]:
    adv = r.ce_attack()
    z_adv, z = r.both(adv, r.m.script_passes)
    p = z_adv.softmax(1)
    rival = torch.stack(
        [max(row[c] for c in range(r.classes) if c != y) for row, y in zip(p, r.y, strict=True)]
    )
    missed = 1.0000001 - label(z.softmax(1), r.y)
    return adv, {
        "bce": (ce(z_adv, r.y) - (1.0001 - rival).log()).mean(),
        "kl_adv": r.m.beta * (missed * kl(z, z_adv)).mean(),
    }


def peeraid(r: Run) -> tuple[Tensor, Terms]:
    m, peer = r.m, r.parts["peer"]
    adv = r.kl_attack(own_target(peer, r.x))  # type: ignore[arg-type]
    p, s_adv, s = peer(adv), r.student(adv), r.student(r.x)
    to_adv, to_nat = (s_adv.detach(), s.detach()) if m.detach else (s_adv, s)
    return adv, {
        "kl_peer": m.l2 * m.tau**2 * r.factor * kl(p.detach(), s_adv, m.tau).mean(),
        "kl_self": m.l3 * m.tau**2 * r.factor * kl(to_nat, s_adv, m.tau).mean(),
        "peer_ce": m.g1 * ce(p, r.y).mean(),
        "peer_kl": m.g2 * r.factor * kl(to_adv, p).mean(),
    }


# --- Soft labels of one teacher


def kd(r: Run) -> tuple[Tensor, Terms]:
    m, z = r.m, r.student(r.x)
    return r.x, {
        "ce": (1 - m.alpha) * ce(z, r.y).mean(),
        "kl": m.alpha * m.tau**2 * kl(r.t(r.x), z, m.tau).mean(),
    }


def ard(r: Run) -> tuple[Tensor, Terms]:
    m = r.m
    adv = r.ce_attack("uniform", train=m.train_mode_attack)
    soft = m.alpha * m.tau**2 * r.factor * kl(r.t(r.x), r.student(adv), m.tau).mean()
    terms = {"kl_adv": soft}
    if m.alpha < 1 or m.extra_forward:
        clean = ce(r.student(r.x), r.y).mean()
        if m.alpha < 1:
            terms["ce"] = (1 - m.alpha) * clean
    return adv, terms


def introspective(r: Run, adv: Tensor, target: Tensor) -> Terms:
    m = r.m
    trust = label(r.t(adv).softmax(1), r.y) ** (m.beta if r.reached(m.begin) else 0)
    z_adv, z = r.student(adv), r.student(r.x)
    tau_self = 1.0 if m.plain_self else m.tau
    soft = kl(target, z_adv, m.tau) * (1 if m.trust_all else trust)
    own = (1 - trust) * kl(z.detach() if m.detach else z, z_adv, tau_self)
    return {"kl_teacher": m.tau**2 * soft.mean(), "kl_self": tau_self**2 * own.mean()}


def iad(r: Run) -> tuple[Tensor, Terms]:
    adv = r.ce_attack("uniform", train=r.m.train_mode_attack)
    return adv, introspective(r, adv, r.t(r.x))


def adaiad(r: Run) -> tuple[Tensor, Terms]:
    adv = r.disagreement()
    if r.m.script_passes:
        r.look(r.x)
    terms = introspective(r, adv, r.t(adv))
    if r.m.script_passes and r.reached(r.m.begin):
        r.look(r.x)
    return adv, terms


def akd(r: Run) -> tuple[Tensor, Terms]:
    m, adv = r.m, r.ce_attack("uniform")
    z, target = r.student(adv), r.t(adv if r.m.teacher_input == "adv" else r.x)
    return adv, {
        "ce_adv": (1 - m.alpha) * ce(z, r.y).mean(),
        "kl_adv": m.alpha * m.tau**2 * kl(target, z, m.tau).mean(),
    }


def two_divergences(r: Run, adv: Tensor, target_adv: Tensor, target: Tensor, w: Any = 1) -> Terms:
    """Return RSLAD's terms: adversarial images pass the student first."""
    share = r.m.alpha
    kl_adv = share * r.factor * (w * kl(target_adv, r.student(adv))).mean()
    kl_nat = (1 - share) * r.factor * (w * kl(target, r.student(r.x))).mean()
    return {"kl_adv": kl_adv, "kl": kl_nat}


def rslad(r: Run) -> tuple[Tensor, Terms]:
    target = r.t(r.x)
    adv = r.kl_attack(target)
    return adv, two_divergences(r, adv, target, target)


def class_means(r: Run, name: str, values: list[float]) -> None:
    """Add a value for each image to those of this epoch."""
    for c, value in zip(r.y.tolist(), values, strict=True):
        r.kept.setdefault(name, {}).setdefault(c, []).append(value)


def ended_epoch(r: Run, *names: str) -> list[dict[int, list[float]]] | None:
    """Return the values of the last epoch as another begins, if each class has some."""
    if r.kept.setdefault("epoch", 0) == r.epoch:
        return None
    r.kept["epoch"] = r.epoch
    tables = [r.kept.pop(name, {}) for name in names]
    complete = all(len(table) == r.classes for table in tables)
    return tables if complete or r.m.class_sums else None


def means_by_class(r: Run, table: dict[int, list[float]]) -> list[float]:
    """Return each class's mean, or its sum over the mean number of images of a class."""
    sizes: list[float] = [len(table.get(c, [])) for c in range(r.classes)]
    if r.m.class_sums:
        sizes = [sum(sizes) / r.classes] * r.classes
    return [sum(table.get(c, [])) / size for c, size in enumerate(sizes)]


def fair_rslad(r: Run) -> tuple[Tensor, Terms]:
    weights = r.kept.setdefault("weights", [1.0] * r.classes)
    if tables := ended_epoch(r, "kappa"):
        means = means_by_class(r, tables[0])
        raw = [max(mean, 0.1) ** -r.m.power for mean in means]
        weights = [min(max(w * r.classes / sum(raw), 5 / 6), 5 / 2) for w in raw]
        r.kept["weights"] = weights
    target, right = r.t(r.x), torch.zeros(len(r.y))

    def objective(adv: Tensor) -> Tensor:
        z = r.student(adv)
        right.add_(z.argmax(1) == r.y)
        return kl(target, z)

    adv = r.ascend(objective)
    class_means(r, "kappa", right.tolist())
    w = torch.tensor([weights[c] for c in r.y], dtype=torch.float64)
    return adv, two_divergences(r, adv, target, target, w)


def absld(r: Run) -> tuple[Tensor, Terms]:
    names = ("clean", "attacked")
    tau = r.kept.setdefault("tau", [[1.0] * r.classes, [1.0] * r.classes])
    if tables := ended_epoch(r, *names):
        for row, table in zip(tau, tables, strict=True):
            means = means_by_class(r, table)
            gaps = [mean - sum(means) / r.classes for mean in means]
            largest = max(map(abs, gaps))
            for c, gap in enumerate(gaps):
                row[c] = min(max(row[c] - r.m.rate * r.decay * gap / largest, 0.5), 5.0)
    clean, attacked = (torch.tensor([[row[c]] for c in r.y], dtype=torch.float64) for row in tau)
    if r.m.aliased:
        clean = attacked = clean * attacked
    target = r.t(r.x)
    adv = r.kl_attack(target / attacked)
    z_adv, z = r.student(adv), r.student(r.x)
    class_means(r, "clean", ce(z, r.y).tolist())
    class_means(r, "attacked", ce(z_adv, r.y).tolist())
    share = r.m.alpha
    return adv, {
        "kl_adv": share * r.factor * kl(target / attacked, z_adv).mean(),
        "kl": (1 - share) * r.factor * kl(target / clean, z).mean(),
    }


def adaad(r: Run) -> tuple[Tensor, Terms]:
    adv, share = r.disagreement(), r.m.alpha
    if share == 1:
        if r.m.extra_forward:
            r.look(r.x)
        return adv, {"kl_adv": r.factor * kl(r.t(adv), r.student(adv)).mean()}
    z_adv, z = r.both(adv, r.m.extra_forward)
    return adv, {
        "kl_adv": share * r.factor * kl(r.t(adv), z_adv).mean(),
        "kl": (1 - share) * r.factor * kl(r.t(r.x), z).mean(),
    }


def dgad(r: Run) -> tuple[Tensor, Terms]:
    adv = r.disagreement()
    target, target_adv = r.t(r.x), r.t(adv)
    right = (target.argmax(1) == r.y).double()
    if r.m.swap:
        for table in (target, target_adv):
            for row, c in zip(table, r.y.tolist(), strict=True):
                top = int(row.argmax())
                row[[c, top]] = row[[top, c]]
    z_adv, z = r.both(adv, r.m.script_passes)
    return adv, {
        "kl_adv": (right * kl(target_adv, z_adv)).mean(),
        "kl": ((1 - right) * kl(target, z)).mean(),
        "mse": r.m.beta * (z_adv.softmax(1) - z.softmax(1)).square().mean(),
    }


def along_the_attack(r: Run, adv: Tensor, z_adv: Tensor) -> Tensor:
    """Return IGDM's divergence of logit differences between x + d and x - d."""
    behind = r.x - (adv - r.x)
    return kl(r.t(adv) - r.t(behind), z_adv - r.student(behind))


def igdm(r: Run) -> tuple[Tensor, Terms]:
    """With AdaAD as its base, whose script passes x~, x, x - d and x~ once more."""
    base = Run(**{**vars(r), "m": r.m.base_values})
    norm = r.student.get_submodule("norm")
    before = copy.deepcopy(dict(norm.named_buffers()))
    adv, terms = STEPS_OF[r.m.base](base)
    ramp = (r.epoch + 1) / ALL_EPOCHS
    term = r.m.alpha * ramp * along_the_attack(r, adv, r.student(adv)).mean()
    if r.m.script_passes:
        for name, value in before.items():
            setattr(norm, name, value)
        r.look(adv, r.x, 2 * r.x - adv, adv)
    return adv, terms | {"igdm": term}


def saad(r: Run) -> tuple[Tensor, Terms]:
    m, x = r.m, r.x.clone().requires_grad_()
    z = r.teachers["robust"](x)
    (slope,) = torch.autograd.grad(label(z, r.y).sum(), x)
    hot = torch.eye(r.classes, dtype=torch.float64)[r.y]

    def objective(adv: Tensor) -> Tensor:
        rise = m.slope * (slope * (adv - r.x)).flatten(1).sum(1)
        return kl(z.detach() + rise[:, None] * hot, r.student(adv))

    adv = r.ascend(objective)
    h, ramp = entropy(r.t(adv)), ((r.epoch + 1) / ALL_EPOCHS if m.ramp else 1)
    low, high = h.min(), h.max()
    w, sure = h, 1 - h / math.log(r.classes)
    if m.shifted:
        w, sure = 5 * (h - low), 1 - (h - low) / (high - low)
    z_adv = r.student(adv)
    term = along_the_attack(r, adv, z_adv)
    terms = {
        "kl_adv": (w * kl(r.t(adv), z_adv)).mean(),
        "igdm": m.alpha * ramp * (w * term).mean(),
    }
    if m.beta:
        terms["kl"] = m.beta * (sure * kl(r.t(r.x), r.student(r.x))).mean()
    elif m.script_passes:
        r.look(r.x)
    return adv, terms


def kdiga(r: Run) -> tuple[Tensor, Terms]:
    m = r.m
    adv = r.ce_attack("uniform", train=m.train_mode_attack) if m.inputs == "adv" else r.x
    if m.script_passes:
        logits_first = r.student(adv) if m.inputs == "adv" else None
        r.look(r.x)
    x = r.x.clone().requires_grad_()
    z, target = r.student(x), r.teachers["robust"](x)
    (own,) = torch.autograd.grad(ce(z, r.y).sum(), x, create_graph=True)
    (teacher_slope,) = torch.autograd.grad(ce(target, r.y).sum(), x)
    logits, soft = z, target.detach()
    if m.inputs == "adv":
        soft, logits = r.t(adv), logits_first if m.script_passes else r.student(adv)
    gap = (own - teacher_slope).flatten(1)
    distance = gap.norm(dim=1).mean()
    if m.gradient_norm == "batch":
        # Of the gradients of the mean loss, over the number of images.
        distance = (gap / len(r.y)).norm() / len(r.y)
    return adv, {
        "ce": (1 - m.alpha) * ce(z, r.y).mean(),
        "kl": m.alpha * m.tau**2 * r.factor * kl(soft, logits, m.tau).mean(),
        "gradient": m.gamma * distance,
    }


# --- Two teachers


def iad2(r: Run) -> tuple[Tensor, Terms]:
    m = r.m
    adv = r.ce_attack("uniform", train=m.train_mode_attack)
    robust, natural_ = r.t(adv), r.n(adv)
    trust = label(robust.softmax(1), r.y) ** (m.beta if r.reached(m.begin) else 0)
    z_adv, z = r.student(adv), r.student(r.x)
    u, v = m.alpha_robust * m.tau**2, m.alpha_natural * m.tau**2
    return adv, {
        "ce_adv": (1 - m.alpha_robust - m.alpha_natural) * ce(z_adv, r.y).mean(),
        "kl_robust": u * (trust * kl(robust, z_adv, m.tau)).mean(),
        "kl_self": u * ((1 - trust) * kl(z, z_adv)).mean(),
        "kl_natural": v * kl(natural_, z_adv, m.tau).mean(),
    }


def mtard(r: Run) -> tuple[Tensor, Terms]:
    adv = r.ce_attack()
    return adv, balanced(r, adv, r.t(adv), r.n(r.x))


def balanced(r: Run, adv: Tensor, robust: Tensor, natural_: Tensor) -> Terms:
    """Return both terms at their weights, which move by what the terms have become."""
    terms = [
        r.factor * kl(robust, r.student(adv)).mean(),
        r.factor * kl(natural_, r.student(r.x)).mean(),
    ]
    first = r.kept.setdefault("first", [term.item() for term in terms])
    w = r.kept.setdefault("w", 0.5)
    ratio = [(term.item() / start) ** r.m.gamma for term, start in zip(terms, first, strict=True)]
    r.kept["w"] = w + r.m.eta * r.decay * (ratio[0] / sum(ratio) - w)
    if r.m.early_weights:
        w = r.kept["w"]
    return {"kl_robust": w * terms[0], "kl_natural": (1 - w) * terms[1]}


def softened(r: Run, robust: Tensor, natural_: Tensor) -> tuple[Tensor, Tensor]:
    """Return both teachers' logits at their temperatures, which move by their entropies."""
    t, u = r.kept.setdefault("tau", (1.0, 1.0))
    robust, natural_ = robust / t, natural_ / u
    gap = entropy(robust).mean() - entropy(natural_).mean()
    move = r.m.rate * r.decay * math.copysign(1, gap)
    r.kept["tau"] = (min(max(t - move, 1), 10), min(max(u + move, 1), 10))
    return robust, natural_


def bmtard(r: Run) -> tuple[Tensor, Terms]:
    adv = r.ce_attack()
    return adv, balanced(r, adv, *softened(r, r.t(adv), r.n(r.x)))


def ciard(r: Run) -> tuple[Tensor, Terms]:
    learner = r.parts["teacher"].train(r.m.train_mode_teacher)
    if r.m.script_passes:
        z = r.student(r.x)
        learner(r.x)
    adv = r.ce_attack()
    z_robust, wrong_way = learner(adv), r.n(adv)
    robust, natural_ = softened(r, z_robust.detach(), r.n(r.x))
    z_adv = r.student(adv)
    if not r.m.script_passes:
        z = r.student(r.x)
    terms = {
        "kl_robust": r.factor * kl(robust, z_adv).mean(),
        "kl_natural": r.factor * kl(natural_, z).mean(),
    }
    wrong = wrong_way.argmax(1) != r.y
    push = r.factor * kl(wrong_way, z_adv / 5)[wrong].mean()
    smaller = min(term.item() for term in terms.values())
    order = math.floor(math.log10(smaller)) - math.floor(math.log10(push.item()))
    terms["push"] = -r.m.push * 10**order * push
    if r.reached(r.m.begin):
        terms["teacher_ce"] = ce(z_robust, r.y).mean()
    return adv, terms


# --- Features


def fitnet(r: Run) -> tuple[Tensor, Terms]:
    adv = r.ce_attack("uniform") if r.m.inputs == "adv" else r.x
    f, target = r.student.features(adv), r.teachers["robust"].features(adv).detach()
    error = (r.parts["regressor"](f) - target).square().mean()
    return adv, {"ce": ce(r.student.head(f), r.y).mean(), "mse": r.m.beta * error}


def rrm(r: Run) -> tuple[Tensor, Terms]:
    f, target = r.student.features(r.x), r.teachers["robust"].features(r.x).detach()
    return r.x, {
        "ce": r.m.alpha * ce(r.student.head(f), r.y).mean(),
        "cosine": 1 - cosine(r.parts["project"](f), target).mean(),
    }


def crdnd(r: Run) -> tuple[Tensor, Terms]:
    target, share = r.t(r.x), r.m.clean_share
    adv = r.kl_attack(target)
    z_adv, z = r.student(adv), r.student(r.x)
    return adv, {
        "contrast_adv": (1 - share) * nt_xent(r, z_adv, r.t(adv)),
        "contrast": share * nt_xent(r, z, target),
    }


def nt_xent(r: Run, z: Tensor, target: Tensor) -> Tensor:
    if r.m.denoise:
        matrix = torch.eye(r.classes, dtype=torch.float64)
        for c in set(r.y.tolist()):
            right = (target[r.y == c].argmax(1) == c).double().mean()
            matrix[:, c] = (1 - right) / (r.classes - 1)
            matrix[c, c] = right
        z = z @ matrix.T
    views, losses = unit(torch.cat([z, target])), []
    for i, view in enumerate(views):
        e = (views @ view / r.m.tau).exp()
        losses.append(-(e[(i + len(z)) % len(views)] / (e.sum() - e[i])).log())
    return torch.stack(losses).mean()


def crd(r: Run) -> tuple[Tensor, Terms]:
    f, anchor = r.student.features(r.x), r.teachers["robust"].features(r.x).detach()
    losses = remembered(r, anchor, f) if r.m.memory else contrastive(r, anchor, f)
    contrast = r.m.lambda_con * losses.mean()
    return r.x, {"contrast": contrast, "ce": ce(r.student.head(f), r.y).mean()}


def remembered(r: Run, anchor: Tensor, f: Tensor) -> Tensor:
    """Return the critic's loss against a memory that has room for all negatives there are."""
    part, losses = r.parts["contrast"], torch.zeros(len(r.y), dtype=torch.float64)
    sides = {
        "t": unit(part.get_submodule("project_t")(anchor)),
        "s": unit(part.get_submodule("project_s")(f)),
    }
    if "memory" not in r.kept:
        noise = {side: part.get_buffer(f"memory_{side}").clone() for side in sides}
        r.kept |= {"memory": noise, "labels": [-1] * len(noise["s"]), "fixed": {}}
    labels = list(r.kept["labels"])
    for i, c in zip(r.index.tolist(), r.y.tolist(), strict=True):
        labels[i] = c
    for side, other in (("t", "s"), ("s", "t")):
        memory, pairs, others = r.kept["memory"][other], [], []
        for v, i, c in zip(sides[side], r.index.tolist(), r.y.tolist(), strict=True):
            pairs.append(v @ memory[i])
            others.append(
                [v @ row for row, label_ in zip(memory, labels, strict=True) if label_ != c]
            )
        if side not in r.kept["fixed"]:
            scores = torch.stack([*pairs, *(score for row in others for score in row)])
            r.kept["fixed"][side] = (scores / r.m.tau).exp().mean().item()
        z = r.kept["fixed"][side]
        losses = losses + torch.stack(
            [critic(r, pair, row, z) for pair, row in zip(pairs, others, strict=True)]
        )
    for side, embedded in sides.items():
        memory = r.kept["memory"][side] = r.kept["memory"][side].clone()
        memory[r.index] = unit(0.5 * memory[r.index] + 0.5 * embedded.detach())
    r.kept["labels"] = labels
    return losses


def crd_adv(r: Run) -> tuple[Tensor, Terms]:
    adv = r.ce_attack("uniform")
    f, anchor = r.student.features(adv), r.teachers["robust"].features(r.x).detach()
    contrast = r.m.lambda_con * contrastive(r, anchor, f).mean()
    return adv, {"contrast": contrast, "ce": ce(r.student.head(f), r.y).mean()}


def gacd(r: Run) -> tuple[Tensor, Terms]:
    """As the figure has it, with the teacher's probability as weight; no other switch."""
    adv, m = r.ce_attack("uniform"), r.m
    anchor = r.teachers["robust"].features(adv).detach()
    f = r.student.features(adv)
    w = label(r.teachers["robust"].head(anchor).softmax(1), r.y).detach() ** m.beta
    contrast = (w / w.mean() * contrastive(r, anchor, f)).mean()
    return adv, {
        "contrast": m.lambda_con * contrast,
        "ce_adv": m.lambda_ce * ce(r.student.head(f), r.y).mean(),
    }


def contrastive(r: Run, anchor: Tensor, f: Tensor) -> Tensor:
    """Return the critic's loss of each anchor, (B,), against the batch or the queue."""
    part = r.parts["contrast"]
    t = unit(part.get_submodule("project_t")(anchor))
    s = unit(part.get_submodule("project_s")(f))
    size = len(r.y)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    e = (t @ s.T / r.m.tau).exp().detach()
    mean = sum(e[pair].item() for pair in pairs) / len(pairs)
    z = r.kept["z"] = 0.99 * r.kept["z"] + 0.01 * mean if "z" in r.kept else mean
    candidates = list(zip(s, t, r.y.tolist(), strict=True))
    if r.m.bank:
        candidates = r.kept.get("queue", [])
        now = zip(s.detach(), t.detach(), r.y.tolist(), strict=True)
        r.kept["queue"] = [*now, *candidates][: r.m.bank]
    losses = []
    for i, c in enumerate(r.y.tolist()):
        others = [(s_j, t_j) for s_j, t_j, label_ in candidates if label_ != c]
        loss = critic(r, t[i] @ s[i], [t[i] @ s_j for s_j, _ in others], z)
        if r.m.symmetric:
            loss = loss + critic(r, t[i] @ s[i], [s[i] @ t_j for _, t_j in others], z)
        losses.append(loss)
    return torch.stack(losses)


def critic(r: Run, pair: Tensor, others: list[Tensor], z: float) -> Tensor:
    n, zero = max(len(others), 1), torch.zeros((), dtype=torch.float64)
    if r.m.estimator == "infonce":
        rest = sum(((other / r.m.tau).exp() for other in others), zero)
        e = (pair / r.m.tau).exp()
        return -(e / (e + rest)).log()

    def h_and_rest(score: Tensor) -> tuple[Tensor, Tensor]:
        ratio = (score / r.m.tau).exp() / z
        # 1 - h as a quotient, because h may be 1 but for the last digits.
        return ratio / (ratio + n), n / (ratio + n)

    rest = (h_and_rest(other)[1].log() for other in others)
    return -h_and_rest(pair)[0].log() - sum(rest, zero)


# --- After 2024


def gkl(r: Run) -> tuple[Tensor, Terms]:
    target = r.t(r.x)
    prior = class_prior(r)
    adv = r.kl_attack(target)
    z_adv, z = r.student(adv), r.student(r.x)
    return adv, decoupled(r, prior, target, z, z_adv)


def gkl_at(r: Run) -> tuple[Tensor, Terms]:
    prior = class_prior(r)
    adv = r.kl_attack(own_target(r.student, r.x))
    z_adv, z = r.student(adv), r.student(r.x)
    return adv, decoupled(r, prior, z, z, z_adv)


def class_prior(r: Run) -> list[list[float]]:
    """Return q: by class the mean softened probabilities in the last epoch, uniform before."""
    prior = r.kept.setdefault("prior", [[1 / r.classes] * r.classes for _ in range(r.classes)])
    if r.kept.setdefault("epoch", 0) != r.epoch:
        r.kept["epoch"] = r.epoch
        for c, rows in r.kept.pop("probabilities", {}).items():
            prior[c] = torch.stack(rows).mean(0).tolist()
    return prior


def decoupled(r: Run, prior: Any, target: Tensor, z: Tensor, z_adv: Tensor) -> Terms:
    up, down = torch.zeros((), dtype=torch.float64), 0.0
    for t, s, c in zip(target, z_adv, r.y.tolist(), strict=True):
        q = torch.tensor(prior[c], dtype=torch.float64)
        w = (q[:, None] * q[None]) ** r.m.gamma
        gap = (t[:, None] - t[None]) - (s[:, None] - s[None])
        up, down = up + (w * gap**2).sum(), down + w.sum().item()
        softened_ = (t.detach() / r.m.tau).softmax(0)
        r.kept.setdefault("probabilities", {}).setdefault(c, []).append(softened_)
    soft = -(target.detach().softmax(1) * z_adv.softmax(1).log()).sum(1).mean()
    return {
        "ce": ce(z, r.y).mean(),
        "soft_ce": r.m.alpha * soft,
        "wmse": r.m.beta * up / down / 4,
    }


def lbgat(r: Run) -> tuple[Tensor, Terms]:
    adv = r.kl_attack(own_target(r.student, r.x))
    z_adv, z = r.student(adv), r.student(r.x)
    n = r.parts["natural"](r.x)
    return adv, {
        "mse": (z_adv - n).square().mean(),
        "natural_ce": ce(n, r.y).mean(),
        "kl_adv": r.m.beta * kl(z, z_adv).mean(),
    }


def dard(r: Run) -> tuple[Tensor, Terms]:
    adv = r.ascend(dice_ascent(r, r.student), "none", train=r.m.train_mode_attack)
    robust = r.t(r.ascend(dice_ascent(r, r.teachers["robust"]), "none"))
    p = (robust.softmax(1) + r.n(r.x).softmax(1)) / 2
    if r.m.resoftened:
        p = p.softmax(1)
    z = r.student(adv)
    return adv, {
        "kl_adv": r.m.alpha * (p * (p / z.softmax(1)).log()).sum(1).mean(),
        "ce_adv": (1 - r.m.alpha) * ce(z, r.y).mean(),
    }


def dice_ascent(r: Run, net: nn.Module) -> Objective:
    steps = iter(range(STEPS))

    def objective(adv: Tensor) -> Tensor:
        p, share = net(adv).softmax(1), (next(steps) - 1) / (2 * STEPS)
        right, total = p.argmax(1) == r.y, torch.zeros((), dtype=torch.float64)
        for mask, weight in ((right, 1 - share), (~right, share)):
            overlap = 2 * label(p, r.y)[mask].sum() if mask.any() else 0
            size = (p[mask].square().sum(1) + 1).sum()
            total = total + weight * (1 - (overlap + 1e-5) / (size + 1e-5))
        return total

    return objective


def vgap(r: Run) -> tuple[Tensor, Terms]:
    target = r.t(r.x)
    adv = r.kl_attack(target)
    teacher, share, beta = r.teachers["robust"], r.m.alpha, r.m.beta
    f_adv, f = r.student.features(adv), r.student.features(r.x)
    g_adv, g = teacher.features(adv).detach(), teacher.features(r.x).detach()
    return adv, {
        "kl_adv": share * kl(target, r.student.head(f_adv)).mean(),
        "kl": (1 - share) * kl(target, r.student.head(f)).mean(),
        "gram_adv": beta * (gram(f_adv, f) - gram(g_adv, g)).square().sum(),
        "gram": beta * (gram(f, f) - gram(g, g)).square().sum(),
    }


def gram(features: Tensor, clean: Tensor) -> Tensor:
    centred = features - features.mean(0)
    return centred @ centred.T / (clean - clean.mean(0)).square().sum()


FORMULAS = (
    natural, pgd_at, trades, mart, peeraid, kd, ard, iad, adaiad, akd, rslad, fair_rslad, absld,
    adaad, dgad, igdm, saad, kdiga, iad2, mtard, bmtard, ciard, fitnet, rrm, crdnd, crd, crd_adv,
    gacd, gkl, gkl_at, lbgat, dard, vgap,
)  # fmt: skip
STEPS_OF: dict[str, Callable[[Run], tuple[Tensor, Terms]]] = {f.__name__: f for f in FORMULAS}


# --- Updates


@dataclass
class Descent:
    """SGD with momentum. groups: parameters, rate, momentum, weight decay."""

    groups: list[tuple[list[Tensor], float, float, float]]
    speed: dict[int, Tensor] = field(default_factory=dict)

    def step(self, loss: Tensor) -> None:
        everything = [value for values, *_ in self.groups for value in values]
        slopes = torch.autograd.grad(loss, everything, allow_unused=True)
        slope_of = dict(zip(map(id, everything), slopes, strict=True))
        for values, rate, momentum, decay in self.groups:
            for value in values:
                slope = slope_of[id(value)]
                value.grad = slope
                if slope is None:
                    continue
                with torch.no_grad():
                    force = slope + decay * value
                    old = self.speed.get(id(value))
                    now = force if old is None else momentum * old + force
                    self.speed[id(value)] = now
                    value -= rate * now


def groups_of(r: Run) -> list[tuple[list[Tensor], float, float, float]]:
    student, parts = (
        [*r.student.parameters()],
        [p for m in r.parts.values() for p in m.parameters()],
    )
    if isinstance(r.parts.get("teacher"), Net) and hasattr(r.m, "teacher_rate"):
        # CIARD's robust teacher.
        learner = (parts, LR * r.m.teacher_rate, 0.1, 2e-4)
        return [(student, LR, MOMENTUM, WEIGHT_DECAY), learner]
    return [(student + parts, LR, MOMENTUM, WEIGHT_DECAY)]


def namespace(values: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**values)
