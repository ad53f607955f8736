"""Print results for programs: one JSON document."""

from __future__ import annotations

import json
from typing import Any


def print_json(document: Any) -> None:
    """Print a document on standard output. Numbers must be finite."""
    print(json.dumps(document, indent=2, allow_nan=False))
