"""Words of a command line: numbers in plain digits, and text without control characters."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

from bench.system.errors import UsageError

WHOLE = re.compile(r"[+-]?[0-9]+")
REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
LARGEST_COUNT = 1_000_000  # what records allow of epochs, trials and images


def parse_whole(text: str) -> int:
    """Return a whole number of 64 bits in the digits 0 to 9. Raise ValueError for another text."""
    if not WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is no whole number")
    # Python refuses to read thousands of digits, with an error of its own.
    if len(text) > 20 or abs(int(text)) >= 2**63:
        raise ValueError(f"{text[:30]} is too large: below 2^63")
    return int(text)


def parse_real(text: str) -> float:
    """Return a finite number in the digits 0 to 9. Raise ValueError for another text."""
    if not REAL.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"{text!r} is no finite number")
    return float(text)


def check_count(flag: str, count: int, least: int = 1) -> None:
    """Raise UsageError for a number of images, epochs, trials or processes out of range."""
    if not least <= count <= LARGEST_COUNT:
        raise UsageError(f"{flag} {count}: at least {least}, at most {LARGEST_COUNT:,}")


def check_words(words: Sequence[str]) -> None:
    """Raise UsageError for a word with a line break or another control character.

    Messages, logs and recorded commands are lines.
    """
    for before, word in zip(["", *words], words, strict=False):
        if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in word):
            flag = f"{before}: " if before.startswith("--") else ""
            raise UsageError(f"{flag}{word!r} has a line break or another control character")
