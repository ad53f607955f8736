"""A network as a file for others: its tensors, or a graph that needs no part of this program."""

from __future__ import annotations

import io
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import ExportedProgram

from bench.system.errors import BenchError, UsageError, unknown_name
from methods.base import Net

FORMATS = {
    ".safetensors": "safetensors",
    ".pt": "state-dict",
    ".onnx": "onnx",
    ".pt2": "torch-export",
}
EXAMPLE_IMAGES = 2  # with one image the exported graph would take one image alone
# Images and tolerance with which a graph of ONNX is compared with torch.
COMPARED_IMAGES = 5
TOLERANCE = 1e-4


def choose_format(path: Path, name: str = "") -> str:
    """Return the format `name`, or else that of the path's suffix. Raise UsageError for neither."""
    if name and name not in FORMATS.values():
        raise unknown_name("format", name, FORMATS.values())
    if not name and path.suffix not in FORMATS:
        suffixes = ", ".join(FORMATS)
        raise UsageError(f"{str(path)!r} says no format: end it in {suffixes}, or name a --format")
    return name or FORMATS[path.suffix]


def encode(net: Net, shape: tuple[int, ...], form: str, metadata: dict[str, str]) -> bytes:
    """Return the content of a file. Its images are in [0, 1]: the normalisation is inside.

    Args:
        net: the network, in eval mode on the CPU.
        shape: channels, height and width of an image.
        form: one of FORMATS. The two graphs take any number of images.
        metadata: texts for the head of a safetensors file.

    Raises:
        BenchError: a package for the format is missing, or ONNX gives other logits than torch.
    """
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    buffer = io.BytesIO()
    try:
        if form == "safetensors":
            from safetensors.torch import save

            content: bytes = save(tensors, metadata)
            return content
        if form == "onnx":
            return encode_onnx(net, shape)
    except ModuleNotFoundError as error:
        need = f"{error.name}: pip install 'robust-distill-bench[{form}]'"
        raise BenchError(f"the format {form} needs {need}") from error
    if form == "torch-export":
        torch.export.save(export_program(net, shape), buffer)
    else:
        torch.save(tensors, buffer)
    return buffer.getvalue()


def export_program(net: Net, shape: tuple[int, ...]) -> ExportedProgram:
    """Return the graph of a network for any number of images; see `encode`."""
    example = torch.zeros(EXAMPLE_IMAGES, *shape)
    any_count = ({0: torch.export.Dim.AUTO},)
    return torch.export.export(net, (example,), dynamic_shapes=any_count)


def encode_onnx(net: Net, shape: tuple[int, ...]) -> bytes:
    """Return a model of ONNX from `images` to `logits`, compared with torch if onnxruntime is here.

    Raise ModuleNotFoundError without the packages of the exporter, BenchError for other logits.
    """
    for package in ("onnx", "onnxscript"):
        import_module(package)
    program = torch.onnx.export(
        export_program(net, shape), input_names=["images"], output_names=["logits"], verbose=False
    )
    assert program is not None  # None is returned where a file is written.
    content: bytes = program.model_proto.SerializeToString()
    if find_spec("onnxruntime"):
        compare_with_torch(content, net, shape)
    return content


def compare_with_torch(content: bytes, net: Net, shape: tuple[int, ...]) -> None:
    """Raise BenchError if onnxruntime's logits differ from torch's."""
    import onnxruntime

    images = torch.rand(COMPARED_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        expected = net(images)
    difference = (torch.from_numpy(logits) - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise BenchError(f"onnxruntime's logits differ from torch's by {difference:.2g}")
