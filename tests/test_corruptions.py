"""Corruptions against Pillow and closed forms, and as a control in an evaluation."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attacks import evaluate
from attacks.catalog import CONTROLS, CORRUPTIONS, SEVERITIES
from attacks.corruptions import CHROMA, LUMA, STRENGTH, corrupt_images, jpeg, table


def smooth(n: int = 16, size: int = 32, channels: int = 3) -> Tensor:
    """Images in which neighbouring pixels agree, colours more than brightness, as in photographs, of 256 levels."""
    draw = torch.Generator().manual_seed(0)
    grey = torch.rand(n, 1, size // 4, size // 4, generator=draw)
    colour = torch.rand(n, channels, size // 16, size // 16, generator=draw) - 0.5
    fine, coarse = (
        nn.functional.interpolate(part, size, mode="bicubic") for part in (grey, colour)
    )
    return ((fine + 0.4 * coarse).clamp(0, 1) * 255).round() / 255


def by_pillow(x: Tensor, quality: int) -> Tensor:
    made = []
    for image in (x * 255).round().byte():
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(
            file, "JPEG", quality=quality
        )
        made.append(
            torch.from_numpy(np.array(Image.open(file)))
            .float()
            .reshape(*x.shape[2:], -1)
            .permute(2, 0, 1)
            / 255
        )
    return torch.stack(made)


@pytest.mark.parametrize("quality", [80, 40, 10])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(quality: int, channels: int) -> None:
    x = smooth(channels=channels)
    mine, theirs = compress_jpeg(x, quality).clamp(0, 1), by_pillow(x, quality)
    apart, effect = 255 * (mine - theirs).abs().mean(), 255 * (theirs - x).abs().mean()
    assert apart < 1.2 < 1.5 * 1.2 < effect  # a level is lost to rounding on the way


@pytest.mark.parametrize(("quality", "first"), [(50, 16), (80, 6), (25, 32), (100, 1)])
def test_quantisation_table(quality: int, first: int) -> None:
    assert table(LUMA, quality, torch.zeros(1))[0, 0] == first
    assert len(LUMA) == len(CHROMA) == 8 == len(LUMA[0]) == len(CHROMA[0])


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 30, 18)])
def test_severity_grows_and_images_stay_images(kind: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = torch.rand(8, *shape)
    found = [corrupt_images(x, kind, severity) for severity in SEVERITIES]
    sizes = [float((images - x).abs().mean()) for images in found]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0
    assert all(
        images.shape == x.shape and images.amin() >= 0 and images.amax() <= 1 for images in found
    )
    assert all(images.dtype == torch.float32 for images in found)


def test_closed_forms() -> None:
    x = smooth() * 0.4 + 0.3
    mean = x.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(corrupt_images(x, "contrast", 2), 0.5 * x + 0.5 * mean)
    torch.manual_seed(3)
    assert float((corrupt_images(x, "noise", 3) - x).std()) == pytest.approx(
        STRENGTH["noise"][2], rel=0.02
    )
    point = torch.zeros(1, 1, 15, 15)
    point[0, 0, 7, 7] = 1
    blurred = corrupt_images(point, "blur", 5)[0, 0]
    assert float(blurred[7, 8] / blurred[7, 7]) == pytest.approx(np.exp(-0.5), rel=1e-4)
    assert float(blurred.sum()) == pytest.approx(1, rel=1e-4)


def test_controls_leave_worst_alone_and_start_from_all_images() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    x = torch.rand(40, 3, 8, 8)
    y = net(x).argmax(dim=1)
    y[::2] = (y[::2] + 1) % 4
    found = evaluate(net, x, y, ("fgsm", "corruptions"), eps=0.01)
    assert list(found.control) == list(CONTROLS)
    assert torch.equal(found.worst, found.robust["fgsm"])
    assert any((verdict & ~found.clean).any() for verdict in found.control.values())
    assert found.accuracy()["noise-5"] == found.control["noise-5"].float().mean().item()
    again = evaluate(net, x, y, ("noise-5",), eps=0.01)
    assert torch.equal(again.control["noise-5"], found.control["noise-5"])
