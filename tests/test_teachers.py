"""Releases as facts and as networks; the checks of an import, and the card that it writes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import datasets, models
from bench.cli import main
from bench.datasets import CIFAR10, CIFAR100, DIGITS, Dataset, augmentation, loading
from bench.execution import plan
from bench.models import checkpoint
from bench.protocol.options import RunOptions
from bench.system import files
from bench.system.errors import BenchError, UsageError
from bench.teachers import cards, checks, releases
from bench.teachers.releases import Release
from methods.base import Net

State = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


# The registry


@pytest.mark.parametrize(
    "release", releases.RELEASES, ids=lambda release: f"{release.name} {release.dataset}"
)
def test_a_release_has_all_facts(release: Release) -> None:
    info = datasets.get(release.dataset)
    models.check(release.arch)
    assert release.where.startswith("https://")
    assert release.clean is not None
    assert release.autoattack is not None
    assert 0 <= release.autoattack < release.clean < 100
    assert 0 < release.eps <= 8 / 255
    assert len(release.mean) == len(release.std) in (0, info.shape[0])
    assert not release.sha256 or re.fullmatch("[0-9a-f]{64}", release.sha256)
    assert releases.resolve_release(Release(release.name, release.dataset)) == release


def test_a_release_has_a_unique_name_for_its_data_set() -> None:
    assert len({(release.name, release.dataset) for release in releases.RELEASES}) == len(
        releases.RELEASES
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "Zhang2019Theoretical"},
            "did you mean 'Zhang2019Theoretically'.*needs --arch and --dataset",
        ),
        ({"name": "mine", "arch": "resnet18"}, "'mine' is no known release .*`teacher list`"),
        (
            {"name": "Chen2021LTD_WRN34_10"},
            "a release for cifar10 and cifar100: say which with --dataset",
        ),
        (
            {"name": "Zhang2019Theoretically", "dataset": "cifar100"},
            "a release for cifar10: say which",
        ),
        (
            {"name": "Zhang2019Theoretically", "arch": "wrn28-10"},
            "--arch: the release .* has wrn34-10",
        ),
        (
            {"name": "Zhang2019Theoretically", "mean": (0.5, 0.5, 0.5)},
            "--mean: the release .* has none",
        ),
        ({"name": "mine", "arch": "resnet18", "dataset": "cifar01"}, "did you mean 'cifar10'"),
        (
            {"name": "robust", "arch": "resnet18", "dataset": "cifar10"},
            "neither robust nor natural",
        ),
        ({"name": "a/b", "arch": "resnet18", "dataset": "cifar10"}, "letters, digits, - and _"),
        (
            {"name": "mine", "arch": "resnet18", "dataset": "cifar10", "mean": (0.5,) * 3},
            "both with 3 numbers",
        ),
        (
            {"name": "mine", "arch": "a", "dataset": "digits", "mean": (0.5,), "std": (0.0,)},
            "std above 0",
        ),
        (
            {
                "name": "mine",
                "arch": "a",
                "dataset": "digits",
                "mean": (float("nan"),),
                "std": (1.0,),
            },
            "--mean and",
        ),
    ],
)
def test_a_wrong_description_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        releases.resolve_release(Release(**options))
    assert "\n" not in str(caught.value)


def test_a_published_hash_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    release = dataclasses.replace(releases.RELEASES[0], sha256="a" * 64)
    monkeypatch.setattr(releases, "RELEASES", (release,))
    assert releases.resolve_release(Release(release.name)).sha256 == "a" * 64
    with pytest.raises(UsageError, match="--sha256: the release"):
        releases.resolve_release(Release(release.name, sha256="b" * 64))


# Names and shapes of the tensors, as the releases' published network definitions give them


def norm_shapes(name: str, channels: int) -> Shapes:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (channels,) for kind in kinds} | {f"{name}.num_batches_tracked": ()}


def conv_shapes(name: str, inputs: int, outputs: int, side: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, side, side)}


def linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def wide_shapes(depth: int, factor: int, classes: int, sub_block: bool = False) -> Shapes:
    """The TRADES release; with `sub_block1`, a copy of block1 that is stored and never used."""
    widths = [16, 16 * factor, 32 * factor, 64 * factor]
    shapes = (
        conv_shapes("conv1", 3, 16, 3)
        | norm_shapes("bn1", widths[3])
        | linear_shapes("fc", widths[3], classes)
    )
    blocks = [("block1", 1), ("block2", 2), ("block3", 3)] + (
        [("sub_block1", 1)] if sub_block else []
    )
    for part, stage in blocks:
        for i in range((depth - 4) // 6):
            name, inputs, outputs = f"{part}.layer.{i}", widths[stage - (i == 0)], widths[stage]
            shapes |= norm_shapes(f"{name}.bn1", inputs) | conv_shapes(
                f"{name}.conv1", inputs, outputs, 3
            )
            shapes |= norm_shapes(f"{name}.bn2", outputs) | conv_shapes(
                f"{name}.conv2", outputs, outputs, 3
            )
            shapes |= (
                conv_shapes(f"{name}.convShortcut", inputs, outputs, 1) if inputs != outputs else {}
            )
    return shapes


def deepmind_wide_shapes(depth: int, factor: int, classes: int) -> Shapes:
    widths = [16, 16 * factor, 32 * factor, 64 * factor]
    shapes = (
        conv_shapes("init_conv", 3, 16, 3)
        | norm_shapes("batchnorm", widths[3])
        | linear_shapes("logits", widths[3], classes)
    )
    for stage in range(3):
        for i in range((depth - 4) // 6):
            name, inputs, outputs = (
                f"layer.{stage}.block.{i}",
                widths[stage + (i > 0)],
                widths[stage + 1],
            )
            shapes |= norm_shapes(f"{name}.batchnorm_0", inputs) | conv_shapes(
                f"{name}.conv_0", inputs, outputs, 3
            )
            shapes |= norm_shapes(f"{name}.batchnorm_1", outputs) | conv_shapes(
                f"{name}.conv_1", outputs, outputs, 3
            )
            shapes |= (
                conv_shapes(f"{name}.shortcut", inputs, outputs, 1) if inputs != outputs else {}
            )
    return shapes


def deepmind_preact_shapes(classes: int) -> Shapes:
    shapes = (
        conv_shapes("conv_2d", 3, 64, 3)
        | norm_shapes("batchnorm", 512)
        | linear_shapes("logits", 512, classes)
    )
    for stage, outputs in enumerate((64, 128, 256, 512)):
        for i in range(2):
            name, inputs = f"layer_{stage}.{i}", outputs // 2 if stage and i == 0 else outputs
            shapes |= norm_shapes(f"{name}.batchnorm_0", inputs) | conv_shapes(
                f"{name}.conv_2d_1", inputs, outputs, 3
            )
            shapes |= norm_shapes(f"{name}.batchnorm_1", outputs) | conv_shapes(
                f"{name}.conv_2d_2", outputs, outputs, 3
            )
            shapes |= (
                conv_shapes(f"{name}.shortcut", inputs, outputs, 3) if inputs != outputs else {}
            )
    return shapes


def preact_shapes(classes: int) -> Shapes:
    shapes = (
        conv_shapes("conv1", 3, 64, 3)
        | norm_shapes("bn", 512)
        | linear_shapes("linear", 512, classes)
    )
    for stage, outputs in enumerate((64, 128, 256, 512), 1):
        for i in range(2):
            name, inputs = f"layer{stage}.{i}", outputs // 2 if stage > 1 and i == 0 else outputs
            shapes |= norm_shapes(f"{name}.bn1", inputs) | conv_shapes(
                f"{name}.conv1", inputs, outputs, 3
            )
            shapes |= norm_shapes(f"{name}.bn2", outputs) | conv_shapes(
                f"{name}.conv2", outputs, outputs, 3
            )
            shapes |= (
                conv_shapes(f"{name}.shortcut.0", inputs, outputs, 1) if inputs != outputs else {}
            )
    return shapes


def resnet_shapes(classes: int) -> Shapes:
    shapes = (
        conv_shapes("conv1", 3, 64, 3)
        | norm_shapes("bn1", 64)
        | linear_shapes("linear", 512, classes)
    )
    for stage, outputs in enumerate((64, 128, 256, 512), 1):
        for i in range(2):
            name, inputs = f"layer{stage}.{i}", outputs // 2 if stage > 1 and i == 0 else outputs
            shapes |= norm_shapes(f"{name}.bn1", outputs) | conv_shapes(
                f"{name}.conv1", inputs, outputs, 3
            )
            shapes |= norm_shapes(f"{name}.bn2", outputs) | conv_shapes(
                f"{name}.conv2", outputs, outputs, 3
            )
            if inputs != outputs:
                shapes |= conv_shapes(f"{name}.shortcut.0", inputs, outputs, 1) | norm_shapes(
                    f"{name}.shortcut.1", outputs
                )
    return shapes


LAYOUTS: dict[str, Callable[[int], Shapes]] = {
    "wrn34-10": lambda classes: wide_shapes(34, 10, classes),
    "wrn34-20": lambda classes: wide_shapes(34, 20, classes),
    "wrn28-10": lambda classes: wide_shapes(28, 10, classes),
    "wrn28-10-silu": lambda classes: deepmind_wide_shapes(28, 10, classes),
    "wrn70-16-silu": lambda classes: deepmind_wide_shapes(70, 16, classes),
    "preactresnet18-silu": deepmind_preact_shapes,
    "preactresnet18": preact_shapes,
    "resnet18": resnet_shapes,
}


@pytest.mark.parametrize(
    "release", releases.RELEASES, ids=lambda release: f"{release.name} {release.dataset}"
)
def test_a_network_has_the_tensors_of_the_release(release: Release) -> None:
    info = datasets.get(release.dataset)
    with torch.device("meta"):
        net = models.build(release.arch, info)
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in net.state_dict().items()
        if name not in ("mean", "std")
    }
    assert shapes == LAYOUTS[release.arch](info.num_classes)


def test_the_largest_network_has_the_published_size() -> None:
    with torch.device("meta"):
        net = models.build("wrn70-16-silu", CIFAR100)
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(
        267e6, rel=2e-3
    )


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Draw tensors of these shapes, with positive variances."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        if name.endswith("running_var"):
            state[name] = state[name].abs() + 1
    return state


def as_wang(state: State) -> State:
    """Averaged weights in a Sequential of one in DataParallel."""
    return {"model_state_dict": {f"module.0.{name}": t for name, t in state.items()}, "epoch": 2400}


FILES: dict[str, tuple[str, Dataset, Shapes, Callable[[State], State]]] = {
    "TRADES": ("wrn10-1", CIFAR10, wide_shapes(10, 1, 10, sub_block=True), lambda state: state),
    "LTD": ("wrn10-1", CIFAR100, wide_shapes(10, 1, 100), lambda state: {"state_dict": state}),
    "DeepMind": ("wrn10-1-silu", CIFAR100, deepmind_wide_shapes(10, 1, 100), lambda state: state),
    "Wang": ("wrn10-1-silu", CIFAR10, deepmind_wide_shapes(10, 1, 10), as_wang),
    "DeepMind, PreAct": (
        "preactresnet18-silu",
        CIFAR10,
        deepmind_preact_shapes(10),
        lambda state: state,
    ),
    "Rice": (
        "preactresnet18",
        CIFAR100,
        preact_shapes(100),
        lambda state: {f"module.{n}": t for n, t in state.items()},
    ),
}


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.batch_norm(
        x, *(state[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
    )


def same_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Pad as TensorFlow's "SAME": max((ceil(n / s) - 1) s + 3 - n, 0), more at the end."""
    total = max((-(-x.shape[-1] // stride) - 1) * stride + 3 - x.shape[-1], 0)
    before, after = total // 2, total - total // 2
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=stride)


def reference_wide(state: State, x: Tensor) -> Tensor:
    """Gowal et al. 2020, depth 10: conv -> three blocks -> BatchNorm, Swish, mean, linear."""
    x = F.conv2d(x, state["init_conv.weight"], padding=1)
    for stage in range(3):
        name = f"layer.{stage}.block.0"
        active = batch_norm(state, f"{name}.batchnorm_0", x)
        active = active * active.sigmoid()
        out = same_conv(active, state[f"{name}.conv_0.weight"], 1 if stage == 0 else 2)
        out = batch_norm(state, f"{name}.batchnorm_1", out)
        out = F.conv2d(out * out.sigmoid(), state[f"{name}.conv_1.weight"], padding=1)
        shortcut = state.get(f"{name}.shortcut.weight")
        x = out + (
            x if shortcut is None else F.conv2d(active, shortcut, stride=1 if stage == 0 else 2)
        )
    x = batch_norm(state, "batchnorm", x)
    return F.linear(
        (x * x.sigmoid()).mean(dim=(2, 3)), state["logits.weight"], state["logits.bias"]
    )


def reference_deepmind_preact(state: State, x: Tensor) -> Tensor:
    x = F.conv2d(x, state["conv_2d.weight"], padding=1)
    for stage, i in ((stage, i) for stage in range(4) for i in range(2)):
        name, stride = f"layer_{stage}.{i}", 2 if stage and i == 0 else 1
        out = batch_norm(state, f"{name}.batchnorm_0", x)
        out = batch_norm(
            state,
            f"{name}.batchnorm_1",
            same_conv(out * out.sigmoid(), state[f"{name}.conv_2d_1.weight"], stride),
        )
        out = F.conv2d(out * out.sigmoid(), state[f"{name}.conv_2d_2.weight"], padding=1)
        x = out + (same_conv(x, state[f"{name}.shortcut.weight"], stride) if stride == 2 else x)
    x = batch_norm(state, "batchnorm", x)
    return F.linear(
        (x * x.sigmoid()).mean(dim=(2, 3)), state["logits.weight"], state["logits.bias"]
    )


def reference_preact(state: State, x: Tensor) -> Tensor:
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage, i in ((stage, i) for stage in range(1, 5) for i in range(2)):
        name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
        active = batch_norm(state, f"{name}.bn1", x).relu()
        out = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        out = F.conv2d(
            batch_norm(state, f"{name}.bn2", out).relu(), state[f"{name}.conv2.weight"], padding=1
        )
        x = out + (
            F.conv2d(active, state[f"{name}.shortcut.0.weight"], stride=stride)
            if stride == 2
            else x
        )
    x = batch_norm(state, "bn", x).relu()
    return F.linear(x.mean(dim=(2, 3)), state["linear.weight"], state["linear.bias"])


REFERENCES = {
    "DeepMind": reference_wide,
    "Wang": reference_wide,
    "DeepMind, PreAct": reference_deepmind_preact,
    "Rice": reference_preact,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_each_release_loads_and_computes_the_published_logits(
    name: str, tmp_path: Path
) -> None:
    arch, info, shapes, origin = FILES[name]
    state, file, x = random_state(shapes), tmp_path / "net.pt", torch.rand(2, 3, 32, 32)
    torch.save(origin(state), file)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    net = checkpoint.load(file, arch, info, mean=mean, std=std)
    assert net.mean.flatten().tolist() == pytest.approx(mean)
    assert net.std.flatten().tolist() == pytest.approx(std)
    loaded = net.state_dict()
    for key, tensor in state.items():
        if not key.endswith("tracked") and "sub_block1" not in key:
            assert torch.equal(loaded[key], tensor)
    if name in REFERENCES:
        scaled = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        with torch.no_grad():
            torch.testing.assert_close(
                net(x), REFERENCES[name](state, scaled), rtol=1e-3, atol=1e-3
            )


def test_statistics_in_the_file_are_used_and_contradictions_refused(tmp_path: Path) -> None:
    file, state = tmp_path / "net.pt", random_state(deepmind_wide_shapes(10, 1, 10))
    torch.save(state | {"mean": torch.tensor([0.1, 0.2, 0.3]), "std": torch.ones(3)}, file)
    net = checkpoint.load(
        file, "wrn10-1-silu", CIFAR10, mean=(0.1001, 0.2, 0.3), std=(1.0, 1.0, 1.0)
    )
    assert net.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(BenchError, match="holds a mean of its own"):
        checkpoint.load(file, "wrn10-1-silu", CIFAR10, mean=(0.4, 0.2, 0.3), std=(1.0, 1.0, 1.0))


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    torch.save(random_state(wide_shapes(10, 1, 100)), file)
    with pytest.raises(
        BenchError, match=r"not a wrn10-1 for cifar10: .*100 classes, cifar10 has 10"
    ) as caught:
        checkpoint.load(file, "wrn10-1", CIFAR10)
    assert "\n" not in str(caught.value)


# Import


@dataclass(frozen=True)
class Setup:
    """A folder with a store, and a small network that was trained on digits."""

    folder: Path
    file: Path

    @property
    def store(self) -> Path:
        return self.folder / "runs"

    def card(self, name: str) -> cards.Card:
        return cards.find_card(self.store, name, "digits")

    def write_changed(self, change: Callable[[State], State]) -> Path:
        torch.save(change(checkpoint.read(self.file)), self.folder / "changed.pt")
        return self.folder / "changed.pt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small network on digits, in seconds; return its checkpoint."""
    torch.manual_seed(0)
    net, train = models.build("resnet8-w8", DIGITS), loading.load_data("digits", "data").train
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for _ in range(6):
        for rows in torch.split(torch.randperm(len(train)), 64):
            loss = F.cross_entropy(net(augmentation.to_float(train.x[rows])), train.y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    file = tmp_path_factory.mktemp("trained") / "net.pt"
    checkpoint.save(file, net.state_dict())
    return file


@pytest.fixture
def setup(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.chdir(tmp_path)
    return Setup(tmp_path, trained)


def run_bench(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def import_teacher(name: str, file: Path, *more: object) -> int:
    return run_bench(
        "teacher", "import", name, file, "--arch", "resnet8-w8", "--dataset", "digits", *more
    )


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of an error."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("error")] == lines[-1:]
    return lines[-1]


def test_an_import_is_measured_and_noted_on_its_card(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_teacher("mine", setup.file) == 0
    message = capsys.readouterr().out
    sha256 = files.sha256_of_file(setup.file)
    assert f"no sha256 was stated: the card holds the file's own, {sha256}" in message
    card = setup.card("mine")
    assert (card.identity, card.sha256, card.images, card.eps) == (
        f"mine-{sha256[:8]}",
        sha256,
        360,
        0.15,
    )
    assert card.clean > 90
    assert card.pgd20 < card.clean
    assert card.checked
    assert "unknown before" in card.origin
    assert f"{card.clean:.2f} %" in message
    assert cards.load_teacher(setup.store, card, DIGITS).num_classes == 10
    plan.plan_runs(RunOptions(method="kd", teacher="mine", store=setup.store), {})


def test_a_stated_hash_is_checked(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    sha256 = files.sha256_of_file(setup.file)
    assert import_teacher("mine", setup.file, "--sha256", sha256.upper()) == 0
    assert "as stated" in setup.card("mine").origin
    capsys.readouterr()
    assert import_teacher("other", setup.file, "--sha256", "0" * 64) == 1
    assert "another or damaged file" in last_error(capsys)


def drop_statistics(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name not in ("mean", "std")}


def shift_statistics(state: State) -> State:
    return state | {"mean": state["mean"] + 3, "std": state["std"] * 2}


def shuffle_labels(state: State) -> State:
    order = torch.arange(10).roll(1)
    return state | {name: state[name][order] for name in ("linear.weight", "linear.bias")}


def add_classes(state: State) -> State:
    return state | {"linear.weight": torch.zeros(20, 32), "linear.bias": torch.zeros(20)}


def add_infinity(state: State) -> State:
    return state | {"bn1.weight": torch.full_like(state["bn1.weight"], torch.inf)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            shuffle_labels,
            "no more than by chance: wrong normalisation, other labels or an untrained network",
        ),
        (shift_statistics, "wrong normalisation"),
        (add_classes, "20 classes, digits has 10"),
        (add_infinity, "holds values that are not finite in bn1.weight"),
        (lambda state: {"epoch": 3}, "holds no tensors of a network"),
        (lambda state: models.build("resnet8-w8", DIGITS).state_dict(), "no more than by chance"),
    ],
    ids=[
        "other labels",
        "wrong normalisation",
        "another class count",
        "not finite",
        "no network",
        "untrained",
    ],
)
def test_a_wrong_file_is_refused(
    change: Callable[[State], State],
    message: str,
    setup: Setup,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(1)
    assert import_teacher("mine", setup.write_changed(change)) == 1
    assert message in last_error(capsys)
    assert not setup.store.exists()


def test_a_better_normalisation_is_named_and_can_be_stated(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = setup.write_changed(drop_statistics)
    assert import_teacher("mine", bare) == 1
    assert "if the pixels are normalised by the mean and std of digits" in last_error(capsys)
    assert import_teacher("mine", bare, "--mean", *DIGITS.mean, "--std", *DIGITS.std) == 0
    card = setup.card("mine")
    assert (card.mean, card.std) == (DIGITS.mean, DIGITS.std)
    assert (
        card.sha256[:8] not in card.identity
    )  # the statistics are part of what the digits stand for
    x = torch.rand(3, *DIGITS.shape)
    with torch.no_grad():
        original = checkpoint.load(setup.file, "resnet8-w8", DIGITS)
        torch.testing.assert_close(cards.load_teacher(setup.store, card, DIGITS)(x), original(x))


def evaluate_file(capsys: pytest.CaptureFixture[str], file: Path, *more: object) -> dict[str, Any]:
    """Evaluate a file with one step and return the document."""
    attacks = () if "--attacks" in more else ("--attacks", "fgsm")
    words = ("--dataset", "digits", *attacks, "--json", *more)
    capsys.readouterr()
    assert run_bench("evaluate", "--checkpoint", file, *words) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_evaluate_flags_a_better_normalisation_and_takes_it(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, arch = setup.write_changed(drop_statistics), ("--arch", "resnet8-w8")
    raw = evaluate_file(capsys, bare, *arch)
    assert (raw["mean"], raw["std"]) == ([0], [1])
    assert re.fullmatch(
        r"\d+\.\d % of 360 test images are classified correctly, but 9\d\.\d % if the pixels are "
        "normalised by the mean and std of digits",
        raw["flags"]["wrong-normalisation"],
    )
    statistics = ("--mean", *DIGITS.mean, "--std", *DIGITS.std)
    stated = evaluate_file(capsys, bare, *arch, *statistics)
    assert "wrong-normalisation" not in stated["flags"]
    assert stated["mean"] == pytest.approx(DIGITS.mean)
    assert stated["accuracy"] == evaluate_file(capsys, setup.file, *arch)["accuracy"]
    surrogate = ("--attacks", "fgsm@surrogate", "--surrogate", bare)
    flags = evaluate_file(capsys, setup.file, *arch, *surrogate)["flags"]
    assert "wrong-normalisation" not in flags
    assert "normalised by the mean" in flags["wrong-normalisation-surrogate"]
    statistics = ("--surrogate-mean", *DIGITS.mean, "--surrogate-std", *DIGITS.std)
    flags = evaluate_file(capsys, setup.file, *arch, *surrogate, *statistics)["flags"]
    assert "wrong-normalisation-surrogate" not in flags


def test_evaluate_takes_the_facts_of_a_release(
    release: Release,
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mean, std = DIGITS.mean, DIGITS.std
    publish(dataclasses.replace(release, eps=0.05, mean=mean, std=std), monkeypatch)
    bare = setup.write_changed(drop_statistics)
    document = evaluate_file(capsys, bare, "--release", "Known")
    assert (document["arch"], document["eps"]) == (release.arch, 0.05)
    assert document["mean"] == pytest.approx(mean)
    assert "wrong-normalisation" not in document["flags"]


def test_a_key_is_part_of_an_imported_teacher(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained = models.build("resnet8-w8", DIGITS).state_dict()
    several = setup.write_changed(lambda state: {"student": state, "teacher": untrained})
    assert import_teacher("mine", several) == 2
    assert "holds several networks, student, teacher: choose one" in last_error(capsys)
    assert import_teacher("mine", several, "--key", "student") == 0
    card = setup.card("mine")
    assert (card.key, card.clean > 90) == ("student", True)
    assert card.sha256[:8] not in card.identity
    state = cards.load_teacher(setup.store, card, DIGITS).state_dict()
    assert not torch.equal(state["linear.weight"], untrained["linear.weight"])
    assert run_bench("teacher", "verify", "mine") == 0


def test_a_flipped_bit_is_refused(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(setup.file.read_bytes())
    content[len(content) // 2] ^= 1
    flipped = setup.folder / "flipped.pt"
    flipped.write_bytes(content)
    with pytest.raises(BenchError, match="a checksum inside is wrong"):
        checkpoint.load(flipped, "resnet8-w8", DIGITS)
    assert import_teacher("mine", flipped) == 1
    assert "a checksum inside is wrong" in last_error(capsys)


def test_other_bad_input_is_one_line(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_teacher("mine", setup.file) == 0
    capsys.readouterr()
    for code, message, name, more in (
        (2, "--limit-test 99: at least 100", "second", ("--limit-test", 99)),
        (2, "both with 1 numbers for digits", "second", ("--mean", 0.5, 0.5, "--std", 1, 1)),
        (1, "there is no checkpoint 'none.pt'", "second", ()),
    ):
        assert import_teacher(name, Path("none.pt"), *more) == code
        assert message in last_error(capsys)
    changed = setup.write_changed(lambda state: state | {"extra_epoch": 1})
    assert import_teacher("mine", changed) == 2
    assert "there is another teacher called 'mine' for digits" in last_error(capsys)


def test_without_the_data_nothing_is_imported(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(models.build("resnet8-w4", CIFAR10).state_dict(), "net.pt")
    assert (
        run_bench(
            "teacher", "import", "mine", "net.pt", "--arch", "resnet8-w4", "--dataset", "cifar10"
        )
        == 1
    )
    assert "put the official folder cifar-10-batches-py there" in last_error(capsys)
    assert not setup.store.exists()


# A release, played by the small network


@pytest.fixture
def release(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A release of which the small network is a true copy."""
    net, test = (
        checkpoint.load(setup.file, "resnet8-w8", DIGITS),
        loading.load_data("digits", "data").test,
    )
    clean = checks.percent_true(checks.classify_correctly(net, test))
    exact = Release(
        "Known", "digits", "resnet8-w8", clean=round(clean, 2), autoattack=0.0, eps=0.15
    )
    return publish(exact, monkeypatch)


def publish(release: Release, monkeypatch: pytest.MonkeyPatch) -> Release:
    monkeypatch.setattr(releases, "RELEASES", (release,))
    return release


def test_a_release_needs_only_its_name(release: Release, setup: Setup) -> None:
    assert run_bench("teacher", "import", "Known", setup.file) == 0
    card = setup.card("Known")
    assert card.arch == release.arch
    assert card.checked == f"published: clean {release.clean} %, AutoAttack 0.0 %"


@pytest.mark.parametrize("shift", [-2.0, 2.0])
def test_another_clean_accuracy_than_published_is_refused(
    shift: float,
    release: Release,
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert release.clean is not None
    publish(dataclasses.replace(release, clean=release.clean + shift), monkeypatch)
    assert run_bench("teacher", "import", "Known", setup.file) == 1
    assert "of Known, give or take 0.5: this is another network" in last_error(capsys)


def test_less_robust_under_pgd_than_published_under_autoattack_is_refused(
    release: Release,
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(dataclasses.replace(release, autoattack=95.0), monkeypatch)
    assert run_bench("teacher", "import", "Known", setup.file) == 1
    assert (
        "withstand PGD-20, AutoAttack leaves Known 95.0 %: this is another network"
        in last_error(capsys)
    )
    assert not setup.store.exists()


def test_the_published_accuracy_bounds_only_radii_no_larger(release: Release) -> None:
    card = cards.Card(
        "Known-0", "resnet8-w8", "digits", "", cards.IMPORTED, images=360, eps=0.2, pgd20=10.0
    )
    release = dataclasses.replace(release, autoattack=80.0)
    # At a larger radius, and in another norm, a lower accuracy is no contradiction.
    assert checks.check_robust_accuracy(card, 360, release).checked
    in_l2 = dataclasses.replace(card, norm="L2", eps=0.1)
    assert checks.check_robust_accuracy(in_l2, 360, release).checked
    with pytest.raises(BenchError, match="this is another network"):
        checks.check_robust_accuracy(dataclasses.replace(card, eps=0.1), 360, release)


def test_the_margin_is_for_a_sample_without_replacement() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = torch.rand(10_000, generator=generator) < 0.85
    margin = checks.accuracy_margin(checks.percent_true(hits), 1000, 10_000)
    assert margin == pytest.approx(4 * (85 * 15 / 1000 * 0.9) ** 0.5 + 0.5, abs=0.1)
    drawn = [
        checks.percent_true(hits[torch.randperm(10_000, generator=generator)[:1000]])
        for _ in range(2000)
    ]
    assert max(abs(value - checks.percent_true(hits)) for value in drawn) < margin
    spread = torch.tensor(drawn).std().item()
    assert 4 * spread + 0.5 == pytest.approx(margin, rel=0.1)
    assert checks.accuracy_margin(85, 10_000, 10_000) == 0.5  # on all images only rounding is left


# The cards of older stores, the lists, `teacher verify`


def import_without_measurement(setup: Setup) -> Path:
    """Import as earlier versions did, which measured nothing; return the path of the card."""
    assert import_teacher("mine", setup.file) == 0
    (path,) = (setup.store / "teachers").glob("*.json")
    fields = json.loads(path.read_text())
    older = {name: fields[name] for name in ("identity", "arch", "dataset", "sha256")}
    path.write_text(json.dumps(older | {"origin": "imported from net.pt"}))
    return path


def test_an_unmeasured_import_teaches_after_verify(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    path = import_without_measurement(setup)
    assert run_bench("teacher", "list") == 0
    assert "not measured" in capsys.readouterr().out
    assert (
        run_bench("run", "--suite", "digits", "--method", "kd", "--teacher", "mine", "--dry-run")
        == 1
    )
    assert (
        "'mine' was never measured: run `python -m bench teacher verify mine` first"
        in last_error(capsys)
    )
    assert run_bench("teacher", "verify", "mine", "--limit-test", 50) == 2
    assert "--limit-test 50: at least 100" in last_error(capsys)
    assert run_bench("teacher", "verify", "mine") == 0
    assert json.loads(path.read_text())["images"] == 360
    plan.plan_runs(RunOptions(method="kd", teacher="mine", store=setup.store), {})


def test_a_teacher_is_measured_in_the_norm_of_the_suite(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smaller ball fools fewer images, and the card says which ball it was."""
    assert import_teacher("mine", setup.file) == 0
    in_linf = setup.card("mine")
    assert (in_linf.norm, in_linf.eps) == ("Linf", 0.15)
    l2 = "name = 'l2'\nbase = 'digits'\nnorm = 'L2'\nattacks = ['pgd20']\n"
    Path("l2.toml").write_text(f"{l2}eps = 0.16\n")
    assert run_bench("teacher", "verify", "mine", "--suite", "l2.toml") == 0
    assert "360 test images, L2 0.16" in capsys.readouterr().out
    card = setup.card("mine")
    assert (card.norm, card.eps, card.clean) == ("L2", 0.16, in_linf.clean)
    assert card.pgd20 > in_linf.pgd20 + 10
    assert card.measured.endswith("(L2 0.16, 360 test images)")


def test_a_teacher_trained_here_needs_no_measurement(tmp_path: Path) -> None:
    card = cards.Card("a-0", "resnet8-w8", "digits", "0" * 64, "trained here, digits@2, spec 0")
    (tmp_path / "teachers").mkdir()
    (tmp_path / "teachers" / "a-0.json").write_text(
        json.dumps(
            {
                name: getattr(card, name)
                for name in ("identity", "arch", "dataset", "sha256", "origin")
            }
        )
    )
    assert cards.find_card(tmp_path, "a", "digits") == card
    with pytest.raises(BenchError, match="was trained on digits, not on cifar10"):
        cards.find_card(tmp_path, "a", "cifar10")
    # Of another suite, in another norm say.
    cards.write_card(tmp_path, dataclasses.replace(card, identity="a-1"))
    with pytest.raises(UsageError, match="2 teachers are called 'a': name one of a-0, a-1"):
        cards.find_card(tmp_path, "a", "digits")
    assert cards.find_card(tmp_path, "a-0", "digits") == card


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("identity", 7, "identity: Input should be a valid string"),
        ("arch", ["resnet8-w4"], "arch: Input should be a valid string"),
        ("dataset", None, "dataset: Input should be a valid string"),
        ("sha256", 0, "sha256: Input should be a valid string"),
        ("origin", {}, "origin: Input should be a valid string"),
        ("images", "360", "images: Input should be a valid integer"),
        ("images", True, "images: Input should be a valid integer"),
        ("images", -1, "images: Input should be greater than or equal to 0"),
        ("clean", "90", "clean: Input should be a valid number"),
        ("eps", float("nan"), "eps: Input should be a finite number"),
        ("mean", 0.5, "mean: Input should be a valid array"),
        ("std", ["a"], "std.0: Input should be a valid number"),
    ],
)
def test_a_card_with_a_wrong_type_is_refused_by_file_and_field(
    name: str, value: object, message: str, tmp_path: Path
) -> None:
    card = cards.Card("a-0", "resnet8-w8", "digits", "0" * 64, "trained here, digits@2, spec 0")
    (tmp_path / "teachers").mkdir()
    (tmp_path / "teachers" / "a-0.json").write_text(
        json.dumps(dataclasses.asdict(card) | {name: value})
    )
    with pytest.raises(BenchError, match=rf"a-0\.json': {message}: mend it, or delete it"):
        cards.read_cards(tmp_path)


def test_the_list_shows_teachers_and_releases(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_teacher("mine", setup.file) == 0
    capsys.readouterr()
    assert run_bench("teacher", "list") == 0
    message = capsys.readouterr().out
    assert re.search(
        r"^mine-\w{8} .*clean \d+\.\d %, PGD-20 \d+\.\d % \(l-inf 0.15, 360 test images\)$",
        message,
        re.M,
    )
    for release in releases.RELEASES:
        assert re.search(
            rf"^{re.escape(release.name)} .*{release.dataset}.*{re.escape(release.where)}$",
            message,
            re.M,
        )


@pytest.mark.parametrize("arch", ["wrn10-1-silu", "preactresnet18-w4-silu", "preactresnet18-w4"])
def test_preactivation_networks_can_be_attacked_and_trained(arch: str) -> None:
    import attacks

    torch.manual_seed(0)
    net: Net = models.build(arch, DIGITS)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    x = torch.rand(8, *DIGITS.shape)
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    y = net.eval()(x).argmax(dim=1)
    result = attacks.evaluate(net, x, y, ("pgd20",), eps=0.15)
    assert result.accuracy()["clean"] == 1
    assert result.accuracy()["pgd20"] < 1


def test_a_card_without_a_hash_accepts_no_file(tmp_path: Path) -> None:
    net = models.build("resnet8-w4", DIGITS)
    (tmp_path / "teachers").mkdir()
    checkpoint.save(tmp_path / "teachers" / "a-0.pt", {"state_dict": net.state_dict()})
    card = cards.Card("a-0", "resnet8-w4", "digits", "", "trained here, digits@3, spec 0")
    with pytest.raises(BenchError, match="another or damaged file"):
        cards.load_teacher(tmp_path, card, DIGITS)
    hashed = dataclasses.replace(
        card, sha256=files.sha256_of_file(tmp_path / "teachers" / "a-0.pt")
    )
    assert isinstance(cards.load_teacher(tmp_path, hashed, DIGITS), Net)
