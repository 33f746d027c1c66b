"""The code of a user's judge, and the files that it names: the part of a cache key that stands for it. It is read, never run."""

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.disk import hash_file
from stages.spec import EXIT_RESOURCE

OUR_PACKAGES = ("data", "stages", "pipeline")  # whose code the versions in stages.spec stand for
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*){0,5}")
_MAX_NAME_CHARS = 1024
_WRITE_MODE = re.compile(r"(?=.*[wax+])[rwaxbt+]{1,4}")
_WRITERS = {"write_text", "write_bytes", "touch", "mkdir", "connect", "FileHandler", "RotatingFileHandler", "basicConfig", "unlink"}
_INSTALLED = ("site-packages", "dist-packages")


def identify_judge(judge: str, directory: str | None) -> str | None:
    """Hash a judge's module and, at any depth, what it imports of the modules beside it: of an installed one, of its own package.

    Files that its code names count too, by their whole path or as they lie beside it: word lists, modules that it imports by their names;
    but not what it writes, such as a log, which each run would change.

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
    if top in OUR_PACKAGES:
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
                nodes = _parse(contents[key])
                waiting += _list_imports(nodes, package)
                texts = _read_texts(nodes) - _read_texts(_list_written(nodes)) - {""}
                waiting += [text for text in texts if _MODULE.fullmatch(text) and only is None]  # by importlib
                contents |= {f"{key} names {text}": _hash(file).encode() for text in texts for file in _find_named(text, path.parent)}
    return contents


def _list_written(nodes: Sequence[ast.AST]) -> list[ast.AST]:
    """List the nodes of what code opens to write: `open(LOG, "a")`, `Path("log.txt").write_text(...)`; and what the name LOG stands for."""
    calls = [node for node in nodes if isinstance(node, ast.Call) and _writes(node)]
    written = [part for call in calls for part in ast.walk(call)]
    names = {part.id for part in written if isinstance(part, ast.Name)}
    for node in nodes:
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id in names for target in node.targets):
            written += ast.walk(node.value)
    return written


def _writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""
    modes = [part.value for part in [*call.args, *(each.value for each in call.keywords)] if isinstance(part, ast.Constant)]
    return name in _WRITERS or (name == "open" and any(isinstance(mode, str) and _WRITE_MODE.fullmatch(mode) for mode in modes))


def _read_texts(nodes: Iterable[ast.AST]) -> set[str]:
    return {_read_text(node) for node in nodes}


def _read_text(node: ast.AST) -> str:
    """Return the text that code stands for: `"words.txt"`, `place / "lists" / "words.txt"`, `join(place, "lists", "words.txt")`."""
    parts: list[ast.expr] = []
    if isinstance(node, ast.Call):
        parts = node.args
    elif isinstance(node, ast.expr):
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            parts, node = [node.right, *parts], node.left
        parts = [node, *parts]
    return "/".join(part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))


def _find_named(text: str, beside: Path) -> Iterator[Path]:
    """Find the file that a text in code names: by its whole path, or beside the code."""
    with suppress(OSError, ValueError):  # a name that is too long, or holds a NUL
        if 0 < len(text) <= _MAX_NAME_CHARS and "\n" not in text and (path := beside / text).is_file() and path.suffix != ".py":
            yield path


def _hash(path: Path) -> str:
    try:
        return hash_file(path.resolve())[1]
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or error
        message = f"{path}: {found}; a file that can be read needed, as the judge names it; change its mode or owner"
        raise StoreError(message, EXIT_RESOURCE) from error


def _parse(content: bytes) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError, RecursionError):  # trying the judge tells
        return []


def _list_imports(nodes: Iterable[ast.AST], package: list[str]) -> Iterator[str]:
    """List the modules that code imports, relative ones by their full names; of `from a import b`, a.b may be one."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield from (f"{base}.{alias.name}" for alias in node.names)
            else:
                yield from (alias.name for alias in node.names)
