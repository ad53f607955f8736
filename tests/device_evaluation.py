"""How fast a CUDA device judges: the search for devices against the official AutoAttack.

    python tests/device_evaluation.py --checkpoint FILE [--arch resnet18] [--dataset cifar10]
                                      [--images 256] [--out DIR] [--minutes 9]

The official package runs as its users run it: TF32 where PyTorch allows it, broken images dropped
between components. Then come the exact search and the one for devices, in TF32, bf16 and fp32; rows
that would begin after the given minutes are left out. Each row is written as soon as it is there,
to evaluation.md and evaluation.json: seconds in all and by component, passes, verdicts that differ
from the official ones.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

import attacks
from bench import datasets
from bench.datasets import augmentation, loading
from bench.models import checkpoint
from bench.protocol import suites

WAYS = ("official", "device tf32", "device bf16", "device fp32", "exact fp32")
COLUMNS = ("way", "seconds", "ratio", "robust", "differ", "refused", "forwards", "backwards")


def official(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Return the verdicts of the official package: (N,) bool."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    attack = AutoAttack(net, eps=eps, norm="Linf", seed=0, device=str(x.device))
    with torch.random.fork_rng():
        _, classes = attack.run_standard_evaluation(x, y, batch_size=250)
    return classes == y


def measure(way: str, net: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, Any]:
    """Judge the images in a way; return what a row shows, and the verdicts."""
    start, row = time.perf_counter(), {"way": way}
    if way == "official":
        robust = official(net, x, y, eps).cpu()
    else:
        search, precision = way.split()
        options: dict[str, Any] = {"search": search, "precision": precision, "probes": 0}
        result = attacks.evaluate(net, x, y, ("aa",), eps=eps, **options)
        robust, cost = result.robust["aa"], result.cost["aa"]
        row |= {"refused": cost.refused, "forwards": cost.forwards, "backwards": cost.backwards}
        row["fooled"] = cost.fooled
    seconds = time.perf_counter() - start
    return row | {"seconds": round(seconds, 2), "robust": int(robust.sum()), "verdicts": robust}


def write(rows: list[dict[str, Any]], head: str, out: Path) -> None:
    """Write the rows so far as JSON and as a table."""
    out.mkdir(parents=True, exist_ok=True)
    plain = [{name: row[name] for name in row if name != "verdicts"} for row in rows]
    (out / "evaluation.json").write_text(json.dumps({"head": head, "rows": plain}, indent=1))
    lines = [head, "", f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(['---'] * len(COLUMNS))} |"]
    lines += [f"| {' | '.join(str(row.get(name, '')) for name in COLUMNS)} |" for row in rows]
    (out / "evaluation.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[-1:] if len(rows) > 1 else lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("throughput"))
    parser.add_argument("--minutes", type=float, default=9.0)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    info = datasets.get(options.dataset)
    net = checkpoint.load(options.checkpoint, options.arch, info).to(device).eval()
    root = os.environ.get("BENCH_DATA_ROOT", "data")
    test = loading.load_data(options.dataset, root, limit_test=options.images).test
    x, y = augmentation.to_float(test.x).to(device), test.y.to(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    head = f"{options.images} images, {options.arch}, {name}, torch {torch.__version__}"
    eps = suites.default_eps(options.dataset)
    end = time.monotonic() + 60 * options.minutes
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        if time.monotonic() > end or ("tf32" in way and device.type == "cpu"):
            continue
        row = measure(way, net, x, y, eps)
        reference = rows[0] if rows else row
        row["ratio"] = round(reference["seconds"] / row["seconds"], 2)
        row["differ"] = int((row["verdicts"] != reference["verdicts"]).sum())
        rows.append(row)
        write(rows, head, options.out)


if __name__ == "__main__":
    main()
