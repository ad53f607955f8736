"""What a test set of a given size can tell apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def sentence(runs: pd.DataFrame, best: float) -> str:
    """How many test images `runs` used and which differences near the accuracy `best` (in [0, 1] or NaN) are noise."""
    images = _span(runs, "test/n")
    scored = _span(runs, "test/aa_n") or images
    if images is None or scored is None:
        return "The number of test images was not recorded."
    sizes = f"{_words(images)} test images" + (f", AutoAttack on {_words(scored)} of them" if scored != images else "")
    if math.isnan(best) or scored[0] < 1:
        return f"{sizes}."
    error = binomial_error(best, scored[0])
    return (
        f"{sizes}: the binomial standard error at the best AutoAttack value is {error:.1f} points, so differences under "
        f"about {2 * math.sqrt(2) * error:.1f} points between single rows are within the test set's noise "
        "(unpaired bound, about 95 %)."
    )


def binomial_error(accuracy: float, n: int) -> float:
    """Standard error, in points, of an accuracy in [0, 1] measured on n >= 1 images."""
    if accuracy in (0, 1):  # the plain formula claims certainty there; two successes and failures more do not
        accuracy, n = (accuracy * n + 2) / (n + 4), n + 4
    return 100 * math.sqrt(accuracy * (1 - accuracy) / n)


def _span(runs: pd.DataFrame, metric: str) -> tuple[int, int] | None:
    values = runs[metric].dropna() if metric in runs else ()
    return (int(min(values)), int(max(values))) if len(values) else None


def _words(span: tuple[int, int]) -> str:
    low, high = (f"{count:,}" for count in span)
    return low if low == high else f"{low} to {high}"
