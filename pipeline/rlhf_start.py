"""Where the command `rlhf` begins: a name that nobody else has, apart from packages whose names are common: data, stages, pipeline.

A project of the user's on PYTHONPATH that has one of these names is found before ours. Then ours are put in front, for this process and
all that it starts: stages, torchrun's workers, other nodes.

A copy of this file lies beside the installed packages (pyproject.toml) and is what the command runs: `pipeline` may be somebody else's.
"""

import os
import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from runpy import run_module

_HERE = Path(__file__).resolve()
_PACKAGES = ("data", "stages", "pipeline")
_PLACES = [_HERE.parents[1], *map(Path, sys.path)]  # of the file itself; of its copy
_ROOT = next((place.resolve() for place in _PLACES if (place / "pipeline" / _HERE.name).is_file()), _HERE.parent)
_EXIT_USAGE = 2  # as stages.spec has it, which may not be found


def put_ours_first() -> None:
    """Have `data`, `stages` and `pipeline` be ours.

    Where they lie among all installed packages, these would come before PYTHONPATH and the standard library as well: the process ends then.
    """
    hidden = [found for found in map(_find_other, _PACKAGES) if found]
    if not hidden:
        return
    if _ROOT.name in ("site-packages", "dist-packages"):
        todo = "needed another name, or none on PYTHONPATH; rename it, or start rlhf without that entry"
        print(f"PYTHONPATH: found {hidden[0]}, which hides a package of rlhf; {todo}", file=sys.stderr)
        raise SystemExit(_EXIT_USAGE)
    sys.path.insert(0, str(_ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _find_other(name: str) -> Path | None:
    """Find what hides a package of ours."""
    if name in sys.modules:
        return None
    spec = None
    with suppress(ImportError, ValueError):
        spec = find_spec(name)
    origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
    return origin if origin is not None and not origin.is_relative_to(_ROOT / name) and not _takes_ours(name, origin) else None


def _takes_ours(name: str, origin: Path) -> bool:
    """Whether the package that is found says that it takes its other modules from ours."""
    with suppress(Exception):  # of code that is not ours
        return "__path__" in origin.read_text(encoding="utf-8") and str(_ROOT / name) in import_module(name).__path__
    return False


def main() -> None:
    """Run the command's program, `python -m pipeline.cli`."""
    run_module("pipeline.cli", run_name="__main__")


put_ours_first()  # on import: the next ones would find the others
