"""The tests that every method must pass: this repository's and those of outside packages.

In a test file of the package that defines the method:

    from methods.contract import Contract
    from mine import Mine

    class TestMine(Contract):
        cases = (Mine(), Mine(alpha=0.0))

pytest finds the tests by inheritance and runs each for every case, so give one case for each branch of the loss. As in
a run, student and parts are in train mode, teachers frozen in eval mode, and only the teachers in `requires` are there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn

from methods.base import RECIPE, Batch, Budget, Method, Net, Nets, official

# The flags of `run` and words kept for it: no hyper-parameter may be called so.
RESERVED = frozenset(
    {
        "store",
        "data_root",
        "device",
        "suite",
        "dataset",
        "limit_train",
        "limit_test",
        "precision",
        "force",
    }
    | {"method", "student", "teacher", "seeds", "epochs", "official", "awp", "dry_run"}
    | {"help", "executor", "workers", "sync_batchnorm", "config"}
)
EPOCHS = 3
NUM_TRAIN = 64
BUDGET = Budget(eps=0.1, step=0.05, steps=2)


class Toy(Net):
    """Convolution, BatchNorm, pooling and linear: every kind of state that a real network has. Images: (3, 6, 6)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        self.width, self.num_classes = width, num_classes
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.linear = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        maps: Tensor = self.trunk(self.normalise(x))
        return maps.mean(dim=(2, 3))

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.linear(f)
        return logits


def networks(case: Method, classes: int = 3, seed: int = 0) -> Nets:
    """A small student, the teachers that `case` requires, of another width, and its parts: as the harness builds them."""
    torch.manual_seed(seed)
    student = Toy(8, classes)
    teachers: dict[str, Net] = {role: Toy(12, classes) for role in case.requires}
    parts = nn.ModuleDict(case.build(student, teachers, NUM_TRAIN))
    for teacher in teachers.values():
        teacher.eval().requires_grad_(False)
    return Nets(student.train(), teachers, parts.train())


def images(y: list[int], seed: int = 0) -> Batch:
    """Noisy images of random colours with the labels `y`, from random places in the training set."""
    random = torch.Generator().manual_seed(seed)
    x = 0.7 * torch.rand(len(y), 3, 1, 1, generator=random) + 0.3 * torch.rand(
        len(y), 3, 6, 6, generator=random
    )
    index = torch.randperm(NUM_TRAIN, generator=random)[: len(y)]
    return Batch(
        x, torch.tensor(y), index, epoch=0, epochs=EPOCHS, num_train=NUM_TRAIN, budget=BUDGET
    )


def every_epoch(batch: Batch) -> list[Batch]:
    """The batch as it would be in each epoch of a run: a method may change its loss on the way."""
    return [dataclasses.replace(batch, epoch=epoch) for epoch in range(batch.epochs)]


def total(parts: dict[str, Tensor]) -> Tensor:
    """What the harness minimises."""
    return torch.stack([term.float() for term in parts.values()]).sum()


def terms(case: Method, nets: Nets, batch: Batch) -> dict[str, Tensor]:
    """The loss at the images that the attack finds."""
    return case.loss(nets, batch, case.attack(nets, batch))


def values(case: Method, nets: Nets, batch: Batch, seed: int = 0) -> dict[str, float]:
    """The terms as plain numbers, with their random numbers seeded."""
    torch.manual_seed(seed)
    return {name: term.item() for name, term in terms(case, nets, batch).items()}


def train(case: Method, nets: Nets, batches: Sequence[Batch]) -> list[float]:
    """One step a batch, as the harness makes it; returns the losses."""
    groups = [{**group, "lr": 0.02 * group.get("scale", 1.0)} for group in case.groups(nets)]
    optimiser = torch.optim.SGD(groups, lr=0.02)
    losses = []
    for batch in batches:
        loss = total(terms(case, nets, batch))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        case.after_step(nets, batch)
        losses.append(loss.item())
    return losses


def copied(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as they are now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


class Contract:
    """Inherit, name the class Test..., set `cases`: the method with each set of hyper-parameters worth a test."""

    cases: ClassVar[Sequence[Method]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Called by pytest for each test: one item a case, and a class count where the test wants one."""
        assert self.cases, f"{type(self).__name__}: set `cases`"
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=label)
        if "classes" in metafunc.fixturenames:
            metafunc.parametrize("classes", (3, 10))

    def test_is_documented(self, case: Method) -> None:
        """The class states the formula; the module states the paper and what is assumed."""
        form = type(case)
        about = (form.__doc__ or "").strip()
        assert "__dataclass_params__" in vars(form), (
            f"{form.__name__} lacks @dataclass(frozen=True)"
        )
        assert about, "no class docstring: state the formula"
        assert not about.startswith(f"{form.__name__}("), (
            "the class docstring is @dataclass's own: state the formula"
        )
        assert (sys.modules[form.__module__].__doc__ or "").strip(), (
            "no module docstring: state paper and assumptions"
        )

    def test_hyper_parameters_are_declared(self, case: Method) -> None:
        """Each has its type, a help text and a search range or choices with the default among them."""
        hints = get_type_hints(type(case))
        for field in dataclasses.fields(case):
            search, default, kind = field.metadata.get("search"), field.default, hints[field.name]
            assert search is not None, f"{field.name}: declare it with hp(...)"
            assert field.metadata["help"].strip(), f"{field.name}: no help text"
            assert kind in (bool, int, float, str), f"{field.name}: {kind} is no flag's type"
            assert type(default) is kind, (
                f"{field.name}: default {default!r} is not of type {kind.__name__}"
            )
            if search["choices"]:
                assert default in search["choices"], (
                    f"{field.name}: default {default!r} is not among the choices"
                )
                assert all(type(choice) is kind for choice in search["choices"]), (
                    f"{field.name}: a choice's type"
                )
            elif kind in (int, float):
                low, high = search["low"], search["high"]
                assert None not in (low, high), f"{field.name}: no search range"
                assert low < high, f"{field.name}: {low} < {high} is false"
                assert low <= default <= high, (
                    f"{field.name}: {low} <= {default} <= {high} is false"
                )
                assert low > 0 or not search["log"], (
                    f"{field.name}: a logarithmic range starts above 0"
                )

    def test_official_form_is_declared(self, case: Method) -> None:
        """What `--official` sets can be set, and each deviation of the training says what is odd."""
        form = type(case)
        form(**official(form))
        for name, _, reason in form.recipe:
            assert name in RECIPE, (
                f"{name}: no field of the training, which has {', '.join(RECIPE)}"
            )
            assert reason.strip(), f"{name}: no reason"

    def test_no_flag_is_shadowed(self, case: Method) -> None:
        taken = RESERVED & {field.name for field in dataclasses.fields(case)}
        assert not taken, f"these names are flags of `run`: {', '.join(sorted(taken))}"

    def test_values_survive_json(self, case: Method) -> None:
        text = json.dumps(dataclasses.asdict(case), allow_nan=False)
        again = type(case)(**json.loads(text))
        assert again == case, f"{case} becomes {again}"
        assert json.dumps(dataclasses.asdict(again)) == text, "another round trip changes the text"

    def test_bad_values_are_refused(self, case: Method) -> None:
        """Not finite, or not a choice: ValueError when the method is made."""
        for field in dataclasses.fields(case):
            numeric = isinstance(field.default, float)
            for bad in (math.nan, math.inf, -math.inf) if numeric else ("no such choice",):
                if numeric or field.metadata["search"]["choices"]:
                    assert refuses(case, field.name, bad), f"{field.name} = {bad!r} is accepted"

    def test_terms_are_finite_scalars(self, case: Method, classes: int) -> None:
        """In every epoch, for batches of two and more, of one class and of several."""
        for y in ([0, 0], [1, 2], [label % classes for label in range(12)]):
            nets = networks(case, classes)
            for batch in every_epoch(images(y)):
                found = terms(case, nets, batch)
                assert found, "no terms"
                for name, term in found.items():
                    assert name.isidentifier(), f"{name!r} is no name"
                    assert term.shape == (), f"{name} has the shape {tuple(term.shape)}"
                    assert term.isfinite(), (
                        f"{name} is {term.item()} in epoch {batch.epoch} with labels {y}"
                    )

    def test_gradient_reaches_student_and_parts(self, case: Method, classes: int) -> None:
        """Over the epochs together, in full precision and under bf16 autocast."""
        for bf16 in (False, True):
            nets = networks(case, classes)
            for batch in every_epoch(images([label % classes for label in range(12)])):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    found = terms(case, nets, batch)
                total(found).backward()  # type: ignore[no-untyped-call]
            for name, value in nn.ModuleDict(
                {"student": nets.student, "parts": nets.parts}
            ).named_parameters():
                if value.requires_grad:
                    gradient = torch.zeros(1) if value.grad is None else value.grad
                    assert gradient.any(), f"no gradient reaches {name} (bf16: {bf16})"
                    assert gradient.isfinite().all(), (
                        f"the gradient of {name} is not finite (bf16: {bf16})"
                    )

    def test_teachers_and_batch_are_untouched(self, case: Method) -> None:
        """Teachers get no gradient, no update, no train mode; x, y and index stay as they are."""
        nets = networks(case)
        before = {role: copied(teacher) for role, teacher in nets.teachers.items()}
        for batch in every_epoch(images([0, 1, 2, 0])):
            x, y, index = batch.x.clone(), batch.y.clone(), batch.index.clone()
            train(case, nets, [batch, batch])
            assert torch.equal(batch.x, x), "x was changed"
            assert not batch.x.requires_grad, "x requires a gradient: detach and copy it first"
            assert torch.equal(batch.y, y), "y was changed"
            assert torch.equal(batch.index, index), "index was changed"
        for role, teacher in nets.teachers.items():
            for name, value in teacher.state_dict().items():
                assert torch.equal(value, before[role][name]), (
                    f"{name} of teacher {role!r} was changed"
                )
            assert not any(module.training for module in teacher.modules()), (
                f"teacher {role!r} left eval mode"
            )
            assert not any(value.requires_grad for value in teacher.parameters()), (
                f"teacher {role!r} was unfrozen"
            )
            assert all(value.grad is None for value in teacher.parameters()), (
                f"teacher {role!r} has gradients"
            )

    def test_modes_are_restored(self, case: Method) -> None:
        """Each module's own mode and each parameter's requires_grad; `methods.inner.mode` does it."""
        nets = networks(case)
        nets.student.get_submodule("trunk.1").eval()
        nets.student.get_parameter("linear.bias").requires_grad_(False)
        modules = [*nets.student.modules(), *nets.parts.modules()]
        values = [*nets.student.parameters(), *nets.parts.parameters()]
        before = [module.training for module in modules], [value.requires_grad for value in values]
        assert nets.student.training, "build changed the student's mode"
        for batch in every_epoch(images([0, 1, 2, 0])):
            terms(case, nets, batch)
            case.after_step(nets, batch)
            assert [module.training for module in modules] == before[0], (
                "a module was left in another mode"
            )
            assert [value.requires_grad for value in values] == before[1], (
                "requires_grad was changed"
            )

    def test_same_seed_same_terms(self, case: Method) -> None:
        """Bit for bit: random numbers come from torch's generator alone."""
        for batch in every_epoch(images([0, 1, 2, 0])):
            first, again = (values(case, networks(case), batch) for _ in range(2))
            assert first == again, f"{first} becomes {again}"

    def test_state_is_saved(self, case: Method) -> None:
        """A run that is resumed goes on alike: what is learnt lives in student and parts, not in the method."""
        batches = every_epoch(images([0, 1, 2, 0]))
        nets, resumed = networks(case), networks(case, seed=1)
        train(case, nets, batches[:2])
        for new, old in ((resumed.student, nets.student), (resumed.parts, nets.parts)):
            new.load_state_dict(copied(old))
        for role, teacher in resumed.teachers.items():
            teacher.load_state_dict(copied(nets.teachers[role]))
        again = type(case)(**dataclasses.asdict(case))
        expected, found = values(case, nets, batches[2]), values(again, resumed, batches[2])
        assert expected == found, f"{expected} becomes {found}"

    def test_attack_stays_in_the_ball(self, case: Method) -> None:
        for batch in every_epoch(images([0, 1, 2, 0])):
            adv = case.attack(networks(case), batch)
            assert not adv.requires_grad, "the images require a gradient"
            assert (adv - batch.x).abs().max() <= batch.budget.eps + 1e-6, "outside the ball"
            assert torch.equal(adv, adv.clamp(0, 1)), "outside [0, 1]"

    def test_attack_is_declared(self, case: Method) -> None:
        """`adversarial` says whether the loss depends on the attack budget: cost and best checkpoint follow it."""
        batch = images([0, 1, 2, 0])
        weak, strong = (
            [
                values(case, networks(case), dataclasses.replace(each, budget=budget))
                for each in every_epoch(batch)
            ]
            for budget in (Budget(0, 0, 0), Budget(0.3, 0.1, 5))
        )
        assert (weak != strong) == case.adversarial, (
            f"adversarial = {case.adversarial} is not what the loss shows"
        )

    def test_loss_falls(self, case: Method) -> None:
        """On one batch, in the first epoch and in the last, once banks and running means had four steps to fill."""
        first, *_, last = every_epoch(images([0, 1, 2] * 4))
        for batch in (first, last):
            losses = train(case, networks(case), [batch] * 20)[4:]
            assert sum(losses[-4:]) < sum(losses[:4]), f"in epoch {batch.epoch}: {losses}"


def label(case: Method) -> str:
    """The name of a case among the tests: the class and what is not at its default."""
    values = [(field, getattr(case, field.name)) for field in dataclasses.fields(case)]
    changed = [f"{field.name}={value}" for field, value in values if value != field.default]
    return "-".join([type(case).__name__, *changed])


def refuses(case: Method, name: str, value: Any) -> bool:
    """Whether `case` cannot be made with this hyper-parameter."""
    try:
        dataclasses.replace(case, **{name: value})
    except ValueError:
        return True
    return False
