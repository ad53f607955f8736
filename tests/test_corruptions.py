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
from attacks.corruptions import STRENGTH, compress_jpeg, corrupt_images


def smooth_images(n: int = 16, size: int = 32, channels: int = 3) -> Tensor:
    """Return images of 256 levels whose neighbouring pixels agree, colours more than brightness."""
    draw = torch.Generator().manual_seed(0)
    grey = torch.rand(n, 1, size // 4, size // 4, generator=draw)
    colour = torch.rand(n, channels, size // 16, size // 16, generator=draw) - 0.5
    fine = nn.functional.interpolate(grey, size, mode="bicubic")
    coarse = nn.functional.interpolate(colour, size, mode="bicubic")
    return ((fine + 0.4 * coarse).clamp(0, 1) * 255).round() / 255


def compress_with_pillow(x: Tensor, quality: int) -> Tensor:
    decoded = []
    for image in (x * 255).round().byte():
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(
            file, "JPEG", quality=quality
        )
        pixels = torch.from_numpy(np.array(Image.open(file))).float().reshape(*x.shape[2:], -1)
        decoded.append(pixels.permute(2, 0, 1) / 255)
    return torch.stack(decoded)


@pytest.mark.parametrize("quality", [80, 40, 10])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_equals_pillow(quality: int, channels: int) -> None:
    x = smooth_images(channels=channels)
    compressed, expected = compress_jpeg(x, quality), compress_with_pillow(x, quality)
    difference, effect = (
        255 * (compressed - expected).abs().mean(),
        255 * (expected - x).abs().mean(),
    )
    # Both use libjpeg, of other versions: single levels may differ.
    assert difference < 0.1 < 1.8 < effect


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_jpeg_of_any_number_of_channels(channels: int) -> None:
    """Other images than those of three channels are compressed channel by channel."""
    x = smooth_images(4, channels=channels)
    compressed = compress_jpeg(x, 50)
    assert compressed.shape == x.shape
    assert compressed.dtype == x.dtype
    assert torch.equal(compressed, compress_jpeg(x, 50))
    if channels != 3:
        torch.testing.assert_close(compressed[:, -1:], compress_jpeg(x[:, -1:], 50))


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 30, 18)])
def test_severity_grows_and_images_stay_images(kind: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = torch.rand(8, *shape)
    corrupted = [corrupt_images(x, kind, severity) for severity in SEVERITIES]
    sizes = [float((images - x).abs().mean()) for images in corrupted]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0
    for images in corrupted:
        assert images.shape == x.shape
        assert images.dtype == torch.float32
        assert images.amin() >= 0
        assert images.amax() <= 1


def test_closed_forms() -> None:
    x = smooth_images() * 0.4 + 0.3
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
    result = evaluate(net, x, y, ("fgsm", "corruptions"), eps=0.01)
    assert list(result.control) == list(CONTROLS)
    assert torch.equal(result.worst, result.robust["fgsm"])
    assert any((verdict & ~result.clean).any() for verdict in result.control.values())
    assert result.accuracy()["noise-5"] == result.control["noise-5"].float().mean().item()
    repeated = evaluate(net, x, y, ("noise-5",), eps=0.01)
    assert torch.equal(repeated.control["noise-5"], result.control["noise-5"])
