"""The tests that every method must pass: this repository's and those of outside packages.

In a test file of the package that defines the method:

    from methods.contract import Contract
    from mine import Mine

    class TestMine(Contract):
        cases = (Mine(), Mine(alpha=0.0))

pytest finds the tests by inheritance and runs each for every case, so give one case for each branch
of the loss. As in a run, student and parts are in train mode, teachers frozen in eval mode, and
only the teachers in `teacher_roles` are there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn

from methods.base import RECIPE, Batch, Budget, Method, Net, Nets, official_values
from methods.renamed import lookup_renamed

# The flags of `run` and words kept for it: no hyper-parameter may have such a name.
RESERVED = frozenset(
    "store data_root device suite dataset limit_train limit_test precision force method student "
    "teacher seeds epochs official awp dry_run help executor workers sync_batchnorm config".split()
)
EPOCHS = 3
NUM_TRAIN = 64
BUDGET = Budget(eps=0.1, step=0.05, steps=2)


class Toy(Net):
    """Convolution, BatchNorm, pooling and linear: every kind of state that a network has.

    For images (B, 3, 6, 6).
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        self.width, self.num_classes = width, num_classes
        convolution = nn.Conv2d(3, width, 3, bias=False)
        self.trunk = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
        self.linear = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        maps: Tensor = self.trunk(self.normalise(x))
        return maps.mean(dim=(2, 3))

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.linear(f)
        return logits


def networks(case: Method, classes: int = 3, seed: int = 0) -> Nets:
    """Build a small student, wider teachers and the parts of `case`, as the trainer does."""
    torch.manual_seed(seed)
    student = Toy(8, classes)
    teachers: dict[str, Net] = {role: Toy(12, classes) for role in case.teacher_roles}
    parts = nn.ModuleDict(case.build(student, teachers, NUM_TRAIN))
    for teacher in teachers.values():
        teacher.eval().requires_grad_(False)
    return Nets(student.train(), teachers, parts.train())


def images(y: list[int], seed: int = 0) -> Batch:
    """Return noisy images of random colours with the labels `y`."""
    random = torch.Generator().manual_seed(seed)
    colours = torch.rand(len(y), 3, 1, 1, generator=random)
    x = 0.7 * colours + 0.3 * torch.rand(len(y), 3, 6, 6, generator=random)
    index = torch.randperm(NUM_TRAIN, generator=random)[: len(y)]
    return Batch(x, torch.tensor(y), index, 0, EPOCHS, NUM_TRAIN, BUDGET)


def every_epoch(batch: Batch) -> list[Batch]:
    """Return the batch in each epoch of a run: a method may change its loss on the way."""
    return [dataclasses.replace(batch, epoch=epoch) for epoch in range(batch.epochs)]


def total_loss(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum that the trainer minimises."""
    return torch.stack([term.float() for term in terms.values()]).sum()


def terms(case: Method, nets: Nets, batch: Batch) -> dict[str, Tensor]:
    """Return the loss's terms at the adversarial examples of the method's attack."""
    return case.loss(nets, batch, case.attack(nets, batch))


def term_values(case: Method, nets: Nets, batch: Batch, seed: int = 0) -> dict[str, float]:
    """Return the terms as plain numbers, with their random numbers seeded."""
    torch.manual_seed(seed)
    return {name: term.item() for name, term in terms(case, nets, batch).items()}


def train(case: Method, nets: Nets, batches: Sequence[Batch]) -> list[float]:
    """Train one step a batch as the trainer does and return the losses."""
    groups = []
    for group in case.param_groups(nets):
        groups.append({**group, "lr": 0.02 * group.get("scale", 1.0)})
    optimiser = torch.optim.SGD(groups, lr=0.02)
    losses = []
    for batch in batches:
        loss = total_loss(terms(case, nets, batch))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        case.after_step(nets, batch)
        losses.append(loss.item())
    return losses


def trained_modules(nets: Nets) -> nn.ModuleDict:
    """Return what a run trains and saves: student and parts."""
    return nn.ModuleDict({"student": nets.student, "parts": nets.parts})


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


class Contract:
    """Inherit, name the class Test..., set `cases`: the method with its values worth a test."""

    cases: ClassVar[Sequence[Method]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run each test for every case and, where it has `classes`, two class counts."""
        assert self.cases, f"{type(self).__name__}: set `cases`"
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=case_label)
        if "classes" in metafunc.fixturenames:
            metafunc.parametrize("classes", (3, 10))

    def test_is_documented(self, case: Method) -> None:
        """The class states the formula; the module states the paper and what is assumed."""
        method, name = type(case), type(case).__name__
        formula = (method.__doc__ or "").strip()
        assert "__dataclass_params__" in vars(method), f"{name} lacks @dataclass(frozen=True)"
        assert formula, "no class docstring: state the formula"
        generated = formula.startswith(f"{name}(")
        assert not generated, "the class docstring is @dataclass's own: state the formula"
        about = (sys.modules[method.__module__].__doc__ or "").strip()
        assert about, "no module docstring: state paper and assumptions"

    def test_hyper_parameters_are_declared(self, case: Method) -> None:
        """Each has its type, a help text and a search range or choices with the default in it."""
        hints = get_type_hints(type(case))
        for field in dataclasses.fields(case):
            name, default, kind = field.name, field.default, hints[field.name]
            search = field.metadata.get("search")
            assert search is not None, f"{name}: declare it with hp(...)"
            assert field.metadata["help"].strip(), f"{name}: no help text"
            assert kind in (bool, int, float, str), f"{name}: {kind} is no flag's type"
            right_type = type(default) is kind
            assert right_type, f"{name}: default {default!r} is not of type {kind.__name__}"
            if search["choices"]:
                listed = default in search["choices"]
                assert listed, f"{name}: default {default!r} is not among the choices"
                for choice in search["choices"]:
                    assert type(choice) is kind, f"{name}: a choice's type"
            elif kind in (int, float):
                check_search_range(name, default, search)

    def test_official_values_are_declared(self, case: Method) -> None:
        """`--official` sets valid values, and each deviation of the training says how it differs."""
        method = type(case)
        method(**official_values(method))
        for name, _, reason in method.recipe:
            fields = ", ".join(RECIPE)
            assert name in RECIPE, f"{name}: no field of the training, which has {fields}"
            assert reason.strip(), f"{name}: no reason"

    def test_no_flag_is_shadowed(self, case: Method) -> None:
        taken = RESERVED & {field.name for field in dataclasses.fields(case)}
        assert not taken, f"these names are flags of `run`: {', '.join(sorted(taken))}"

    def test_values_survive_json(self, case: Method) -> None:
        text = json.dumps(dataclasses.asdict(case), allow_nan=False)
        restored = type(case)(**json.loads(text))
        assert restored == case, f"{case} becomes {restored}"
        restored_text = json.dumps(dataclasses.asdict(restored))
        assert restored_text == text, "another round trip changes the text"

    def test_bad_values_are_refused(self, case: Method) -> None:
        """A value that is not finite or not a choice raises ValueError."""
        for field in dataclasses.fields(case):
            bad_values: tuple[Any, ...] = ()
            if isinstance(field.default, float):
                bad_values = (math.nan, math.inf, -math.inf)
            elif field.metadata["search"]["choices"]:
                bad_values = ("no such choice",)
            for value in bad_values:
                refused = refuses_value(case, field.name, value)
                assert refused, f"{field.name} = {value!r} is accepted"

    def test_terms_are_finite_scalars(self, case: Method, classes: int) -> None:
        """In every epoch, for batches of two and more, of one class and of several."""
        for y in ([0, 0], [1, 2], [label % classes for label in range(12)]):
            nets = networks(case, classes)
            for batch in every_epoch(images(y)):
                loss_terms = terms(case, nets, batch)
                assert loss_terms, "no terms"
                for name, term in loss_terms.items():
                    where = f"in epoch {batch.epoch} with labels {y}"
                    assert name.isidentifier(), f"{name!r} is no name"
                    assert term.shape == (), f"{name} has the shape {tuple(term.shape)}"
                    assert term.isfinite(), f"{name} is {term.item()} {where}"

    def test_gradient_reaches_student_and_parts(self, case: Method, classes: int) -> None:
        """Over the epochs together, in full precision and under bf16 autocast."""
        for bf16 in (False, True):
            nets = networks(case, classes)
            for batch in every_epoch(images([label % classes for label in range(12)])):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss_terms = terms(case, nets, batch)
                total_loss(loss_terms).backward()  # type: ignore[no-untyped-call]
            for name, value in trained_modules(nets).named_parameters():
                if not value.requires_grad:
                    continue
                reached = value.grad is not None and bool(value.grad.any())
                assert reached, f"no gradient reaches {name} (bf16: {bf16})"
                finite = value.grad.isfinite().all()
                assert finite, f"the gradient of {name} is not finite (bf16: {bf16})"

    def test_teachers_and_batch_are_untouched(self, case: Method) -> None:
        """Teachers get no gradient, no update, no train mode; x, y and index stay as they are."""
        nets = networks(case)
        before = {role: copy_state(teacher) for role, teacher in nets.teachers.items()}
        for batch in every_epoch(images([0, 1, 2, 0])):
            x, y, index = batch.x.clone(), batch.y.clone(), batch.index.clone()
            train(case, nets, [batch, batch])
            assert torch.equal(batch.x, x), "x was changed"
            assert not batch.x.requires_grad, "x requires a gradient: detach and copy it first"
            assert torch.equal(batch.y, y), "y was changed"
            assert torch.equal(batch.index, index), "index was changed"
        for role, teacher in nets.teachers.items():
            for name, value in teacher.state_dict().items():
                unchanged = torch.equal(value, before[role][name])
                assert unchanged, f"{name} of teacher {role!r} was changed"
            in_train_mode = any(module.training for module in teacher.modules())
            assert not in_train_mode, f"teacher {role!r} left eval mode"
            for value in teacher.parameters():
                assert not value.requires_grad, f"teacher {role!r} was unfrozen"
                assert value.grad is None, f"teacher {role!r} has gradients"

    def test_modes_are_restored(self, case: Method) -> None:
        """Each module's own mode and each parameter's requires_grad; `methods.inner.mode` does it."""
        nets = networks(case)
        nets.student.get_submodule("trunk.1").eval()
        nets.student.get_parameter("linear.bias").requires_grad_(False)
        modules = [*nets.student.modules(), *nets.parts.modules()]
        parameters = [*nets.student.parameters(), *nets.parts.parameters()]
        modes = [module.training for module in modules]
        frozen = [value.requires_grad for value in parameters]
        assert nets.student.training, "build changed the student's mode"
        for batch in every_epoch(images([0, 1, 2, 0])):
            terms(case, nets, batch)
            case.after_step(nets, batch)
            modes_after = [module.training for module in modules]
            assert modes_after == modes, "a module was left in another mode"
            frozen_after = [value.requires_grad for value in parameters]
            assert frozen_after == frozen, "requires_grad was changed"

    def test_same_seed_same_terms(self, case: Method) -> None:
        """Bit for bit: random numbers come from torch's generator alone."""
        for batch in every_epoch(images([0, 1, 2, 0])):
            first = term_values(case, networks(case), batch)
            second = term_values(case, networks(case), batch)
            assert first == second, f"{first} becomes {second}"

    def test_state_is_saved(self, case: Method) -> None:
        """A resumed run continues alike: what is learnt lives in student and parts."""
        batches = every_epoch(images([0, 1, 2, 0]))
        nets, resumed = networks(case), networks(case, seed=1)
        train(case, nets, batches[:2])
        trained_modules(resumed).load_state_dict(copy_state(trained_modules(nets)))
        for role, teacher in resumed.teachers.items():
            teacher.load_state_dict(copy_state(nets.teachers[role]))
        same_case = type(case)(**dataclasses.asdict(case))
        expected = term_values(case, nets, batches[2])
        actual = term_values(same_case, resumed, batches[2])
        assert expected == actual, f"{expected} becomes {actual}"

    def test_epoch_dependence_is_declared(self, case: Method) -> None:
        """`epoch_dependent = False`: attack, loss and state are the same in every epoch.

        A captured step is replayed in other epochs then.
        """
        if case.epoch_dependent:
            return
        # 300 epochs, so that the first, a middle and the last one differ in every schedule.
        batch = dataclasses.replace(images([0, 1, 2, 0]), epochs=300)
        expected = step_results(case, batch, epoch=0)
        for epoch in (150, 299):
            for name, value in step_results(case, batch, epoch).items():
                same = torch.equal(value.nan_to_num(), expected[name].nan_to_num())
                assert same, f"epoch_dependent is False, but {name} is another in epoch {epoch}"

    def test_attack_stays_in_the_ball(self, case: Method) -> None:
        for batch in every_epoch(images([0, 1, 2, 0])):
            adv = case.attack(networks(case), batch)
            assert not adv.requires_grad, "the images require a gradient"
            assert (adv - batch.x).abs().max() <= batch.budget.eps + 1e-6, "outside the ball"
            assert torch.equal(adv, adv.clamp(0, 1)), "outside [0, 1]"

    def test_attack_is_declared(self, case: Method) -> None:
        """`adversarial` says whether the loss depends on the attack budget."""
        differs = False
        for batch in every_epoch(images([0, 1, 2, 0])):
            weak = dataclasses.replace(batch, budget=Budget(0, 0, 0))
            strong = dataclasses.replace(batch, budget=Budget(0.3, 0.1, 5))
            weak_values = term_values(case, networks(case), weak)
            differs |= weak_values != term_values(case, networks(case), strong)
        declared = f"adversarial = {case.adversarial}"
        assert differs == case.adversarial, f"{declared} is not what the loss shows"

    def test_loss_falls(self, case: Method) -> None:
        """On one batch, in the first epoch and in the last."""
        first, *_, last = every_epoch(images([0, 1, 2] * 4))
        for batch in (first, last):
            # The first four steps fill banks and running means.
            losses = train(case, networks(case), [batch] * 20)[4:]
            assert sum(losses[-4:]) < sum(losses[:4]), f"in epoch {batch.epoch}: {losses}"


def check_search_range(name: str, default: float, search: dict[str, Any]) -> None:
    """Assert that a number's search range is one and holds the default."""
    low, high = search["low"], search["high"]
    assert None not in (low, high), f"{name}: no search range"
    assert low < high, f"{name}: {low} < {high} is false"
    assert low <= default <= high, f"{name}: {low} <= {default} <= {high} is false"
    assert low > 0 or not search["log"], f"{name}: a logarithmic range starts above 0"


def step_results(case: Method, batch: Batch, epoch: int) -> dict[str, Tensor]:
    """Return attack, terms and state of a step in `epoch`, after one in the first epoch."""
    nets = networks(case)
    train(case, nets, [batch])
    later = dataclasses.replace(batch, epoch=epoch)
    adv = case.attack(nets, later)
    results = {"the attack": adv, **case.loss(nets, later, adv)}
    case.after_step(nets, later)
    return results | copy_state(trained_modules(nets))


def case_label(case: Method) -> str:
    """Return the name of a case in test ids: the class and what is not at its default."""
    changed = []
    for field in dataclasses.fields(case):
        value = getattr(case, field.name)
        if value != field.default:
            changed.append(f"{field.name}={value}")
    return "-".join([type(case).__name__, *changed])


def refuses_value(case: Method, name: str, value: Any) -> bool:
    """Whether `case` cannot be made with this hyper-parameter."""
    try:
        dataclasses.replace(case, **{name: value})
    except ValueError:
        return True
    return False


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        return lookup_renamed(sys.modules[__name__], __name__, name)
