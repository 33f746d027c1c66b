"""The paths in a recipe: made absolute, told apart from hub ids, and what is told of one that is not there."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from data.file_kinds import FILE_FORMATS, OTHER_FILES
from data.schema import KINDS
from pipeline.errors import escape_controls
from pipeline.ranking.settings import names_file
from pipeline.recipe.sources import DEMO_PATTERN
from pipeline.recipe.yaml_lines import Document, Keys, names_option, show_keys
from pipeline.store.disk import expand_home, is_utf8
from stages.blocks import TEMPLATE_KEYWORDS

DATA_SUFFIXES = tuple(f".{ending.rpartition('.')[2]}" for ending in FILE_FORMATS + OTHER_FILES)
HUB_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_TEMPLATE: Keys = ("tokens", "chat_template")
_GUIDELINES: Keys = ("ranking", "guidelines")
# Never ids of a hub.
_LOCAL: tuple[Keys, ...] = (
    ("hardware", "deepspeed_config"),
    ("hardware", "hostfile"),
    ("store",),
    ("judge_directory",),
    _TEMPLATE,
    _GUIDELINES,
)
_JUDGES: tuple[Keys, ...] = (("sft", "judge", "reward_model"), ("evaluate", "judge", "reward_model"))
_OTHERS: tuple[Keys, ...] = (("base_model",), *_JUDGES, *(("data", kind, split, "path") for kind in KINDS for split in ("train", "eval")))


def resolve_paths(document: Document, recipe_dir: Path) -> Iterator[str]:
    """Make local paths absolute; hub ids and `demo` stay as they are.

    Yields:
        What is wrong with a path: it is no UTF-8, which no library opens and no JSON holds, or none that the system takes.
    """
    for keys in (*_LOCAL, *_OTHERS, *_list_parts(document)):
        inner: Any = document.values
        for key in keys[:-1]:
            try:
                inner = inner[key]
            except (LookupError, TypeError):
                inner = {}
        block = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
        value = block.get(str(keys[-1]))
        if isinstance(value, str) and value:
            base = Path.cwd() if names_option(document.place(keys)) else recipe_dir
            try:
                if _stays(keys, value, base):
                    continue
                block[str(keys[-1])] = resolved = _resolve_path(value, base, local=keys in _LOCAL)
                with suppress(FileNotFoundError, NotADirectoryError, UnicodeEncodeError):
                    Path(resolved).stat()
            except (OSError, ValueError, RuntimeError) as error:  # too long, not allowed, a NUL character, links in a circle
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                found = f"found {value[:60]!r}, which the system refuses ({reason!s:.60}), needed a path; give another"
                yield f"{document.place(keys)}: {show_keys(keys)}: {found}"
                continue
            if not is_utf8(resolved):
                found = f"found {show_path(Path(resolved))}, needed a path in UTF-8, as the libraries open no other; rename it"
                yield f"{document.place(keys)}: {show_keys(keys)}: {found}"


def _stays(keys: Keys, value: str, base: Path) -> bool:
    """Whether what stands where a path may stand is none: the name of a template or an artifact, or a text."""
    if keys == _TEMPLATE:
        return not _names_file(value, base)
    return (keys == _GUIDELINES and not names_file(value)) or (keys in _JUDGES and names_artifact(value))


def names_artifact(reward_model: str) -> bool:
    """Whether a judge's name is that of an artifact: rm, rm@v2, rm@best. A directory called so is given as ./rm."""
    return re.fullmatch(r"rm(@[\w.-]+)?|[a-z][a-z0-9_-]{0,31}@[\w.-]+", reward_model) is not None


def _list_parts(document: Document) -> Iterator[Keys]:
    """List the keys of the paths in a list of sources of comparisons."""
    keys: Keys = ("data", "comparisons", "train", "parts")
    parts: Any = document.values
    with suppress(LookupError, TypeError):
        for key in keys:
            parts = parts[key]
        yield from ((*keys, number, "path") for number in range(len(parts)))


def _names_file(template: str, base: Path) -> bool:
    """Whether a chat template is one in a file, not a keyword or the name of one of the tokenizer's."""
    if template in TEMPLATE_KEYWORDS:
        return False
    return "/" in template or template.endswith((".jinja", ".jinja2", ".j2")) or (base / template).is_file()


def _resolve_path(value: str, base: Path, *, local: bool) -> str:
    if DEMO_PATTERN.fullmatch(value):
        return value
    path = base / expand_home(value)
    looks_local = value.startswith(("/", "./", "../", "~")) or path.suffix in DATA_SUFFIXES or not HUB_PATTERN.fullmatch(value)
    # A link keeps its name, which says what it is: a hub's cache holds links to files that are called by their hash.
    whole = path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
    return str(whole) if local or looks_local or path.exists() else value


def show_path(path: Path) -> str:
    """Write a path in quotes, whole, on one line."""
    return f'"{escape_controls(str(path))}"'


def hint_path(path: Path, otherwise: str) -> str:
    """Say what to do about a path that is not there, by what it looks like."""
    text = str(path)
    if address := re.search(r"(^|/)(https?|s3|gs|hf|file):/", text):
        hub = "name its id (owner/name)" if address[2] == "hf" or "huggingface.co/" in text else "fetch it, and give the file's path"
        return f"that reads as an address, which nothing is read from: {hub}"
    if "\\" in text or re.search(r"(^|/)[A-Za-z]:/", text):
        return "that reads as a path of Windows: give it as this machine has it, with /"
    if re.search(r"\$\w|\$\{", text):
        return "variables such as $HOME are not filled in: write the path out, or give it by --set"
    return otherwise


def find_absence(value: str, keys: str, revision: str | None) -> str | None:
    """Say that what reads as an id of a hub is neither a directory nor in the hub's cache, where the network may not be asked.

    Args:
        value: Of the recipe, after `resolve_paths`.
        keys: Its key: `base_model`, or of data.
        revision: Of the model or dataset.
    """
    if Path(value).is_absolute() or DEMO_PATTERN.fullmatch(value):
        return None
    import huggingface_hub  # here, not at the top: few recipes name a hub's ids
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return None
    if keys == "base_model":
        kind, found = "model", isinstance(huggingface_hub.try_to_load_from_cache(value, "config.json", revision=revision), str)
    else:
        datasets_cache = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
        places = (Path(constants.HF_HUB_CACHE) / f"datasets--{value.replace('/', '--')}", Path(datasets_cache) / value.replace("/", "___"))
        kind, found = "dataset", any(place.is_dir() for place in places)
    if found:
        return None
    return (
        f"found no file or directory {value}, and no {kind} of that id in the hub's cache, beyond which HF_HUB_OFFLINE forbids to look; "
        "give its path, or download it"
    )
