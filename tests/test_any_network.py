"""Networks of others: families as files and plugins, timm, functions of packages, any module."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torchvision
from packages import copy_packages, install_package, site
from test_plugins import ROOT, SMALL, exit_code, output_of
from torch import Tensor, nn

import methods
from bench import models
from bench.datasets import CIFAR10, DIGITS, Dataset
from bench.execution import plan
from bench.models import checkpoint
from bench.models.adapter import Adapted, as_net
from bench.models.families.vit import ViT
from bench.protocol.options import RunOptions
from bench.system.errors import BenchError, UsageError
from bench.tracking.links import registered_name
from methods import contract
from methods.base import Method, Net
from methods.fold import find_foldable

__all__ = ["site"]

FAMILY = '''"""Fresh networks."""

from torch import nn

NAMES = {r"fresh-(?P<width>\\d+)": "fresh-<k>: a convolution k wide"}
EXAMPLES = ("fresh-3",)


def build(info, width):
    layers = nn.Conv2d(info.shape[0], int(width), 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.LazyLinear(info.num_classes))
'''


class Colours(nn.Module):
    """A network of someone else, for colour images, that names its parts in its own way."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.stem(x).mean(dim=(2, 3)))
        return logits


class Scaled(Colours):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Normalised(Colours):
    normalises = True


class Auxiliary(Colours):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits  # type: ignore[return-value]


def resnet(num_classes: int) -> nn.Module:
    """A ResNet as torchvision builds them."""
    blocks = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(blocks, [1, 1, 1, 1], num_classes=num_classes)


def build_with(make: Callable[[], nn.Module], info: Dataset = CIFAR10) -> Net:
    torch.manual_seed(0)
    return as_net(make(), info).eval()


def images(info: Dataset, count: int = 3) -> Tensor:
    return torch.rand(count, *info.shape, generator=torch.Generator().manual_seed(0))


# --- Families


@pytest.mark.parametrize("family", models.builtin(), ids=lambda family: family.name)
def test_a_family_is_what_its_file_declares(family: models.Family) -> None:
    assert family.fault == ""
    module = import_module(family.module)
    assert (family.names, family.examples) == (module.NAMES, module.EXAMPLES)
    for example in family.examples:
        others = [other for other in models.builtin() if models.match_family(other, example)]
        assert others == [family]


def test_names_are_listed_without_torch() -> None:
    code = (
        "import sys; from bench import models; models.examples(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_family_touches_exactly_one_file(tmp_path: Path) -> None:
    """Command line, list, plan, training, record and leaderboard read a new file of families."""
    copy_packages(tmp_path)
    guide = (ROOT / "docs" / "contributing" / "add-a-model.md").read_text()
    code = guide.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "bench" / "models" / "families" / "tinynet.py").write_text(code)
    assert "tinynet-w<k>: one convolution k channels wide" in output_of("-m bench list", tmp_path)
    assert "parameters" in output_of("-m bench list tinynet-w4", tmp_path)
    arguments = SMALL.replace("resnet8-w4", "tinynet-w4") + " --teacher tinynet-w5 --method rslad"
    assert "rslad seed 0: clean" in output_of(f"-m bench run {arguments}", tmp_path)
    output_of("-m bench leaderboard", tmp_path)
    assert "tinynet-w5-trades" in (tmp_path / "leaderboard" / "leaderboard.md").read_text()


def install_family(folder: Path, name: str, code: str) -> None:
    """Install a package whose one module offers the family `name`."""
    install_package(folder, "bench.models", name, code)


def test_a_plugin_is_a_family_like_any_other(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_family(site, "fresh", FAMILY)
    install_family(site, "broken", "import no_such_module")
    fault = (
        "models of pack_broken cannot be loaded: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    models.check("fresh-3")
    assert models.build("fresh-4", DIGITS)(images(DIGITS)).shape == (3, 10)
    assert exit_code("list models") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "fresh-3 fresh fresh-<k>: a convolution k wide" in words
    assert fault in words
    with pytest.raises(UsageError, match="did you mean 'fresh-3'") as caught:
        models.check("frosh-3")
    assert str(caught.value).endswith(f"; {fault}")


def test_a_plugin_is_not_imported_for_a_built_in_name(site: Path) -> None:
    install_family(site, "greedy", FAMILY.replace("fresh-(?P<width>", "resnet8-w(?P<width>"))
    assert models.find("resnet8-w4").family.name == "resnet"
    assert "pack_greedy" not in sys.modules


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (FAMILY.replace("NAMES", "NAME"), "KeyError: 'NAMES'"),
        (FAMILY.replace("def build", "def make"), "no function build"),
        (FAMILY.replace('("fresh-3",)', '("stale",)'), "'stale' is no name of the family"),
        (FAMILY.replace('("fresh-3",)', '("fresh-3", "fresh/3")'), "'fresh/3' is no name"),
        (FAMILY.replace("fresh-(", "fresh-(("), "error: missing )"),
        ("import sys; sys.exit(2)", "SystemExit: 2"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(site: Path, code: str, fault: str) -> None:
    install_family(site, "fresh", code)
    (family,) = models.plugins()
    assert family.fault.startswith("models of pack_fresh cannot be loaded: ")
    assert fault in family.fault
    assert "\n" not in family.fault


def test_two_plugins_with_one_name_are_refused(site: Path) -> None:
    install_family(site, "one", FAMILY)
    install_family(site, "two", FAMILY)
    with pytest.raises(UsageError, match="is offered by pack_one and pack_two"):
        models.check("fresh-3")


# --- Any module


@pytest.mark.parametrize("make", [Colours, lambda: resnet(10)], ids=["colours", "resnet"])
def test_an_adapted_network_computes_what_the_module_does(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = make().eval()
    net, x = build_with(make), images(CIFAR10)
    with torch.no_grad():
        assert torch.equal(net(x), module((x - net.mean) / net.std))
        assert net.features(x).shape == (3, net.width)
        assert torch.equal(net.head(net.features(x)), net(x))
        assert torch.equal(copy.deepcopy(net)(x), net(x))
        compiled = torch.compile(type(net).features, backend="eager")
        torch.testing.assert_close(compiled(net, x), net.features(x))
    assert len(find_foldable(net)) == sum(
        isinstance(layer, nn.BatchNorm2d) for layer in net.modules()
    )


@pytest.mark.parametrize("own", [False, True], ids=["module's", "ours"])
def test_checkpoints_of_a_module_load(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the module's own names and under ours."""
    monkeypatch.setattr(checkpoint, "build", lambda arch, info: as_net(Colours(), info))
    net, file = as_net(Normalised(), CIFAR10).eval(), tmp_path / "net.pt"
    torch.manual_seed(1)
    module = Colours().eval()
    net.load_state_dict(as_net(copy.deepcopy(module), CIFAR10).state_dict())
    net.mean.zero_()
    net.std.fill_(1)
    checkpoint.save(file, {"state_dict": net.state_dict() if own else module.state_dict()})
    loaded, x = checkpoint.load(file, "colours", CIFAR10), images(CIFAR10)
    with torch.no_grad():
        assert torch.equal(loaded(x), module(x))


def test_a_module_may_normalise_itself() -> None:
    x = images(CIFAR10)
    net, raw = build_with(Colours), build_with(Normalised)
    assert torch.equal(net.normalise(x), (x - net.mean) / net.std)
    assert torch.equal(raw.normalise(x), x)


def test_grey_images_reach_a_network_for_colours() -> None:
    net = build_with(Colours, DIGITS)
    assert net(images(DIGITS)).shape == (3, 10)
    assert net.mean.numel() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Scaled, "its logits are not what its last linear layer returns"),
        (lambda: nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()), "it has no linear layer"),
        (nn.Identity, r"it returns \(2, 3, 32, 32\) for cifar10, not logits of shape \(2, 10\)"),
        (lambda: Colours(5), r"it returns \(2, 5\) for cifar10, not logits"),
        (lambda: nn.Conv2d(3, 4, 64), "it cannot classify cifar10: RuntimeError: "),
        (lambda: "resnet", "it is str, not a module of torch"),
    ],
)
def test_what_is_no_network_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build_with(make)
    assert "\n" not in str(caught.value)


def test_auxiliary_logits_in_training_are_refused() -> None:
    with pytest.raises(UsageError, match="in training the network returns tuple, no logits"):
        build_with(Auxiliary).train()(images(CIFAR10))


# --- Functions of packages, and timm


def test_a_function_of_a_file_in_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from test_any_network import Colours\ndef small(): return Colours()\nnumber = 3\n"
    (tmp_path / "pack_here.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    models.check("pack_here:small")
    assert isinstance(models.build("pack_here:small", DIGITS), Adapted)
    del sys.modules["pack_here"]


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("no_such_module:net", "cannot be built: ModuleNotFoundError: No module named"),
        ("torchvision.models:resnet19", "cannot be built: AttributeError: "),
        ("bench:__version__", "cannot be built: TypeError: "),
        ("torchvision.models:squeezenet1_0", "it has no linear layer"),
        ("torchvision/models:resnet18", "unknown model"),
        ("timm:resnet-18", "unknown model"),
        ("timm:reznet18", "timm has no such network: did you mean 'res"),
    ],
)
def test_a_name_of_no_network_of_others_is_refused(arch: str, message: str) -> None:
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(UsageError, match=message) as caught:
        models.check(arch)
    assert repr(arch) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_timm_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UsageError, match=r"'timm:resnet18': it needs timm: pip install '.*\[timm\]"
    ):
        models.check("timm:resnet18")


@pytest.mark.parametrize("info", [DIGITS, CIFAR10], ids=["digits", "cifar10"])
def test_a_transformer_of_timm_has_patches_for_small_images(info: Dataset) -> None:
    pytest.importorskip("timm")
    net = models.build("timm:vit_tiny_patch16_224", info)
    assert net.get_parameter("trunk.pos_embed").shape == (1, 65, net.width)
    assert net(images(info)).shape == (3, 10)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("arch", ["timm:test_vit", "torchvision.models:resnet18"])
def test_networks_of_others_are_trained_and_attacked(arch: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    small = SMALL.replace("resnet8-w4", arch)
    text = output_of(f"-m bench run --method rslad,gacd {small}", tmp_path, ROOT)
    for method in ("rslad", "gacd"):
        assert f"digits {arch} {method} seed 0: clean" in text


def test_names_with_a_colon_are_safe_in_files_and_models(tmp_path: Path) -> None:
    options = RunOptions(
        method="rslad",
        student="torchvision.models:resnet18",
        teacher="torchvision.models:resnet18",
        store=tmp_path,
    )
    teacher, student = plan.plan_runs(options, {})
    assert teacher.identity.startswith("torchvision.models-resnet18-trades-")
    assert teacher.spec.arch == student.spec.arch == "torchvision.models:resnet18"
    assert student.spec.teachers == {"robust": teacher.identity}
    assert "--arch torchvision.models:resnet18" in teacher.command
    assert "--teacher torchvision.models:resnet18" in student.command
    names = (student.spec.record_name, registered_name(student.spec, student.spec.arch))
    assert not any(set(name) & set(":/") for name in names)


def test_a_teacher_that_is_no_network_is_refused(tmp_path: Path) -> None:
    for name, message in (("resnet9-w4", "depth must be"), ("nobody", "unknown teacher")):
        with pytest.raises(BenchError, match=message):
            plan.plan_runs(RunOptions(method="rslad", teacher=name, store=tmp_path), {})


# --- ViT-Tiny


def test_vit_tiny_has_layer_norm_alone() -> None:
    net = models.build("vit-tiny", CIFAR10)
    kinds = {type(layer) for layer in net.modules() if "Norm" in type(layer).__name__}
    assert kinds == {nn.LayerNorm}
    # DeiT-Tiny's 5,717,416, with smaller patches, fewer of them, ten classes and no class token.
    assert sum(value.numel() for value in net.parameters()) == 5_362_378
    for info in (DIGITS, CIFAR10):
        assert models.build("vit-tiny", info).get_parameter("position").shape == (1, 64, 192)


INFO = dataclasses.replace(CIFAR10, shape=(3, 6, 6))


def small_vit(width: int, num_classes: int) -> Net:
    """A ViT for the images of the contract."""
    return ViT(dataclasses.replace(INFO, num_classes=num_classes), width, depth=1, heads=2)


@pytest.mark.parametrize("name", methods.builtin())
@pytest.mark.parametrize(
    "rule",
    [
        "terms_are_finite_scalars",
        "gradient_reaches_student_and_parts",
        "teachers_and_batch_are_untouched",
        "same_seed_same_terms",
        "state_is_saved",
        "attack_stays_in_the_ball",
        "loss_falls",
    ],
)
def test_a_transformer_passes_the_contract_with_every_method(
    name: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "Toy", small_vit)
    case: Method = methods.load(name)()
    test = getattr(contract.Contract(), f"test_{rule}")
    takes_classes = rule in ("terms_are_finite_scalars", "gradient_reaches_student_and_parts")
    test(case, 3) if takes_classes else test(case)
