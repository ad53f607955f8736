"""Adversarial examples made elsewhere: the ball, the files that hold them, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_attacks import boundary_distances, choose_eps, labelled_images, linear_model
from torch import Tensor, nn

from attacks import evaluate, evaluation
from bench import cli, models
from bench.datasets import DIGITS
from bench.datasets.augmentation import to_float
from bench.datasets.loading import load_data
from bench.execution.adversarial_file import read_examples
from bench.system.errors import BenchError
from bench.system.files import sha256_of_file


def worst_examples(net: nn.Sequential, x: Tensor, y: Tensor, eps: float, norm: str) -> Tensor:
    """Return the exact worst case of a linear model: eps towards the nearest other class."""
    weight = net[1].weight.detach()
    difference = weight[y][:, None] - weight
    logits = net(x).detach()
    size = difference.norm(p=1 if norm == "Linf" else 2, dim=2)
    ratio = (logits.gather(1, y[:, None]) - logits) / size
    nearest = ratio.scatter(1, y[:, None], torch.inf).argmin(dim=1)
    direction = difference[torch.arange(len(x)), nearest].view_as(x)
    if norm == "Linf":
        return x - eps * direction.sign()
    return x - eps * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def make_task(norm: str) -> dict[str, Any]:
    """Return an evaluation with an eps at which some images are robust."""
    net = linear_model(5)
    x, y = labelled_images(net, 60)
    eps = choose_eps(boundary_distances(net, x, y, norm))
    return {"net": net, "x": x, "y": y, "eps": eps, "norm": norm}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_verdict_is_the_exact_one_in_both_norms(norm: str) -> None:
    task = make_task(norm)
    adv = worst_examples(**task)
    result = evaluate(**task, attacks=(), images={"mine": adv}, probes=0)
    exact = boundary_distances(task["net"], task["x"], task["y"], norm) > task["eps"]
    assert result.robust["images@mine"].tolist() == exact.tolist()
    assert 0 < result.accuracy()["images@mine"] < result.accuracy()["clean"]


def test_worst_is_over_attacks_and_images() -> None:
    task = make_task("Linf")
    half = worst_examples(**task)
    half[30:] = task["x"][30:]
    result = evaluate(**task, attacks=("fgsm",), images={"half": half})
    fgsm, images = result.robust["fgsm"], result.robust["images@half"]
    assert result.worst.tolist() == (result.clean & fgsm & images).tolist()
    assert result.worst.sum() < min(fgsm.sum(), images.sum())
    assert "transfer-beats-white-box" not in result.flags


def test_images_that_fool_more_than_the_attacks_do_raise_a_flag() -> None:
    """One step of a model with many classes is far from the worst case."""
    net = linear_model(20)
    x, y = labelled_images(net, 200)
    eps = choose_eps(boundary_distances(net, x, y))
    adv = worst_examples(net, x, y, eps, "Linf")
    result = evaluate(net, x, y, ("fgsm",), eps=eps, images={"mine": adv})
    assert result.flags["transfer-beats-white-box"].startswith("images@mine broke ")


def test_a_verdict_file_holds_each_set_and_never_a_stale_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, record = make_task("Linf"), tmp_path / "verdicts.npz"
    evaluate(**task, attacks=("fgsm",), record=record)
    monkeypatch.setattr(evaluation, "build_attack", None)
    adv = worst_examples(**task)
    results = []
    for images in ({"a": adv}, {"a": task["x"]}, {"b": adv}):
        results.append(evaluate(**task, attacks=("fgsm",), images=images, record=record))
    first, second, third = (next(iter(result.robust.values())).tolist() for result in results)
    assert first == third != second == results[0].clean.tolist()
    assert {"robust_fgsm", "robust_images@a", "robust_images@b"} <= set(np.load(record))
    assert list(results[2].robust) == ["images@b", "fgsm"]


def push(adv: Tensor, image: int, value: float) -> Tensor:
    changed = adv.clone()
    changed[image, 0, 0, 0] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-1], r"must be float32 \(60, 3, 5, 5\), not torch.float32 \(59, 3, 5, 5\)"),
        (lambda x: x.double(), r"not torch.float64"),
        (lambda x: push(x, 7, torch.nan), "must be finite; 1 of 60 are not: image 7 "),
        (lambda x: push(x, 7, torch.inf), "must be finite; 1 of 60 are not: image 7 "),
        (lambda x: push(x, 7, 1.01), r"in \[0, 1\]; 1 of 60 are not: image 7 has .*, 1.01\]"),
        (lambda x: push(x, 7, -0.01), r"in \[0, 1\]; 1 of 60 are not: image 7 has .*\[-0.01, "),
        (
            lambda x: x + 0.00602,
            r"in the ball of eps 0.006 \(Linf\) around their test images; 60 of 60 are not: "
            r"image 0 has .*, 0.00602\d* away",
        ),
    ],
)
def test_what_is_no_image_of_the_ball_is_refused(
    change: Callable[[Tensor], Tensor], message: str
) -> None:
    task = make_task("Linf") | {"eps": 0.006}
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(**task, attacks=("fgsm",), images={"mine": change(task["x"])})
    assert "\n" not in str(caught.value)


def test_rounding_of_float32_is_allowed() -> None:
    task = make_task("Linf")
    for excess, allowed in ((9e-7, True), (2e-6, False)):
        images = {"mine": task["x"] + task["eps"] + excess}
        if allowed:
            evaluate(**task, attacks=(), images=images, probes=0)
        else:
            with pytest.raises(ValueError, match="in the ball"):
                evaluate(**task, attacks=(), images=images, probes=0)


# Files


IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def save_npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def save_safetensors(path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"adv": IMAGES}, path)


FORMS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "npy": ("a.npy", lambda path: np.save(path, IMAGES.numpy())),
    "npy of doubles": ("a.npy", lambda path: np.save(path, IMAGES.double().numpy())),
    "npy of another byte order": (
        "a.npy",
        lambda path: np.save(path, IMAGES.numpy().astype(">f4")),
    ),
    "npz": ("a.npz", lambda path: np.savez(path, adv=IMAGES.numpy(), labels=np.arange(4))),
    "tensor": ("a.pt", lambda path: torch.save(IMAGES, path)),
    "tensor with a gradient": (
        "a.pt",
        lambda path: torch.save(IMAGES.clone().requires_grad_(), path),
    ),
    "AutoAttack's dictionary": ("a.pth", lambda path: torch.save({"adv_complete": IMAGES}, path)),
    "torchattacks' dictionary": (
        "a.pt",
        lambda path: torch.save({"adv_inputs": IMAGES, "labels": torch.arange(4)}, path),
    ),
    "array in a torch file": ("a.pt", lambda path: torch.save(IMAGES.numpy(), path)),
    "safetensors": ("a.safetensors", save_safetensors),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_this_form_is_read(form: str, tmp_path: Path) -> None:
    name, save = FORMS[form]
    save(tmp_path / name)
    images = read_examples(tmp_path / name, (1, 8, 8))
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert torch.equal(images, IMAGES)


class Evil:
    """An object whose reading would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("evil"), "run")


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "none": ("a.npy", lambda path: None, "there is no file"),
    "whole numbers": (
        "a.npy",
        lambda path: np.save(path, (255 * IMAGES).byte().numpy()),
        "images of uint8, not floats in .*: save what the attack made, before it is rounded",
    ),
    "whole numbers of torch": (
        "a.pt",
        lambda path: torch.save((255 * IMAGES).byte(), path),
        "images of uint8, not floats",
    ),
    "complex": ("a.pt", lambda path: torch.save(IMAGES.cfloat(), path), "images of complex64"),
    "sparse": ("a.pt", lambda path: torch.save(IMAGES.to_sparse(), path), "a plain tensor"),
    "nested": (
        "a.pt",
        lambda path: torch.save(torch.nested.nested_tensor([IMAGES[0]]), path),
        "a plain tensor",
    ),
    "channels last": (
        "a.npy",
        lambda path: np.save(path, np.zeros((4, 8, 8, 1), "f4")),
        r"\(4, 8, 8, 1\), not \(N, 1, 8, 8\): images.transpose\(0, 3, 1, 2\)",
    ),
    "another size": (
        "a.npy",
        lambda path: np.save(path, np.zeros((4, 3, 32, 32), "f4")),
        r"\(4, 3, 32, 32\), not \(N, 1, 8, 8\)$",
    ),
    "flat": ("a.npy", lambda path: np.save(path, np.zeros((4, 64), "f4")), "no tensor or array"),
    "several": (
        "a.npz",
        lambda path: np.savez(path, x=IMAGES.numpy(), adv=IMAGES.numpy()),
        "several sets of images, x, adv: save one of them",
    ),
    "objects": (
        "a.npy",
        lambda path: np.save(path, np.array([[[[Evil()]]]], dtype=object), allow_pickle=True),
        "no file of plain NumPy arrays, or damaged",
    ),
    "code": ("a.pt", lambda path: torch.save({"adv": Evil()}, path), "a.pt' "),
    "cut short": ("a.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\0"), "or damaged"),
    "text": ("a.pt", lambda path: path.write_text("hello\n"), "is text"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_another_file_is_one_line_and_runs_no_code(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, save, message = REFUSED[kind]
    save(Path(name))
    with pytest.raises(BenchError, match=message) as caught:
        read_examples(Path(name), (1, 8, 8))
    assert "\n" not in str(caught.value)
    assert not Path("evil").exists()


# The command


def run_bench(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "--checkpoint", "net.pt", "--arch", "resnet8-w4", "--dataset",
                  "digits", *map(str, words)])  # fmt: skip
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def x(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Work in a folder with a network; return the first twenty test images."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(models.build("resnet8-w4", DIGITS).state_dict(), "net.pt")
    return to_float(load_data("digits", "data").test.x[:20])


def test_evaluate_judges_a_file(x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    noise = 0.15 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).sub(0.5).sign()
    torch.save({"adv_complete": (x + noise).clamp(0, 1)}, "adv.pt")
    sha256 = sha256_of_file(Path("adv.pt"))
    words = ("--images", "adv.pt", "--limit-test", 20, "--out", "verdicts.npz")
    assert run_bench(*words) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:4]]
    assert names == ["clean", f"images@{sha256[:16]}", "worst"]
    assert f"robust_images@{sha256[:16]}" in np.load("verdicts.npz")
    assert run_bench(*words, "--attacks", "fgsm", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == {"file": "adv.pt", "sha256": sha256}
    assert list(document["accuracy"]) == ["clean", f"images@{sha256[:16]}", "fgsm", "worst"]
    assert document["accuracy"]["worst"] <= min(document["accuracy"].values())
    # 0.15 in each of 64 pixels is 1.2 in L2.
    assert run_bench(*words[:4], "--norm", "L2", "--eps", 1.3) == 0
    assert run_bench(*words[:4], "--norm", "L2", "--eps", 1.0) == 2
    assert "in the ball of eps 1 (L2)" in capsys.readouterr().err


def test_another_number_of_images_is_one_line(
    x: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("adv.npy", x.numpy())
    assert run_bench("--images", "adv.npy") == 2
    message = capsys.readouterr().err
    assert "'adv.npy' holds 20 images for 360 test images: --limit-test 20 takes the" in message
    assert run_bench("--images", "adv.npy", "--limit-test", 10) == 2
    assert capsys.readouterr().err.endswith("holds 20 images for 10 test images\n")
