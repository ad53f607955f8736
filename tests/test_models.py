"""Networks by name against the published architectures; checkpoints of every origin."""

from __future__ import annotations

import fcntl
import itertools
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import models
from bench.datasets import CIFAR10, CIFAR100, DATASETS, DIGITS, Dataset
from bench.models import checkpoint
from bench.system import files
from bench.system.errors import BenchError, UsageError
from methods.base import Net

SMALL = ("resnet8-w4", "resnet18-w4-s2", "mobilenetv2", "wrn10-1")
State = dict[str, Any]


def build_lively(arch: str, info: Dataset, seed: int = 0) -> Net:
    """Build a network in eval mode whose BatchNorm has statistics of random images, and biases."""
    torch.manual_seed(seed)
    net = models.build(arch, info)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(random_images(info, 8))
    return net.eval()


def random_images(info: Dataset, n: int = 2) -> Tensor:
    return torch.rand(n, *info.shape, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("info", DATASETS.values(), ids=DATASETS)
@pytest.mark.parametrize("arch", models.examples())
def test_every_example_classifies_every_data_set(arch: str, info: Dataset) -> None:
    models.check(arch)
    with torch.device("meta"):  # shapes without arithmetic, so the largest networks too
        net = models.build(arch, info)
        features = net.features(torch.empty(3, *info.shape))
        logits = net.head(features)
    assert features.shape == (3, net.width)
    assert logits.shape == (3, net.num_classes) == (3, info.num_classes)


@pytest.mark.parametrize(
    ("arch", "info", "count"),
    [
        ("resnet18", CIFAR10, 11_173_962),
        ("resnet18", CIFAR100, 11_220_132),
        ("resnet20-w16", CIFAR10, 272_474),
        ("mobilenetv2", CIFAR10, 2_296_922),
        ("wrn28-10", CIFAR10, 36_479_194),
        ("wrn34-10", CIFAR10, 46_160_474),
        ("wrn34-10", CIFAR100, 46_218_164),
    ],
)
def test_parameter_counts_are_those_of_the_literature(arch: str, info: Dataset, count: int) -> None:
    with torch.device("meta"):
        net = models.build(arch, info)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize(
    ("arch", "width"),
    [
        ("resnet18", 512),
        ("resnet18-w64", 512),
        ("resnet18-s2", 512),
        ("resnet18-w16", 128),
        ("resnet20-w16", 64),
        ("mobilenetv2", 1280),
        ("wrn28-10", 640),
        ("wrn10-1", 64),
    ],
)
def test_the_name_determines_the_width(arch: str, width: int) -> None:
    with torch.device("meta"):
        assert models.build(arch, CIFAR10).width == width


@pytest.mark.parametrize(
    ("arch", "quarter"), [("resnet8-w4", "resnet8-w4-s2"), ("resnet18-w4", "resnet18-w4-s2")]
)
def test_a_stem_of_stride_2_keeps_a_quarter_of_the_pixels(arch: str, quarter: str) -> None:
    sizes: list[int] = []
    for name in (arch, quarter):
        net = models.build(name, CIFAR10)
        net.layer1.register_forward_hook(
            lambda module, inputs, out: sizes.append(out.shape[2:].numel())
        )
        assert net(random_images(CIFAR10)).shape == (2, 10)
    assert sizes == [1024, 256]


@pytest.mark.parametrize("info", [DIGITS, CIFAR100], ids=["digits", "cifar100"])
@pytest.mark.parametrize("arch", SMALL)
def test_forward_is_head_of_features(arch: str, info: Dataset) -> None:
    net, x = build_lively(arch, info), random_images(info, 3)
    with torch.no_grad():
        logits, features = net(x), net.features(x)
        assert torch.equal(logits, net.head(features))
    assert features.shape == (3, net.width)
    assert logits.shape == (3, info.num_classes)
    assert not torch.allclose(logits[0], logits[1], rtol=1e-3)


@pytest.mark.parametrize("arch", SMALL)
def test_normalisation_is_inside(arch: str) -> None:
    net, x = build_lively(arch, CIFAR10), random_images(CIFAR10, 3)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (CIFAR10.mean, CIFAR10.std))
    assert torch.equal(net.mean, mean)
    assert torch.equal(net.std, std)
    with torch.no_grad():
        logits = net(x)
        net.mean.zero_()
        net.std.fill_(1)
        torch.testing.assert_close(net((x - mean) / std), logits)
        assert not torch.allclose(net(x), logits, rtol=1e-3)
    assert {"mean", "std"} <= net.state_dict().keys()


class Layers:
    """The layers of a state dictionary by name, as functions."""

    def __init__(self, state: State) -> None:
        self.state = state

    def conv(self, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)

    def bn(self, name: str, x: Tensor) -> Tensor:
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.state[f"{name}.{kind}"] for kind in kinds))

    def pooled(self, name: str, x: Tensor) -> Tensor:
        return F.linear(
            x.mean(dim=(2, 3)), self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        )


def resnet18(net: Layers, x: Tensor) -> Tensor:
    """He et al. 2016: two blocks a stage, 3x3 stem without pooling."""
    x = F.relu(net.bn("bn1", net.conv("conv1", x)))
    for stage, block in itertools.product(range(1, 5), range(2)):
        name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        out = F.relu(net.bn(f"{name}.bn1", net.conv(f"{name}.conv1", x, stride)))
        out = net.bn(f"{name}.bn2", net.conv(f"{name}.conv2", out))
        if stride == 2:
            x = net.bn(f"{name}.shortcut.1", net.conv(f"{name}.shortcut.0", x, stride))
        x = F.relu(out + x)
    return net.pooled("linear", x)


def wrn16(net: Layers, x: Tensor) -> Tensor:
    """Zagoruyko and Komodakis 2016: BatchNorm and ReLU first; wider blocks shortcut from there."""
    x = net.conv("conv1", x)
    for stage, block in itertools.product(range(1, 4), range(2)):
        name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
        active = F.relu(net.bn(f"{name}.bn1", x))
        out = F.relu(net.bn(f"{name}.bn2", net.conv(f"{name}.conv1", active, stride)))
        if block == 0:
            x = net.conv(f"{name}.convShortcut", active, stride)
        x = net.conv(f"{name}.conv2", out) + x
    return net.pooled("fc", F.relu(net.bn("bn1", x)))


def mobilenetv2(net: Layers, x: Tensor) -> Tensor:
    """Sandler et al. 2018, table 2; first strides 1, ReLU, 1x1 where only the width changes."""
    x = F.relu(net.bn("bn1", net.conv("conv1", x)))
    strides = [1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    for i, stride in enumerate(strides):
        name = f"layers.{i}"
        out = F.relu(net.bn(f"{name}.bn1", net.conv(f"{name}.conv1", x)))
        out = F.relu(
            net.bn(f"{name}.bn2", net.conv(f"{name}.conv2", out, stride, groups=out.shape[1]))
        )
        out = net.bn(f"{name}.bn3", net.conv(f"{name}.conv3", out))
        if stride == 1 and x.shape[1] != out.shape[1]:
            x = net.bn(f"{name}.shortcut.1", net.conv(f"{name}.shortcut.0", x))
        x = out + x if stride == 1 else out
    return net.pooled("linear", F.relu(net.bn("bn2", net.conv("conv2", x))))


@pytest.mark.parametrize(
    ("arch", "reference"),
    [("resnet18-w4", resnet18), ("wrn16-2", wrn16), ("mobilenetv2", mobilenetv2)],
)
def test_logits_equal_the_published_architecture(
    arch: str, reference: Callable[[Layers, Tensor], Tensor]
) -> None:
    net, x = build_lively(arch, CIFAR10), random_images(CIFAR10)
    with torch.no_grad():
        torch.testing.assert_close(
            net(x), reference(Layers(net.state_dict()), (x - net.mean) / net.std)
        )


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet-18", "did you mean 'resnet18'"),
        ("resnet20", "did you mean 'resnet20-w16'"),
        ("resnet8-w4-s3", "did you mean 'resnet8-w4'"),
        ("mobilenet", "did you mean 'mobilenetv2'"),
        ("wrn-28-10", "did you mean 'wrn28-10'"),
        ("wrn34-10x", "did you mean 'wrn34-10'"),
        ("resnet18\n", "did you mean 'resnet18'"),
        ("", "choose from mobilenetv2, preactresnet18"),
        ("vgg", "choose from mobilenetv2, preactresnet18"),
        ("resnet19-w4", "depth must be 6n [+] 2"),
        ("resnet2-w4", "depth must be 6n [+] 2"),
        ("wrn33-2", "depth must be 6n [+] 4"),
        ("wrn4-2", "depth must be 6n [+] 4"),
        ("resnet18-w0", "width must be between"),
        ("resnet8-w1025", "width must be between"),
        ("wrn10-0", "width must be between"),
    ],
)
@pytest.mark.parametrize(
    "call", [models.check, lambda arch: models.build(arch, DIGITS)], ids=["check", "build"]
)
def test_a_name_of_no_network_is_refused(
    call: Callable[[str], Any], arch: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        call(arch)
    assert repr(arch) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


# Checkpoints


def add_prefix(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def without_normalisation(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name not in ("mean", "std")}


def as_pair(state: State, shape: tuple[int, ...] = (-1,)) -> State:
    """As in a (normalise, net) sequence."""
    first = {f"0.{name}": state[name].view(shape) for name in ("mean", "std")}
    return first | add_prefix(without_normalisation(state), "1.")


def as_trades(state: State) -> State:
    """With the block that the TRADES release stores and never uses; trained on raw pixels."""
    unused = {
        name.replace("block1", "sub_block1"): tensor * 2
        for name, tensor in state.items()
        if "block1." in name
    }
    assert unused
    return without_normalisation(state) | unused


def without_counters(state: State) -> State:
    """As before BatchNorm counted its batches."""
    return {
        name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")
    }


ORIGINS: dict[str, Callable[[State], State]] = {
    "plain": lambda state: state,
    "without counters": without_counters,
    "DataParallel": lambda state: add_prefix(state, "module."),
    "state_dict": lambda state: {"state_dict": state, "epoch": 76, "best": 0.5},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "net": lambda state: {"net": add_prefix(state, "module."), "acc": 84.9, "epoch": 200},
    "model in state_dict": lambda state: {"state_dict": {"model": state}},
    "attack wrapper": lambda state: add_prefix(state, "module.basic_net."),
    "model attribute": lambda state: add_prefix(state, "module.model."),
    "pair": as_pair,
    "pair of images": lambda state: as_pair(state, (1, -1, 1, 1)),
    "pair in DataParallel": lambda state: {"state_dict": add_prefix(as_pair(state), "module.")},
    "pair in model": lambda state: add_prefix(as_pair(state), "model."),
    "float64": lambda state: {
        name: t.double() if t.is_floating_point() else t for name, t in state.items()
    },
}
RAW_ORIGINS: dict[str, Callable[[State], State]] = {
    "raw pixels": without_normalisation,
    "raw pixels in DataParallel": lambda state: {
        "state_dict": add_prefix(without_normalisation(state), "module.")
    },
}


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("origin", [*ORIGINS, *RAW_ORIGINS])
def test_checkpoints_of_every_origin_load(arch: str, origin: str, tmp_path: Path) -> None:
    net, file = build_lively(arch, DIGITS), tmp_path / "net.pt"
    checkpoint.save(file, (ORIGINS | RAW_ORIGINS)[origin](net.state_dict()))
    loaded = checkpoint.load(file, arch, DIGITS)
    if origin in RAW_ORIGINS:
        assert (loaded.mean.item(), loaded.std.item()) == (0, 1)
        net.mean.zero_()
        net.std.fill_(1)
    assert not any(module.training for module in loaded.modules())
    x = random_images(DIGITS, 3)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
        assert not torch.equal(models.build(arch, DIGITS).eval()(x), net(x))


def test_the_trades_release_loads(tmp_path: Path) -> None:
    net, file = build_lively("wrn10-1", CIFAR10), tmp_path / "net.pt"
    checkpoint.save(file, add_prefix(as_trades(net.state_dict()), "module."))
    loaded = checkpoint.load(file, "wrn10-1", CIFAR10)
    net.mean.zero_()
    net.std.fill_(1)
    with torch.no_grad():
        assert torch.equal(loaded(random_images(CIFAR10)), net(random_images(CIFAR10)))


def test_a_saved_checkpoint_is_read_unchanged(tmp_path: Path) -> None:
    net, file = build_lively("resnet8-w4", DIGITS), tmp_path / "net.pt"
    checkpoint.save(file, {"state_dict": net.state_dict(), "epoch": 3, "val": 0.25, "names": ["a"]})
    content = checkpoint.read(file, files.sha256_of_file(file).upper())
    assert (content["epoch"], content["val"], content["names"]) == (3, 0.25, ["a"])
    assert all(
        torch.equal(content["state_dict"][name], tensor)
        for name, tensor in net.state_dict().items()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_another_hash_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    checkpoint.save(file, models.build("resnet8-w4", DIGITS).state_dict())
    right = files.sha256_of_file(file)
    assert checkpoint.load(file, "resnet8-w4", DIGITS, right)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(
        BenchError, match=f"sha256 {files.sha256_of_file(file)[:16]}.*not {right[:16]}"
    ) as caught:
        checkpoint.load(file, "resnet8-w4", DIGITS, right)
    assert "\n" not in str(caught.value)


class Payload:
    """Code that runs when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("write", ["pickle", "legacy", "zip"])
def test_code_in_a_checkpoint_never_runs(write: str, tmp_path: Path) -> None:
    file, trace = tmp_path / "net.pt", tmp_path / "trace"
    content = {"state_dict": Payload(trace)}
    if write == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=write == "zip")
    with pytest.raises(BenchError, match=r"pickled without|no tensors .* state_dict \(") as caught:
        checkpoint.load(file, "resnet8-w4", DIGITS)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    if write != "pickle":
        torch.load(file, weights_only=False)["state_dict"].close()
        assert trace.exists()  # it does run where it is trusted


def fresh_state(arch: str = "resnet8-w4", info: Dataset = DIGITS) -> State:
    return models.build(arch, info).state_dict()


def write_content(content: Any) -> Callable[[Path], None]:
    return lambda file: torch.save(content() if callable(content) else content, file)


def transposed_head() -> State:
    state = fresh_state()
    return state | {"linear.weight": state["linear.weight"].T.contiguous()}


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda file: None, "there is no checkpoint"),
    "a folder": (lambda file: file.mkdir(), "cannot be read: Is a directory"),
    "list": (write_content([torch.zeros(3)]), "holds a list, not"),
    "tensor": (write_content(torch.zeros(3)), "holds a Tensor, not"),
    "nothing": (write_content({}), "no tensors of a network"),
    "only numbers": (write_content({"epoch": 3, "state_dict": {}}), "no tensors of a network"),
    "deeper": (
        write_content(lambda: fresh_state("resnet14-w4")),
        r"not a resnet8-w4: .*tensors differ, 'layer1\.1",
    ),
    "another family": (
        write_content(lambda: fresh_state("wrn10-1")),
        "not a resnet8-w4: .*tensors differ",
    ),
    "wider": (
        write_content(lambda: fresh_state("resnet8-w8")),
        r"not a resnet8-w4 for digits: \S+ has shape",
    ),
    "more classes": (
        write_content(lambda: fresh_state("resnet8-w4", CIFAR100)),
        r"resnet8-w4 for digits: \S+ has shape",
    ),
    "head of 20 classes": (
        write_content(
            lambda: (
                fresh_state()
                | {"linear.weight": torch.zeros(20, 16), "linear.bias": torch.zeros(20)}
            )
        ),
        r"linear\.weight has shape \(20, 16\), not \(10, 16\)",
    ),
    "no head": (
        write_content(lambda: {k: v for k, v in fresh_state().items() if "linear" not in k}),
        r"2 of .*'linear\.bias'",
    ),
    "one more": (
        write_content(lambda: fresh_state() | {"extra": torch.zeros(1)}),
        "1 of .* tensors differ, 'extra'",
    ),
    "transposed": (
        write_content(transposed_head),
        r"linear\.weight has shape \(16, 10\), not \(10, 16\)",
    ),
}


@pytest.mark.parametrize(
    ("write", "message"), [pytest.param(*case, id=name) for name, case in REFUSED.items()]
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    write: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "net.pt"
    write(file)
    with pytest.raises(BenchError, match=message) as caught:
        checkpoint.load(file, "resnet8-w4", DIGITS)
    assert re.search(re.escape(repr(str(file))), str(caught.value))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def write_half(content: Any, file: Any) -> None:
    file.write(b"half")
    raise OSError(28, "No space left on device")


def fail(*arguments: Any) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("owner", "name", "failing"),
    [(torch, "save", write_half), (os, "fsync", fail), (Path, "replace", fail)],
)
def test_a_failed_write_leaves_the_old_file(
    owner: Any,
    name: str,
    failing: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "net.pt"
    checkpoint.save(file, {"epoch": 1})
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(OSError, match=r"No space|Input/output"):
            checkpoint.save(file, {"epoch": 2})
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]
    checkpoint.save(file, {"epoch": 3})
    assert checkpoint.read(file) == {"epoch": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_the_file_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("fsync"), fsync(file))[1])
    monkeypatch.setattr(
        Path,
        "replace",
        lambda self, to: (events.append(f"{self.name} -> {to.name}"), replace(self, to)),
    )
    checkpoint.save(tmp_path / "net.pt", {"epoch": 1})
    assert len(events) == 2
    assert events[0] == "fsync"
    assert re.fullmatch(r"net\.pt\.[0-9a-f]{32}\.part -> net\.pt", events[1])


def test_a_writer_removes_what_killed_ones_left(tmp_path: Path) -> None:
    """Not the part of one that lives, or of another file."""
    _, living = files.open_part(tmp_path / "net.pt")
    (living_part,) = tmp_path.iterdir()
    for name in ("net.pt.dead.part", "net.pt.1.part", "other.pt.dead.part"):
        (tmp_path / name).touch()
    checkpoint.save(tmp_path / "net.pt", {"epoch": 1})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"net.pt", "other.pt.dead.part", living_part.name}
    living.close()
    checkpoint.save(tmp_path / "net.pt", {"epoch": 2})
    assert {path.name for path in tmp_path.iterdir()} == {"net.pt", "other.pt.dead.part"}


def test_a_part_that_was_taken_for_a_dead_ones_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer looks between the opening and the lock."""
    path, flock = tmp_path / "net.pt", fcntl.flock

    def look_first(file: Any, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        files.remove_parts(path)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", look_first)
    part, file = files.open_part(path)
    with file:
        assert [*tmp_path.iterdir()] == [part]


INTERRUPTED = """
import signal, sys, torch
from pathlib import Path
from bench.models import checkpoint
def stop(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
path, content, stopped = Path(sys.argv[1]), {str(n): torch.rand(1000) for n in range(200)}, 0
for turn in range(100):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002 * (1 + turn))
        checkpoint.save(path, content)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        stopped += 1
checkpoint.save(path, content)
print(stopped, len(checkpoint.read(path)))
"""


def test_an_interrupted_write_raises_the_interruption(tmp_path: Path) -> None:
    """In a process of its own: torch aborts it, or raises another error, if it writes to a file."""
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "net.pt")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    stopped, tensors = map(int, process.stdout.split())
    assert stopped > 5
    assert tensors == 200
