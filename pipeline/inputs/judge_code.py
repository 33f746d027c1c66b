"""The code of a user's judge: the part of a cache key that stands for it. It is read, never run."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from pipeline.errors import StoreError
from stages.spec import EXIT_RESOURCE

_OURS = ("data", "stages", "pipeline")  # whose code the versions in stages.spec stand for
_INSTALLED = ("site-packages", "dist-packages")


def identify_judge(judge: str, directory: str | None) -> str | None:
    """Hash a judge's module and, at any depth, what it imports of the modules beside it: of an installed one, of its own package.

    Args:
        judge: `module:function`.
        directory: Where its module may lie, after all that is installed or on PYTHONPATH.

    Returns:
        The hash; None for a judge of ours, and for one that is not there, which trying it tells.

    Raises:
        StoreError: A file cannot be read (exit 5).
    """
    module = judge.partition(":")[0]
    top = module.partition(".")[0]
    if top in _OURS:
        return None
    places = sys.path if sys.flags.safe_path else sys.path[1:]  # the stages' own begins with no script's directory
    found = PathFinder.find_spec(top, [*filter(None, places), *([directory] if directory else [])])
    if found is None:
        return None
    package = next(iter(found.submodule_search_locations or ()), None)
    if package is None and found.origin is None:
        return None
    root = Path(package or str(found.origin)).parent
    only = top if set(_INSTALLED) & set(root.parts) else None
    digest = hashlib.sha256()
    for name, content in sorted(_read_modules(module, root, only).items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _read_modules(module: str, root: Path, only: str | None) -> dict[str, bytes]:
    """Read a module's file, those of the packages that it lies in, and of all that they import below `root`: path below it -> content."""
    contents: dict[str, bytes] = {}
    waiting, seen = [module], set[str]()
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        if name in seen or (only is not None and parts[0] != only):
            continue
        seen.add(name)
        for depth in range(1, len(parts) + 1):
            stem = root.joinpath(*parts[:depth])
            for path, package in ((stem / "__init__.py", parts[:depth]), (stem.with_name(f"{stem.name}.py"), parts[: depth - 1])):
                key = str(path.relative_to(root))
                if key in contents or not path.is_file():
                    continue
                try:
                    contents[key] = path.read_bytes()
                except OSError as error:
                    message = f"{path}: {error.strerror}; read permission needed, as judge imports it; change its mode or owner"
                    raise StoreError(message, EXIT_RESOURCE) from error
                waiting += _list_imports(contents[key], package)
    return contents


def _list_imports(content: bytes, package: list[str]) -> Iterator[str]:
    """List the modules that a text imports, relative ones by their full names; of `from a import b`, a.b may be one."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):  # trying the judge tells
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield from (f"{base}.{alias.name}" for alias in node.names)
            else:
                yield from (alias.name for alias in node.names)
