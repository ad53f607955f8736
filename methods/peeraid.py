"""Peer adversarial introspection distillation (PeerAiD): no teacher, but a peer that is trained beside the student.

Paper: Jung, Jang, Song and Lee, "PeerAiD: Improving Adversarial Distillation from a Specialized Peer Tutor", CVPR 2024: the
peer learns only to withstand the student's adversarial images and is the student's teacher there.
Code: jaewonalive/PeerAiD at cd12e9210c; weights, temperatures and the attack are from its CIFAR-10 run. Left out: its
cross-entropy of the student, which only Tiny-ImageNet's run weighs, and its second pass of x~, which only BatchNorm sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from methods.adaptive import untrained
from methods.base import Batch, Method, Net, Nets, hp, kl, quirk, scale
from methods.inner import kl_to, pgd, settled
from methods.recipes import LATE


@dataclass(frozen=True)
class Peeraid(Method):
    """tau^2 [l2 KL(P(x~) || S(x~)) + l3 KL(S(x) || S(x~))] for the student S, x~ = argmax KL(P(x) || S(x~)).

    g1 CE(P(x~), y) + g2 KL(S(x~) || P(x~)) for the peer P; no target passes a gradient.
    """

    requires = ()
    recipe = LATE

    tau: float = hp(
        5.0, "temperature of the student's terms", low=1.0, high=20.0, log=True, above=0.0
    )
    l2: float = hp(1.0, "weight of the peer's soft labels", low=0.1, high=10.0, log=True)
    l3: float = hp(1.0, "weight of the student's own", low=0.1, high=10.0, log=True)
    g1: float = hp(1.0, "weight of the peer's cross-entropy", low=0.1, high=10.0, log=True)
    g2: float = hp(
        0.1, "weight of the student's soft labels for the peer", low=0.01, high=10.0, log=True
    )
    reduction: str = quirk(
        "batchmean", "mean", "KL averaged over the classes too: a tenth of it on 10 classes"
    )
    detach: bool = quirk(
        True, False, "gradients pass through the student's outputs where they are targets"
    )

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"peer": untrained(student)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        target = settled(nets.parts["peer"], batch.x)
        return pgd(nets.student, batch.x, kl_to(target), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        peer, far, near = nets.parts["peer"](adv), nets.student(adv), nets.student(batch.x)
        to_peer, own = (far.detach(), near.detach()) if self.detach else (far, near)
        weight = scale(self.reduction, far.shape[1])
        return {
            "kl_peer": self.l2 * weight * self.tau**2 * kl(peer.detach(), far, self.tau).mean(),
            "kl_self": self.l3 * weight * self.tau**2 * kl(own, far, self.tau).mean(),
            "peer_ce": self.g1 * F.cross_entropy(peer, batch.y),
            "peer_kl": self.g2 * weight * kl(to_peer, peer).mean(),
        }


METHOD = Peeraid
