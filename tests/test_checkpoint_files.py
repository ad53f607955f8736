"""Files that people have, in a table: each is read rightly, or refused by a line of its own."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import gzip
import pickle
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench import models
from bench.datasets import CIFAR10
from bench.models import checkpoint
from bench.system.errors import BenchError, UsageError
from methods.base import Net

ARCH = "resnet8-w4"
State = dict[str, Any]
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def build_network(seed: int, arch: str = ARCH) -> Net:
    """Build a network in eval mode with a normalisation of its own."""
    torch.manual_seed(seed)
    net = models.build(arch, CIFAR10)
    net.mean.copy_(torch.tensor(MEAN).view(1, 3, 1, 1))
    net.std.copy_(torch.tensor(STD).view(1, 3, 1, 1))
    return net.eval()


def right() -> State:
    """The state of the network that a file is to be read as."""
    return build_network(1).state_dict()


def other() -> State:
    return build_network(2).state_dict()


def bare() -> State:
    return {name: tensor for name, tensor in right().items() if name not in ("mean", "std")}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def with_statistics(mean: str, std: str, prefix: str = "") -> State:
    """A state whose mean and std have these names and whose layers have this prefix."""
    return {mean: torch.tensor(MEAN), std: torch.tensor(STD)} | prefixed(prefix, bare())


def cast(dtype: torch.dtype) -> State:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in right().items()}


def torchvision_names() -> State:
    names = {"linear.": "fc.", ".shortcut.": ".downsample."}
    state = {}
    for name, tensor in right().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    return state


def in_the_middle(level: str) -> State:
    return {name.replace("layer2.", f"layer2.{level}."): t for name, t in right().items()}


# Classes of someone else. None of them is imported by the reader.


class Config(dict[str, Any]):
    """A dictionary with attributes, as of easydict, yacs and addict."""


class Stage(enum.Enum):
    DONE = 1


class Trainer:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.lr, self.parent = model, 0.1, self


class Normalized(nn.Module):
    """A network behind a layer that normalises, with plain tensors as attributes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.prep = nn.Module()
        self.prep.mean, self.prep.std = torch.tensor(MEAN), torch.tensor(STD)
        self.net = net
        del net.mean, net.std


class Code:
    """Code that runs when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def average_of_weights() -> State:
    average = torch.optim.swa_utils.AveragedModel(build_network(1))
    average.n_averaged += 3
    return average.state_dict()


NUMPY_WEIGHTS = {name: tensor.numpy() for name, tensor in right().items()}
# What torch.save gets, by what is special.
READ: dict[str, Callable[[], Any]] = {
    "plain": right,
    **{
        f"under {key}": lambda key=key: {key: right(), "epoch": 76, "acc": 0.5}
        for key in (
            *("state_dict", "model_state_dict", "net", "model", "last", "best", "rmodel"),
            *("ema", "model_ema", "state_dict_ema", "student", "teacher", "module", "my_net"),
        )
    },
    "under two keys": lambda: {"state_dict": {"model": right()}},
    **{
        f"prefix {prefix}": lambda prefix=prefix: prefixed(prefix, right())
        for prefix in (
            *("module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module."),
            *("model.module.", "module.model._orig_mod.", "basic_net.", "lit.backbone."),
        )
    },
    "prefix under a key": lambda: {"net": prefixed("module.model.", right())},
    "DataParallel within": lambda: in_the_middle("module"),
    "compiled within": lambda: in_the_middle("_orig_mod"),
    "optimiser beside the layers": lambda: right() | {"optimizer": {"state": {0: torch.ones(3)}}},
    "ema beside model": lambda: {"model": other(), "ema": right()},
    "model_ema beside model": lambda: {"model": other(), "model_ema": right()},
    "state_dict_ema": lambda: {"state_dict": other(), "state_dict_ema": right()},
    "ema_model among prefixes": lambda: {
        "state_dict": prefixed("model.", other()) | prefixed("ema_model.", right())
    },
    "SWA": average_of_weights,
    "SWA beside net": lambda: {"net": other(), "swa": average_of_weights()},
    "one object under two keys": lambda: dict.fromkeys(("best", "last"), right()),
    "another architecture beside": lambda: {
        "student": right(),
        "teacher": build_network(0, "resnet8-w8").state_dict(),
    },
    "mu and sigma": lambda: with_statistics("mu", "sigma"),
    "normalize.mean": lambda: with_statistics("normalize.mean", "normalize.std", "model."),
    "normalizer.*": lambda: with_statistics("normalizer.mean", "normalizer.std"),
    "norm.mu": lambda: with_statistics("norm.mu", "norm.sigma", "net."),
    "a pair": lambda: with_statistics("0.mean", "0.std", "1."),
    "a pair in DataParallel": lambda: with_statistics("module.0.mean", "module.0.std", "module.1."),
    "statistics beside state_dict": lambda: {"state_dict": bare(), "mean": list(MEAN), "std": STD},
    "statistics as arrays": lambda: {
        "net": bare(),
        "norm": {"mean": np.array(MEAN), "std": np.array(STD)},
    },
    "statistics of the nearest network": lambda: {
        "mean": torch.zeros(3),
        "std": torch.ones(3),
        "ema": {"mean": torch.tensor(MEAN), "std": torch.tensor(STD)} | prefixed("model.", bare()),
        "net": other(),
    },
    "double": lambda: cast(torch.float64),
    "torchvision's names": torchvision_names,
    "parameters": lambda: {name: nn.Parameter(t, False) for name, t in right().items()},
    "NumPy numbers and dtypes": lambda: {
        "net": right(),
        "acc": np.float64(0.5),
        "step": np.int64(3),
        "ok": np.bool_(True),
        "dtype": np.dtype("float32"),
        "losses": np.zeros(3),
    },
    "NumPy arrays": lambda: NUMPY_WEIGHTS,
    "Namespace": lambda: {"model": right(), "args": argparse.Namespace(lr=0.1, name="trades")},
    "other plain objects": lambda: {
        "model": right(),
        "args": types.SimpleNamespace(lr=0.1),
        "folder": Path("runs"),
        "time": datetime.datetime(2024, 1, 1),
        "recent": collections.deque([0.1, 0.2], maxlen=9),
        "counts": collections.Counter("abc"),
        "slice": slice(3),
    },
    "defaultdict": lambda: collections.defaultdict(list, state_dict=right(), history=[1.0]),
    "OrderedDict": lambda: collections.OrderedDict(collections.OrderedDict(right())),
    "foreign objects beside": lambda: {
        "hyper_parameters": Config(lr=0.1, nested=Config(beta=6)),
        "stage": Stage.DONE,
        "code": Code(print, "this must not be printed"),
        "state_dict": right(),
    },
    "foreign dictionary": lambda: Config(state_dict=right()),
}
WHOLE: dict[str, Callable[[], Any]] = {
    "whole network": lambda: build_network(1),
    "whole network in DataParallel": lambda: {"net": nn.DataParallel(build_network(1))},
    "whole network behind a layer": lambda: Normalized(build_network(1)),
    "network of a trainer": lambda: Trainer(build_network(1)),
}


def assert_right(net: Net, tolerance: float = 0.0) -> None:
    """Assert that a network computes what the right one does."""
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not net.training
    assert {tensor.dtype for tensor in net.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(net(x), build_network(1)(x), rtol=tolerance, atol=tolerance)
        assert not torch.allclose(net(x), build_network(2)(x), atol=0.05)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", READ)
def test_a_file_is_read(
    name: str, form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(READ[name](), tmp_path / "net.pt", _use_new_zipfile_serialization=form == "zip")
    assert_right(checkpoint.load(tmp_path / "net.pt", ARCH, CIFAR10))
    assert "this must not be printed" not in capfd.readouterr().out


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_network_is_read_without_its_class(name: str, tmp_path: Path) -> None:
    torch.save(WHOLE[name](), tmp_path / "net.pt")
    assert_right(checkpoint.load(tmp_path / "net.pt", ARCH, CIFAR10))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save(cast(dtype), tmp_path / "net.pt")
    assert_right(checkpoint.load(tmp_path / "net.pt", ARCH, CIFAR10), 0.02)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "model.bin"])
def test_safetensors_are_read_under_any_name(name: str, tmp_path: Path) -> None:
    save_file(prefixed("module.", right()), tmp_path / name)
    assert_right(checkpoint.load(tmp_path / name, ARCH, CIFAR10))


def test_a_file_without_statistics_takes_raw_pixels_or_those_stated(tmp_path: Path) -> None:
    torch.save({"teacher": other(), "student": bare()}, tmp_path / "net.pt")
    net = checkpoint.load(tmp_path / "net.pt", ARCH, CIFAR10, key="student")
    assert (net.mean.flatten().tolist(), net.std.flatten().tolist()) == ([0] * 3, [1] * 3)
    stated = checkpoint.load(tmp_path / "net.pt", ARCH, CIFAR10, mean=MEAN, std=STD, key="student")
    assert_right(stated)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (lambda: {"student": right(), "teacher": other()}, "student"),
        (lambda: {"best": right(), "last": other()}, "best"),
        (lambda: {"model": right(), "ema": other()}, "model"),
        (lambda: {"state_dict": prefixed("s.", right()) | prefixed("t.", other())}, "s"),
        (lambda: {"state_dict": prefixed("s.", right()) | prefixed("t.", other())}, "state_dict.s"),
        (lambda: right() | {"ema": other()}, "."),
    ],
)
def test_a_key_chooses_one_of_several_networks(
    content: Callable[[], Any], key: str, tmp_path: Path
) -> None:
    torch.save(content(), tmp_path / "net.pt")
    assert_right(checkpoint.load(tmp_path / "net.pt", ARCH, CIFAR10, key=key))


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        (
            lambda: {"student": right(), "teacher": other()},
            "",
            "holds several networks, student, teacher: choose one with --key",
        ),
        (
            lambda: {"ema": right(), "swa": other(), "net": other()},
            "",
            "holds several networks, ema, net, swa: choose",
        ),
        (lambda: {"net": right()}, "ema", "holds no network under --key ema: it has ., net"),
    ],
)
def test_several_networks_are_listed(
    content: Callable[[], Any], key: str, message: str, tmp_path: Path
) -> None:
    torch.save(content(), tmp_path / "net.pt")
    with pytest.raises(UsageError) as caught:
        checkpoint.load(tmp_path / "net.pt", ARCH, CIFAR10, key=key)
    assert message in str(caught.value)


# Files that are no checkpoint


def write_bytes(content: bytes) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(content)


def save(content: Callable[[], Any], **options: Any) -> Callable[[Path], Any]:
    return lambda file: torch.save(content(), file, **options)


def cut(write: Callable[[Path], Any], share: float) -> Callable[[Path], None]:
    def write_part(file: Path) -> None:
        write(file)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return write_part


def script(file: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(file))


def export(file: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, str(file.with_suffix(".pt2")))
    file.with_suffix(".pt2").rename(file)


def zip_folder(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("models/net.pt", b"weights")


def tar_folder(file: Path) -> None:
    (file.parent / "weights").write_bytes(b"weights" * 100)
    with tarfile.open(file, "w") as archive:
        archive.add(file.parent / "weights", "weights")


def numpy_archive(file: Path) -> None:
    with file.open("wb") as stream:
        np.savez(stream, **NUMPY_WEIGHTS)


DRIVE_ID = "1hPz9QQwyM7QSuWu-ANG_uXR-29xtL8t_"
DRIVE_PAGE = f"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head>
<p><span class="uc-name-size"><a href="/open?id={DRIVE_ID}">model_cifar_wrn.pt</a> (176M)</span>
<form id="download-form" action="https://drive.usercontent.google.com/download">
<input type="hidden" name="id" value="{DRIVE_ID}"></form></html>"""
GITHUB_PAGE = """\n<html lang="en"><head><title>net.pt at main &middot; a/b</title>
<meta property="og:url" content="https://github.com/a/b/blob/main/net.pt" /></head></html>"""
HUB_PAGE = (
    """<html><link rel="canonical" href="https://huggingface.co/a/b/blob/main/net.pt"></html>"""
)
AGAIN = "load it where its code is, and save it again by torch.save(model.state_dict(), FILE)"
CUT = "is cut short: download or copy it again"
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "Drive's page": (
        write_bytes(DRIVE_PAGE.encode()),
        "is a web page, 'Google Drive - Virus scan warning', not a checkpoint: download "
        "model_cifar_wrn.pt from https://drive.usercontent.google.com/download?export=download"
        f"&confirm=t&id={DRIVE_ID}",
    ),
    "GitHub's page": (
        write_bytes(GITHUB_PAGE.encode()),
        "download https://github.com/a/b/raw/main/net.pt",
    ),
    "the hub's page": (
        write_bytes(HUB_PAGE.encode()),
        "is a web page: download https://huggingface.co/a/b/resolve/main/net.pt",
    ),
    "any page": (
        write_bytes(b"\xef\xbb\xbf<html><title>Sign in</title></html>"),
        "is a web page, 'Sign in', not a checkpoint: download the file itself",
    ),
    "text": (
        write_bytes(b"Not Found\nsorry"),
        "is text and not a checkpoint, it begins 'Not Found'",
    ),
    "Git LFS": (write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "`git lfs pull`"),
    "empty": (write_bytes(b""), "is empty: download or copy it again"),
    "noise": (write_bytes(bytes(range(1, 256)) * 9), "is not a checkpoint of tensors alone"),
    "TorchScript": (
        script,
        f"is a TorchScript archive, which is a program: {AGAIN}",
    ),
    "torch.export": (export, "is a graph of torch.export, which is a program"),
    "cut short": (cut(save(right), 0.5), CUT),
    "cut at its end": (cut(save(right), 0.99), CUT),
    "cut legacy file": (cut(save(right, _use_new_zipfile_serialization=False), 0.5), CUT),
    "legacy file cut early": (cut(save(right, _use_new_zipfile_serialization=False), 0.1), CUT),
    "cut safetensors": (cut(lambda file: save_file(right(), file), 0.5), CUT),
    "safetensors cut early": (cut(lambda file: save_file(right(), file), 0.03), CUT),
    "whole network in a legacy file": (
        save(lambda: build_network(1), _use_new_zipfile_serialization=False),
        f"is a whole network in the older format of torch.save: {AGAIN}",
    ),
    "plain pickle": (
        write_bytes(pickle.dumps(NUMPY_WEIGHTS)),
        f"was pickled without torch.save: {AGAIN}",
    ),
    "another protocol": (
        save(right, pickle_protocol=4),
        "was pickled by another protocol than torch.save's",
    ),
    "NumPy archive": (numpy_archive, "is an archive of NumPy arrays"),
    "NumPy array": (lambda file: np.save(file.open("wb"), np.zeros(3)), "is one array of NumPy"),
    "HDF5": (write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "is an HDF5 file"),
    "gzip": (write_bytes(gzip.compress(b"weights")), "is compressed by gzip: unpack it"),
    "zip": (zip_folder, "is a zip archive without a checkpoint's data.pkl: unpack it"),
    "tar": (tar_folder, "is a tar archive: unpack it"),
    "foreign class alone": (
        save(lambda: {"model": Stage.DONE}),
        f"holds no tensors of a network, but model (test_checkpoint_files.Stage): {AGAIN}",
    ),
    "code": (
        save(lambda: {"state_dict": Code(open, "trace", "w")}),
        "holds no tensors of a network, but state_dict (io.open)",
    ),
    "shell": (
        save(lambda: {"state_dict": right(), "x": Code(__import__("os").system, "touch trace")}),
        f"names posix.system, which no network needs: {AGAIN}",
    ),
    "numbers": (save(lambda: {"epoch": 3}), "holds no tensors of a network, but epoch (int)"),
    "list": (save(lambda: [torch.zeros(3)]), "holds a list, not a checkpoint's dictionary"),
    "statistics of too few channels": (
        save(lambda: bare() | {"mean": torch.zeros(1), "std": torch.ones(1)}),
        "mean has shape (1, 1, 1, 1), not (1, 3, 1, 1)",
    ),
    "a second head": (
        save(lambda: right() | {"projector.weight": torch.zeros(3)}),
        "1 of 49 tensors differ, 'projector.weight' first",
    ),
    "quantised": (
        save(
            lambda: (
                right()
                | {
                    "linear.weight": torch.quantize_per_tensor(
                        torch.zeros(10, 16), 1, 0, torch.qint8
                    )
                }
            )
        ),
        "holds linear.weight as something else than a plain tensor of real numbers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_by_its_own_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = REFUSED[name]
    write(Path("net.pt"))
    with pytest.raises(BenchError) as caught:
        checkpoint.load(Path("net.pt"), ARCH, CIFAR10)
    assert str(caught.value).startswith("'net.pt' ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    # Code in a file never runs.
    assert not Path("trace").exists()


def test_a_page_is_answered_with_the_address_of_the_release(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_text(GITHUB_PAGE)
    with pytest.raises(BenchError, match=f"confirm=t&id={DRIVE_ID}$"):
        checkpoint.load(
            tmp_path / "net.pt", ARCH, CIFAR10, where=f"https://drive.google.com/file/d/{DRIVE_ID}"
        )


def test_the_table_has_at_least_40_variants() -> None:
    assert len(READ) + len(WHOLE) + len(REFUSED) >= 40
