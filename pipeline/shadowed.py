"""A module of the user's that Python finds in place of a package of ours: told in one line, where an import would fail in many."""

import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("data", "stages")
_EXIT_USAGE = 2  # as stages.spec has it, which may not be there


def _refuse_shadowed() -> None:
    """End the process where PYTHONPATH leads to a `data` or `stages` that is not ours; such names are common."""
    root = Path(__file__).resolve().parents[1]
    for name in _PACKAGES:
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is not None and not origin.is_relative_to(root / name) and not _takes_ours(name, root):
            found = f"PYTHONPATH: found {origin}, which hides the package {name} of rlhf"
            print(f"{found}; needed another name, or none on PYTHONPATH; rename it, or start rlhf without that entry", file=sys.stderr)
            raise SystemExit(_EXIT_USAGE)


def _takes_ours(name: str, root: Path) -> bool:
    """Whether the package that is found takes its other modules from ours."""
    with suppress(Exception):  # of code that is not ours
        return str(root / name) in import_module(name).__path__
    return False


_refuse_shadowed()  # on import, by the command line: its next imports would fail
