"""`python -m bench`, and the console script `robust-distill-bench`."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("methods", "attacks", "leaderboards")


def main() -> None:
    """Run the command line, unless files of the user hide one of its packages."""
    # `python -m` looks into the working folder first, and names such as methods.py are common.
    for package in PACKAGES:
        path = shadowing_path(package)
        if path:
            advice = "run `robust-distill-bench` or `python -P -m bench`, or work in another folder"
            sys.exit(
                f"error: {path} shadows the package {package} of robust-distill-bench: {advice}"
            )
    from bench.cli import main as run_command_line

    run_command_line()


def shadowing_path(package: str) -> str:
    """Return what Python would import instead of a package of this program, "" if nothing."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return ""
    # A folder without __init__.py has no origin.
    path = Path(spec.origin or next(iter(spec.submodule_search_locations or ()))).resolve()
    if path == ROOT / package / "__init__.py":
        return ""
    if path.name == "__init__.py":
        path = path.parent
    folder = Path.cwd()
    return f"./{path.relative_to(folder)}" if path.is_relative_to(folder) else str(path)


if __name__ == "__main__":
    main()
