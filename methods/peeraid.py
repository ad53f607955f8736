"""Adversarial distillation from a peer (PeerAiD): a peer in place of a teacher.

The peer is trained beside the student, only to withstand the student's adversarial examples, and is
its teacher there. Code: jaewonalive/PeerAiD at cd12e9210c; weights, temperatures and attack are
from its CIFAR-10 run. Left out: the student's cross-entropy, which only Tiny-ImageNet's run weighs,
and its second pass of x~, which only BatchNorm sees.
"""

import copy
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Method, Net, Nets, Paper, hp, kl, kl_reduction, kl_scale, quirk
from methods.inner import eval_logits, kl_to, pgd
from methods.recipes import FREE_START, RAW_PIXELS, average_from, sgd


@dataclass(frozen=True)
class Peeraid(Method):
    """tau^2 [l2 KL(P(x~) || S(x~)) + l3 KL(S(x) || S(x~))] for the student S, softened by tau.

    g1 CE(P(x~), y) + g2 KL(S(x~) || P(x~)) for the peer P, not softened; no target passes a
    gradient; x~ = argmax KL(P(x) || S(x~)).
    """

    formula = r"""
        L_S &= \tau^2
          [l_2\,\mathrm{KL}(P(\tilde{x})/\tau\,\|\,S(\tilde{x})/\tau)
            + l_3\,\mathrm{KL}(S(x)/\tau\,\|\,S(\tilde{x})/\tau)] \\
        L_P &= g_1\,\mathrm{CE}(P(\tilde{x}), y)
          + g_2\,\mathrm{KL}(S(\tilde{x})\,\|\,P(\tilde{x})) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(P(x)\,\|\,S(x'))
    """
    paper = Paper(
        "Jung, Jang, Song and Lee",
        "PeerAiD: Improving Adversarial Distillation from a Specialized Peer Tutor",
        "CVPR",
        2024,
        "https://arxiv.org/abs/2403.06668",
    )
    teacher_roles = ()
    # One epoch earlier than RSLAD, and the average from the first fall on.
    recipe = (
        *sgd(300, 214 / 300, 259 / 300, 284 / 300, weight_decay=2e-4),
        *FREE_START,
        *RAW_PIXELS,
        *average_from(214 / 300),
    )
    epoch_dependent = False

    tau: float = hp(5.0, "student's temperature", low=1.0, high=20.0, log=True, above=0.0)
    l2: float = hp(1.0, "weight of the peer's soft labels", low=0.1, high=10.0, log=True)
    l3: float = hp(1.0, "weight of the student's own", low=0.1, high=10.0, log=True)
    g1: float = hp(1.0, "weight of the peer's cross-entropy", low=0.1, high=10.0, log=True)
    g2: float = hp(
        0.1, "weight of the student's soft labels for the peer", low=0.01, high=10.0, log=True
    )
    reduction: str = kl_reduction("mean")
    detach: bool = quirk(True, False, "gradients pass through the student's targets")

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"peer": copy_untrained(student)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        target = eval_logits(nets.parts["peer"], batch.x)
        return pgd(nets.student, batch.x, kl_to(target), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        peer_adv = nets.parts["peer"](adv)
        logits_adv, logits_nat = nets.student(adv), nets.student(batch.x)
        target_adv, target_nat = logits_adv, logits_nat
        if self.detach:
            target_adv, target_nat = logits_adv.detach(), logits_nat.detach()
        weight = kl_scale(self.reduction, logits_adv.shape[1])
        kl_peer = kl(peer_adv.detach(), logits_adv, self.tau).mean()
        kl_self = kl(target_nat, logits_adv, self.tau).mean()
        return {
            "kl_peer": self.l2 * weight * self.tau**2 * kl_peer,
            "kl_self": self.l3 * weight * self.tau**2 * kl_self,
            "peer_ce": self.g1 * F.cross_entropy(peer_adv, batch.y),
            "peer_kl": self.g2 * weight * kl(target_adv, peer_adv).mean(),
        }


def copy_untrained(net: nn.Module) -> nn.Module:
    """Return a copy with fresh weights."""
    peer = copy.deepcopy(net)
    for module in peer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    return peer


METHOD = Peeraid
