"""Recipe file -> values and lines -> overrides -> closed, resolved `Recipe`, or every error at once as `file:line: key: ...`.

Precedence: defaults (stages/settings.py) < recipe < `--set`. Relative paths are relative to the recipe's directory; those of `--set`, to
the working directory.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from data.schema import KINDS
from pipeline.errors import ConfigError
from pipeline.recipe.checks import check_recipe
from pipeline.recipe.explain import declared_keys, explain, show
from pipeline.recipe.schema import DEMO_PATTERN, Recipe
from pipeline.recipe.yaml_lines import Document, Keys, parse_value, read_document
from pipeline.secrets import hide_secrets, holds_secret, names_secret
from stages.settings import TEMPLATE_KEYWORDS
from stages.spec import STAGES, StageName

_PACKAGED_DIR = Path(__file__).parents[1] / "recipes"
DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".txt", ".gz")
HUB_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def find_recipe(name: str) -> Path:
    """Find a recipe by its path, or by the name of a packaged one.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = {path.stem: path for path in sorted(_PACKAGED_DIR.glob("*.yaml"))}
    found = packaged.get(name.removesuffix(".yaml"))
    if found is None:
        raise ConfigError([f"{name}: found no such recipe, needed a file or one of {', '.join(packaged)}; check the path"])
    return found


def load_recipe(path: Path, overrides: Sequence[str] = (), stages: Iterable[StageName] = STAGES) -> Recipe:
    """Read, override, resolve and check a recipe.

    Args:
        path: Recipe file.
        overrides: `key=value` texts of `--set`; values are YAML.
        stages: Stages that will be planned; only their data must be there.

    Raises:
        ConfigError: With everything that is wrong, each as `place: key: found; needed; do`.
    """
    document = read_document(path)
    _expand_shorthand(document.values)  # so that `--set data.prompts.train.format=...` keeps the path
    for override in overrides:
        _apply_override(document, override)
    secrets = list(_find_secrets(document))
    problems = [*document.problems, *secrets]
    if document.broken or secrets:  # further messages would show the values
        raise ConfigError(problems)
    document.values.setdefault("name", _name_after(path))
    _expand_shorthand(document.values)
    _resolve_paths(document, path.absolute().parent)
    if document.values.get("judge") is not None:
        beside = Path.cwd() if path.parent == _PACKAGED_DIR else path.absolute().parent
        document.values.setdefault("judge_directory", str(beside))
    try:
        recipe = Recipe.model_validate(document.values, strict=True)
    except ValidationError as error:
        raise ConfigError([*problems, *explain(error.errors(), document)]) from None
    problems += check_recipe(recipe, document, tuple(stage for stage in stages if stage in recipe.stages))
    if problems:
        raise ConfigError(problems)
    return recipe


def _name_after(path: Path) -> str:
    """Name a recipe without a name after its file, as far as the characters are allowed."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-")[:64] or "recipe"


def _apply_override(document: Document, override: str) -> None:
    """Put `a.b=c` into the document; a malformed one becomes a problem."""
    key, equals, text = override.partition("=")
    keys = tuple(key.strip().split("."))
    place = "--set"
    if not equals or not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part) for part in keys):
        found = show(hide_secrets(key))
        document.problems.append(f"--set: found the key {found}, needed key=value, such as `--set ppo.kl_coef=0.1`")
        return
    try:
        value = parse_value(text)
    except ValueError as error:
        document.problems.append(f"{place}: {key}: {error}")
        return
    block = document.values
    for part in keys[:-1]:
        inner = block.get(part)
        block[part] = dict(cast("dict[str, Any]", inner)) if isinstance(inner, dict) else {}
        block = block[part]
    block[keys[-1]] = value
    document.places = {known: where for known, where in document.places.items() if known[: len(keys)] != keys}
    document.places[keys] = place


def _find_secrets(document: Document) -> Iterator[str]:
    """A recipe is copied into every artifact, so it must hold no secret; the value is not repeated in the message."""
    for keys, value in _leaves(document.values, ()):
        if not isinstance(value, str):
            continue
        if (names_secret(str(keys[-1])) and keys not in declared_keys()) or holds_secret(value):
            full = ".".join(map(str, keys))
            found = "found a secret, which would be copied into every artifact"
            yield f"{document.place(keys)}: {full}: {found}; leave it away and set the environment (HF_TOKEN)"


def _leaves(value: object, keys: Keys) -> Iterator[tuple[Keys, object]]:
    if isinstance(value, dict):
        for key, inner in cast("dict[str, object]", value).items():
            yield from _leaves(inner, (*keys, key))
    elif isinstance(value, list):
        for index, inner in enumerate(cast("list[object]", value)):
            yield from _leaves(inner, (*keys, index))
    else:
        yield keys, value


def _expand_shorthand(values: dict[str, Any]) -> None:
    """Turn a plain string into the block it stands for."""
    data: Any = values.get("data")
    if isinstance(data, str) and DEMO_PATTERN.fullmatch(data) and ":" not in data:
        data = values["data"] = {kind: data for kind in KINDS if kind != "texts"}
    if not isinstance(data, dict):
        return
    kinds = cast("dict[str, Any]", data)
    for kind in KINDS:
        splits: Any = kinds.get(kind)
        if isinstance(splits, str):
            demo = DEMO_PATTERN.fullmatch(splits) and ":" not in splits and kind != "texts"
            splits = {split: f"{splits}:{kind}.{split}" for split in ("train", "eval")} if demo else {"train": splits}
        if isinstance(splits, dict):
            sources = cast("dict[str, Any]", splits)
            kinds[kind] = {name: {"path": source} if isinstance(source, str) else source for name, source in sources.items()}


def _resolve_paths(document: Document, recipe_dir: Path) -> None:
    """Make local paths absolute; hub ids and `demo` stay as they are."""
    keys_with_paths: list[Keys] = [
        ("base_model",),
        ("tokens", "chat_template"),
        ("hardware", "deepspeed_config"),
        ("hardware", "hostfile"),
        ("store",),
        ("judge_directory",),
    ]
    keys_with_paths += [("data", kind, split, "path") for kind in KINDS for split in ("train", "eval")]
    for keys in keys_with_paths:
        block: dict[str, Any] = document.values
        for key in keys[:-1]:
            inner = block.get(str(key))
            block = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
        value = block.get(str(keys[-1]))
        if isinstance(value, str) and value:
            base = Path.cwd() if document.place(keys) == "--set" else recipe_dir
            local = keys[0] in ("hardware", "store", "judge_directory") or (keys[0] == "tokens" and _names_file(value, base))
            if keys[0] != "tokens" or local:
                block[str(keys[-1])] = _resolve_path(value, base, local=local)


def _names_file(template: str, base: Path) -> bool:
    """Whether a chat template is one in a file, not a keyword or the name of one of the tokenizer's."""
    if template in TEMPLATE_KEYWORDS:
        return False
    return "/" in template or template.endswith((".jinja", ".jinja2", ".j2")) or (base / template).is_file()


def _resolve_path(value: str, base: Path, *, local: bool) -> str:
    if DEMO_PATTERN.fullmatch(value):
        return value
    path = base / Path(value).expanduser()
    looks_local = value.startswith(("/", "./", "../", "~")) or path.suffix in DATA_SUFFIXES or not HUB_PATTERN.fullmatch(value)
    return str(path.resolve()) if local or looks_local or path.exists() else value
