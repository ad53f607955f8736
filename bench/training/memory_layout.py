"""How weights and memory lie so that training is fast, and which devices compute in bfloat16."""

from __future__ import annotations

import ctypes

import torch
from torch import nn

from methods.base import Net, Nets

# As many channels as one AVX-512 vector holds.
SIMD_CHANNELS = 16
# Parameters of mallopt, from glibc's malloc.h, and the largest value that is safe for both.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_THRESHOLD = 2**30


def all_networks(nets: Nets) -> list[Net]:
    """Return every network a step may run: student, teachers, and networks among the parts."""
    networks = [nets.student, *nets.teachers.values()]
    networks += [part for part in nets.parts.modules() if isinstance(part, Net)]
    return networks


def arrange_memory(nets: Nets, device: torch.device) -> list[str]:
    """Lay weights channels-last and, on a CPU, keep freed memory.

    Returns: the entries of the training path that say what was done beyond the usual.
    """
    if device.type == "cuda":
        for net in all_networks(nets):
            net.to(memory_format=torch.channels_last)
        return []
    if device.type != "cpu":
        return []
    path = []
    for net in all_networks(nets):
        if is_channels_last_safe(net):
            net.to(memory_format=torch.channels_last)
    if is_channels_last_safe(nets.student):
        path.append("channels-last")
    if keep_freed_memory():
        path.append("memory kept")
    return path


def is_channels_last_safe(net: nn.Module) -> bool:
    """Return whether channels-last weights of `net` may get gradients on a CPU."""
    # torch 2.14.1 with AVX2 writes past the weight gradient of a strided 1x1 convolution of two
    # to seven channels, fewer than a vector holds, and so corrupts the heap.
    for layer in net.modules():
        if not isinstance(layer, nn.Conv2d) or layer.in_channels >= SIMD_CHANNELS:
            continue
        if layer.kernel_size == (1, 1) and layer.stride != (1, 1):
            return False
    return True


def keep_freed_memory() -> bool:
    """Make this process keep memory that it frees; return whether its C library (glibc) can."""
    # Fresh pages for large tensors cost a training step a tenth of its time.
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        # Another C library, or another system.
        return False
    trim_kept = mallopt(M_TRIM_THRESHOLD, LARGEST_THRESHOLD)
    return bool(trim_kept and mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD))


def has_bf16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 instructions.

    On a CPU these are AVX512_BF16 or AMX, on CUDA compute capability 8.0 and later. Elsewhere
    PyTorch imitates them, on a CPU 2 to 15 times slower than fp32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True
