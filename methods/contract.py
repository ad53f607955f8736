"""The tests that every method must pass: this repository's and those of outside packages.

In a test file of the package that defines the method:

    from methods.contract import Contract
    from mine import Mine

    class TestMine(Contract):
        cases = (Mine(), Mine(alpha=0.0))

pytest runs each test for every case, so give one case for each branch of the loss. As in a run,
student and parts are in train mode; the teachers are those of `teacher_roles`, frozen in eval mode.
Once a case fails a test marked `in_order`, the later ones are skipped: they may fail for that.
"""

import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, get_type_hints
from unittest import SkipTest

import torch
from torch import Tensor, nn

from methods.base import RECIPE, Batch, Budget, Method, Net, Nets, Paper, official_values
from methods.device_check import device_fault

# The flags of `run` and words kept for it: no hyper-parameter may have such a name.
FLAGS = """store data_root device suite dataset limit_train limit_test precision force method
student teacher seeds epochs official awp dry_run quiet verbose help executor workers
sync_batchnorm ray gpus_per_run strict config lr momentum weight_decay tuned search
search_precision"""
RESERVED = frozenset(FLAGS.split())
EPOCHS, NUM_TRAIN = 3, 64
BUDGET = Budget(eps=0.1, step=0.05, steps=2)
BUDGET_L2 = Budget(eps=0.1, step=0.05, steps=2, norm="L2")


class Toy(Net):
    """Convolution, BatchNorm and linear, every kind of state a network has, for (B, 3, 6, 6)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        self.width, self.num_classes = width, num_classes
        layers = nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        self.trunk = nn.Sequential(*layers)
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


def total(loss_terms: dict[str, Tensor]) -> Tensor:
    """Return the sum that the trainer minimises."""
    return torch.stack([term.float() for term in loss_terms.values()]).sum()


def terms(case: Method, nets: Nets, batch: Batch) -> dict[str, Tensor]:
    """Return the loss's terms at the adversarial examples of the method's attack."""
    return case.loss(nets, batch, case.attack(nets, batch))


def values(case: Method, nets: Nets, batch: Batch, seed: int = 0) -> dict[str, float]:
    """Return the terms as plain numbers, with their random numbers seeded."""
    torch.manual_seed(seed)
    return {name: term.item() for name, term in terms(case, nets, batch).items()}


def train(case: Method, nets: Nets, batches: Sequence[Batch]) -> list[float]:
    """Train one step a batch as the trainer does and return the losses."""
    optimiser = torch.optim.SGD(case.param_groups(nets), lr=0.02)
    for group in optimiser.param_groups:
        group["lr"] *= group.get("scale", 1.0)
    losses = []
    for batch in batches:
        loss = total(terms(case, nets, batch))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        case.after_step(nets, batch)
        losses.append(loss.item())
    return losses


def trained_modules(nets: Nets) -> nn.ModuleDict:
    """Return what a run trains and saves: student and parts."""
    return nn.ModuleDict({"student": nets.student, "parts": nets.parts})


def read_modes(nets: Nets) -> tuple[list[bool], list[bool]]:
    """Return each module's mode and each parameter's requires_grad."""
    modes = [module.training for module in (*nets.student.modules(), *nets.parts.modules())]
    return modes, [value.requires_grad for value in trained_modules(nets).parameters()]


def copied(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def in_order(test: Callable[..., None]) -> Callable[..., None]:
    """Skip a test for cases that failed an earlier one with this mark."""

    @functools.wraps(test)
    def checked(self: "Contract", case: Method, *args: Any, **kwargs: Any) -> None:
        if any(case is other for other in self.failed):
            raise SkipTest("an earlier test failed")
        try:
            test(self, case, *args, **kwargs)
        except Exception:
            self.failed.append(case)
            raise

    return checked


class Contract:
    """Inherit, name the class Test..., set `cases`: the method with its values worth a test."""

    cases: ClassVar[Sequence[Method]] = ()
    # What failed a test marked `in_order`.
    failed: ClassVar[list[Method]] = []

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run each test for every case and, where it has `classes`, two class counts."""
        assert self.cases, f"{type(self).__name__}: set `cases`"
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=label)
        if "classes" in metafunc.fixturenames:
            metafunc.parametrize("classes", (3, 10))

    @in_order
    def test_is_a_dataclass(self, case: Method) -> None:
        method = type(case)
        declared = "__dataclass_params__" in vars(method)
        assert declared, f"{method.__name__} lacks @dataclass(frozen=True)"

    def test_is_documented(self, case: Method) -> None:
        """The class states the formula; the module states the paper and what is assumed."""
        method, name = type(case), type(case).__name__
        formula = (method.__doc__ or "").strip()
        about = (sys.modules[method.__module__].__doc__ or "").strip()
        generated = formula.startswith(f"{name}(")
        assert formula, "no class docstring: state the formula"
        assert not generated, "the class docstring is @dataclass's own: state the formula"
        assert about, "no module docstring: state paper and assumptions"

    def test_paper_is_declared(self, case: Method) -> None:
        """`paper` is a Paper with title, venue and year, or None."""
        paper = type(case).paper
        if paper is None:
            return
        assert isinstance(paper, Paper), f"paper = {paper!r}: declare a methods.base.Paper or None"
        for name in ("authors", "title", "venue"):
            value = getattr(paper, name)
            assert isinstance(value, str), f"paper.{name} = {value!r} is no text"
            assert value.strip(), f"paper.{name} is empty"
            assert value.isprintable(), f"paper.{name}: one line of text"
            assert len(value) <= 300, f"paper.{name}: at most 300 characters"
        assert type(paper.year) is int, f"paper.year = {paper.year!r} is no year"
        assert 1900 <= paper.year <= 2100, f"paper.year = {paper.year} is no year"
        linked = isinstance(paper.url, str) and re.fullmatch(r"https://[!#-;=?-~]+", paper.url)
        assert linked or paper.url == "", f"paper.url = {paper.url!r} is no address with https://"

    def test_formula_is_declared(self, case: Method) -> None:
        """`formula` is LaTeX of at most 2,000 characters, "" for none."""
        formula = type(case).formula
        assert isinstance(formula, str), f"formula = {formula!r}: declare LaTeX as text"
        assert len(formula) <= 2000, "formula: at most 2,000 characters"

    def test_hyper_parameters_are_declared(self, case: Method) -> None:
        """Each has its type, a help text and a search range or choices with the default in it."""
        hints = get_type_hints(type(case))
        for field in dataclasses.fields(case):
            name, default, kind = field.name, field.default, hints[field.name]
            search = field.metadata.get("search")
            assert search is not None, f"{name}: declare it with hp(...)"
            assert field.metadata["help"].strip(), f"{name}: no help text"
            assert kind in (bool, int, float, str), f"{name}: {kind} is no flag's type"
            assert type(default) is kind, f"{name}: {default!r} is not of type {kind.__name__}"
            if search["choices"]:
                assert default in search["choices"], f"{name}: {default!r} is not among the choices"
                kinds = {type(choice) for choice in search["choices"]}
                assert kinds == {kind}, f"{name}: a choice's type"
            elif kind in (int, float):
                check_search_range(name, default, search)

    def test_official_values_are_declared(self, case: Method) -> None:
        """`--official` sets valid values, and each deviation of the training has a reason."""
        method = type(case)
        method(**official_values(method))
        for name, _, reason in case.official_recipe():
            assert name in RECIPE, f"{name}: no field of the training: {', '.join(RECIPE)}"
            assert reason.strip(), f"{name}: no reason"

    def test_no_flag_is_shadowed(self, case: Method) -> None:
        taken = RESERVED & {field.name for field in dataclasses.fields(case)}
        assert not taken, f"these names are flags of `run`: {', '.join(sorted(taken))}"

    def test_values_survive_json(self, case: Method) -> None:
        text = json.dumps(dataclasses.asdict(case), allow_nan=False)
        restored = type(case)(**json.loads(text))
        assert restored == case, f"{case} becomes {restored}"
        assert json.dumps(dataclasses.asdict(restored)) == text, "another round trip changes it"

    def test_bad_values_are_refused(self, case: Method) -> None:
        """A value that is not finite or not a choice raises ValueError."""
        for field in dataclasses.fields(case):
            bad_values: tuple[Any, ...] = ("no such choice",)
            if isinstance(field.default, float):
                bad_values = (math.nan, math.inf, -math.inf)
            elif not field.metadata.get("search", {}).get("choices"):
                continue
            for value in bad_values:
                refused = refuses_value(case, field.name, value)
                assert refused, f"{field.name} = {value!r} is accepted"

    @in_order
    def test_tensors_are_on_one_device(self, case: Method) -> None:
        """What the method makes lies where the networks are; see `methods.device_check`."""
        batches = every_epoch(images([0, 1, 2, 0]))
        fault = device_fault(case, networks(case), batches if case.epoch_dependent else batches[:1])
        assert not fault, fault

    @in_order
    def test_attack_stays_in_the_ball(self, case: Method) -> None:
        """In l-inf and in L2: `methods.inner.pgd` follows the norm of the budget."""
        for budget, order in ((BUDGET, math.inf), (BUDGET_L2, 2)):
            for batch in every_epoch(images([0, 1, 2, 0])):
                adv = case.attack(networks(case), dataclasses.replace(batch, budget=budget))
                check_images(adv, batch.x)
                lengths = torch.linalg.vector_norm((adv - batch.x).flatten(1), order, dim=1)
                assert lengths.max() <= budget.eps + 1e-6, f"outside the ball in {budget.norm}"
                assert torch.equal(adv, adv.clamp(0, 1)), "outside [0, 1]"

    @in_order
    def test_terms_are_finite_scalars(self, case: Method, classes: int) -> None:
        """In every epoch, for batches of one image and more, of one class and of several."""
        for y in ([0, 0], [1, 2], [i % classes for i in range(12)], [1]):
            nets = networks(case, classes)
            for batch in every_epoch(images(y)):
                loss_terms = terms(case, nets, batch)
                check_terms(loss_terms)
                for name, term in loss_terms.items():
                    assert term.isfinite(), f"{name} = {term}, epoch {batch.epoch}, labels {y}"

    @in_order
    def test_monitored_values_are_finite_scalars(self, case: Method) -> None:
        """After the loss of any epoch, as buffers of the parts, which captured steps fill too."""
        nets = networks(case)
        for batch in every_epoch(images([0, 1, 2, 0])):
            terms(case, nets, batch)
            monitored = case.monitor(nets)
            buffers = [*nets.parts.buffers()]
            for name, value in monitored.items():
                assert name.isidentifier(), f"monitor: {name!r} is no name"
                assert any(value is buffer for buffer in buffers), f"{name}: no buffer of a part"
                assert value.shape == (), f"{name} has the shape {tuple(value.shape)}"
                assert value.isfinite(), f"{name} = {value}, epoch {batch.epoch}"

    @in_order
    def test_modes_are_restored(self, case: Method) -> None:
        """Each module's mode and each parameter's requires_grad; `methods.inner.mode` does it."""
        nets = networks(case)
        nets.student.get_submodule("trunk.1").eval()
        nets.student.get_parameter("linear.bias").requires_grad_(False)
        assert nets.student.training, "build changed the student's mode"
        modes, trainable = read_modes(nets)
        for batch in every_epoch(images([0, 1, 2, 0])):
            terms(case, nets, batch)
            case.after_step(nets, batch)
            modes_after, trainable_after = read_modes(nets)
            assert modes == modes_after, "a module was left in another mode"
            assert trainable == trainable_after, "requires_grad was changed"

    @in_order
    def test_gradient_reaches_student_and_parts(self, case: Method, classes: int) -> None:
        """Over the epochs together, in full precision and under bf16 autocast."""
        for bf16 in (False, True):
            nets = networks(case, classes)
            for batch in every_epoch(images([i % classes for i in range(12)])):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss_terms = terms(case, nets, batch)
                loss = total(loss_terms)
                assert loss.requires_grad, f"no gradient reaches the loss (bf16: {bf16})"
                loss.backward()  # type: ignore[no-untyped-call]
            for name, value in trained_modules(nets).named_parameters():
                if value.requires_grad:
                    gradient = torch.zeros(1) if value.grad is None else value.grad
                    assert gradient.any(), f"no gradient reaches {name} (bf16: {bf16})"
                    assert gradient.isfinite().all(), f"{name}: gradient not finite (bf16: {bf16})"

    @in_order
    def test_teachers_and_batch_are_untouched(self, case: Method) -> None:
        """Teachers get no gradient, no update, no train mode; x, y and index stay as they are."""
        nets = networks(case)
        before = {role: copied(teacher) for role, teacher in nets.teachers.items()}
        for batch in every_epoch(images([0, 1, 2, 0])):
            copies = {name: getattr(batch, name).clone() for name in ("x", "y", "index")}
            train(case, nets, [batch, batch])
            assert not batch.x.requires_grad, "x requires a gradient: detach and copy it first"
            for name, value in copies.items():
                assert torch.equal(getattr(batch, name), value), f"{name} was changed"
        for role, teacher in nets.teachers.items():
            for name, value in teacher.state_dict().items():
                assert torch.equal(value, before[role][name]), f"{name} of teacher {role!r} changed"
            for module in teacher.modules():
                assert not module.training, f"teacher {role!r} left eval mode"
            for value in teacher.parameters():
                assert not value.requires_grad, f"teacher {role!r} was unfrozen"
                assert value.grad is None, f"teacher {role!r} has gradients"

    @in_order
    def test_same_seed_same_terms(self, case: Method) -> None:
        """Bit for bit: random numbers come from torch's generator alone."""
        for batch in every_epoch(images([0, 1, 2, 0])):
            first = values(case, networks(case), batch)
            second = values(case, networks(case), batch)
            assert first == second, f"{first} becomes {second}"

    @in_order
    def test_state_is_saved(self, case: Method) -> None:
        """A resumed run continues alike: what is learnt lives in student and parts."""
        batches = every_epoch(images([0, 1, 2, 0]))
        nets, resumed = networks(case), networks(case, seed=1)
        train(case, nets, batches[:2])
        trained_modules(resumed).load_state_dict(copied(trained_modules(nets)))
        for role, teacher in resumed.teachers.items():
            teacher.load_state_dict(copied(nets.teachers[role]))
        expected = values(case, nets, batches[2])
        actual = values(dataclasses.replace(case), resumed, batches[2])
        assert expected == actual, f"{expected} becomes {actual}"

    @in_order
    def test_epoch_dependence_is_declared(self, case: Method) -> None:
        """`epoch_dependent = False`: attack, loss and state are the same in every epoch."""
        if case.epoch_dependent:
            return
        # 300 epochs, so that the first, a middle and the last one differ in every schedule.
        batch = dataclasses.replace(images([0, 1, 2, 0]), epochs=300)
        expected = step_results(case, batch, epoch=0)
        for epoch in (150, 299):
            for name, value in step_results(case, batch, epoch).items():
                same = torch.equal(value.nan_to_num(), expected[name].nan_to_num())
                assert same, f"epoch_dependent is False, but {name} is another in epoch {epoch}"

    @in_order
    def test_attack_is_declared(self, case: Method) -> None:
        """`adversarial` says whether the loss depends on the attack budget."""
        differs = False
        for batch in every_epoch(images([0, 1, 2, 0])):
            weak = dataclasses.replace(batch, budget=Budget(0, 0, 0))
            strong = dataclasses.replace(batch, budget=Budget(0.3, 0.1, 5))
            differs |= values(case, networks(case), weak) != values(case, networks(case), strong)
        assert differs == case.adversarial, f"adversarial = {case.adversarial}, the loss shows not"

    @in_order
    def test_loss_falls(self, case: Method) -> None:
        """On one batch, in the first epoch and in the last."""
        first, *_, last = every_epoch(images([0, 1, 2] * 4))
        for batch in (first, last):
            # The first four steps fill banks and running means.
            losses = train(case, networks(case), [batch] * 20)[4:]
            assert sum(losses[-4:]) < sum(losses[:4]), f"in epoch {batch.epoch}: {losses}"


def check_images(adv: object, x: Tensor) -> None:
    """Require what an attack returns to be images of the shape of x."""
    assert isinstance(adv, Tensor), f"attack must return images, not {type(adv).__name__}"
    assert adv.shape == x.shape, f"attack changes the shape to {tuple(adv.shape)}"
    assert not adv.requires_grad, "the images require a gradient"


def check_terms(loss_terms: Any) -> None:
    """Assert that a loss is a dict of scalar tensors, each under a name."""
    rule = "loss must return a dict of scalar tensors"
    assert isinstance(loss_terms, dict), f"{rule}, not {type(loss_terms).__name__}"
    assert loss_terms, f"{rule}: no terms"
    for name, term in loss_terms.items():
        named = isinstance(name, str) and name.isidentifier()
        assert named, f"{rule}: {name!r} is no name"
        assert isinstance(term, Tensor), f"{rule}: {name} is {type(term).__name__}"
        assert term.shape == (), f"{rule}: {name} has the shape {tuple(term.shape)}"
        assert term.is_floating_point(), f"{rule}: {name} is {term.dtype}"


def check_search_range(name: str, default: Any, search: dict[str, Any]) -> None:
    """Assert that a number's search range is one and holds the default."""
    low, high = search["low"], search["high"]
    assert None not in (low, high), f"{name}: no search range"
    assert low < high, f"{name}: {low} < {high} is false"
    assert low <= default <= high, f"{name}: {low} <= {default} <= {high} is false"
    assert low > 0 or not search["log"], f"{name}: a logarithmic range starts above 0"


def step_results(case: Method, batch: Batch, epoch: int) -> dict[str, Tensor]:
    """Return attack, terms and state of a step in `epoch` after one in the first epoch."""
    nets = networks(case)
    train(case, nets, [batch])
    later = dataclasses.replace(batch, epoch=epoch)
    adv = case.attack(nets, later)
    results = {"the attack": adv, **case.loss(nets, later, adv)}
    case.after_step(nets, later)
    return results | copied(trained_modules(nets))


def label(case: Method) -> str:
    """Return the name of a case in test ids: the class and what is not at its default."""
    names = [type(case).__name__]
    for field in dataclasses.fields(case):
        if getattr(case, field.name) != field.default:
            names.append(f"{field.name}={getattr(case, field.name)}")
    return "-".join(names)


def refuses_value(case: Method, name: str, value: Any) -> bool:
    """Return whether `case` cannot be made with this hyper-parameter."""
    try:
        dataclasses.replace(case, **{name: value})
    except ValueError:
        return True
    return False
