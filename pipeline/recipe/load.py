"""Recipe file -> values and lines -> overrides -> closed, resolved `Recipe`, or every error at once as `file:line: key: ...`.

Precedence: defaults (stages/settings.py) < recipe < `--set`. Relative paths are relative to the recipe's directory; those of `--set`, to
the working directory.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from functools import partial
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from data.file_kinds import FILE_FORMATS, OTHER_FILES
from data.schema import KINDS
from data.secrets import holds_environment_secret, holds_secret, names_secret, redact
from pipeline.errors import ConfigError
from pipeline.recipe.checks import check_keys, check_relations
from pipeline.recipe.explain import declared_keys, explain, known_prefix, natural_order, show, suggest_key
from pipeline.recipe.paths import resolve_paths
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import DEMO_PATTERN, expand_list
from pipeline.recipe.yaml_lines import Document, Keys, parse_value, read_document, show_keys
from pipeline.store.disk import expand_home
from stages.spec import RUN_STAGES, STAGES, StageName

_MAX_WHOLE, _MAX_IN_LIBRARIES = 2**31, 2**63
_LEAST_FLOAT, _MOST_FLOAT = 1.2e-38, 3.4e38
_RECORDS = tuple({*FILE_FORMATS, *OTHER_FILES} - {".json", ".txt"})  # in these two a recipe may lie
_COMPARED_CHARS = 200
_PACKAGED_DIR = Path(__file__).parents[1] / "recipes"


def find_recipe(name: str) -> Path:
    """Find a recipe by its path, or by the name of a packaged one.

    Raises:
        ConfigError: there is neither.
    """
    path = expand_home(name)
    with suppress(OSError):  # a name that is too long, a directory that may not be looked into
        if path.is_file():
            if path.name.endswith(_RECORDS):
                raise ConfigError([f"{name:.200}: found a file of records, needed a recipe that names it, such as data.prompts.train"])
            return path
    packaged = {path.stem: path for path in sorted(_PACKAGED_DIR.glob("*.yaml"))}
    found = packaged.get(name.removesuffix(".yaml"))
    if found is None:
        raise ConfigError(
            [f"{name:.200}: found no such recipe, needed a file or one of {', '.join(packaged)}; {_name_near(path, packaged)}"]
        )
    return found


def _name_near(path: Path, packaged: Iterable[str]) -> str:
    """Name the recipe that a path may mean, in its directory or among the packaged ones."""
    beside: list[str] = []
    with suppress(OSError):
        beside = [str(path.with_name(other.name)) for other in sorted(path.parent.iterdir()) if other.suffix in (".yaml", ".yml")]
    near = get_close_matches(str(path)[-_COMPARED_CHARS:], [each for each in [*beside, *packaged] if each.isprintable()], n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else "check the path"


def load_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    stages: Iterable[StageName] = RUN_STAGES,
    *,
    to_run: bool = False,
    has_files: bool = True,
    options: Sequence[tuple[str, str]] = (),
) -> Recipe:
    """Read, override, resolve and check a recipe.

    Args:
        path: Recipe file.
        overrides: `key=value` texts of `--set`; values are YAML.
        stages: Stages that will be planned; only their data must be there.
        to_run: Whether what it names on a hub must be there too, as far as that is known without asking.
        has_files: Whether data, tokenizer and weights must be there; to know what it costs, the base model's configuration is enough.
        options: (option, `key=value`) of a command's own options, such as `--k`, which messages name; `overrides` go before them.

    Raises:
        ConfigError: With everything that is wrong, each as `place: key: found; needed; do`.
    """
    document = read_document(path)
    _expand_shorthand(document)  # so that an override changes a part of it: `--set data.prompts.train.format=...` keeps the path
    for option, override in [*options, *(("--set", override) for override in overrides)]:
        _apply_override(document, override, option)
    secrets = list(_find_secrets(document))
    problems = [*document.problems, *secrets]
    if document.broken or secrets:  # further messages would show the values
        raise ConfigError(problems)
    if huge := [*_find_huge(document), *_find_unheld(document)]:
        raise ConfigError([*problems, *huge])
    document.values.setdefault("name", _name_after(path))
    _expand_shorthand(document)
    evaluate: Any = document.values.get("evaluate")
    if document.values.get("judge") is not None or (isinstance(evaluate, dict) and cast("dict[str, Any]", evaluate).get("probes")):
        beside = Path.cwd() if path.parent == _PACKAGED_DIR else path.absolute().parent
        document.values.setdefault("judge_directory", str(beside))
    if unusable := list(resolve_paths(document, path.absolute().parent)):
        raise ConfigError([*problems, *unusable])
    try:
        recipe = Recipe.model_validate(document.values, strict=True, context=document)
    except ValidationError as error:
        others = _check_others(document, error, to_run=to_run, has_files=has_files)
        raise ConfigError([*problems, *sorted([*explain(error.errors(), document), *others], key=natural_order)]) from None
    chosen: tuple[StageName, ...] = tuple(stage for stage in stages if stage in recipe.stages or STAGES[stage].asked_for)
    problem = partial(_tell, document)
    found = [*check_keys(recipe, problem, chosen, to_run=to_run, has_files=has_files), *check_relations(recipe, problem, chosen)]
    problems += sorted(found, key=natural_order)
    if problems:
        raise ConfigError(problems)
    return recipe


def _tell(document: Document, key: str, message: str) -> str:
    return f"{document.place(tuple(key.split('.')))}: {key}: {message}"


def _check_others(document: Document, error: ValidationError, *, to_run: bool, has_files: bool) -> Iterator[str]:
    """Check the keys beside those that are wrong, as if these were not given, so that missing files are told at once with them.

    Which data must be given, and what keys mean for each other, is not known then.
    """
    values = deepcopy(document.values)
    locations = (known_prefix(each["loc"], values) for each in error.errors(include_input=False, include_url=False))
    wrong = {tuple(takewhile(lambda key: isinstance(key, str), keys)) for keys in locations}  # of a list with a wrong entry, the list
    for keys in wrong - {()}:
        block: Any = values
        with suppress(KeyError, TypeError):  # its block was wrong itself
            for key in keys[:-1]:
                block = block[key]
            del block[keys[-1]]
    with suppress(ValidationError):  # something is wrong without which there is no recipe
        recipe = Recipe.model_validate(values, strict=True, context=document)

        def problem(key: str, message: str) -> str:
            parts = key.split(".")
            is_wrong = any(all(map(eq, parts, keys)) for keys in wrong)  # as far as both go: it, its block, or what it holds
            return "" if is_wrong else _tell(document, key, message)

        yield from filter(None, check_keys(recipe, problem, (), to_run=to_run, has_files=has_files))


def _name_after(path: Path) -> str:
    """Name a recipe without a name after its file, as far as the characters are allowed."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-")[:64] or "recipe"


def _apply_override(document: Document, override: str, place: str) -> None:
    """Put `a.b=c` into the document; a malformed one becomes a problem. The place is the option by which it was typed."""
    key, equals, text = override.partition("=")
    keys = tuple(key.strip().split("."))
    if not equals or not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part) for part in keys):
        found, meant = show(redact(key)), suggest_key(key)
        hint = f"; did you mean {meant}{'=' if not equals else ''}?" if meant else ", such as `--set ppo.kl_coef=0.1`"
        document.problems.append(f"--set: found the key {found}, needed key=value{hint}")
        return
    try:
        value = parse_value(text)
    except ValueError as error:
        document.problems.append(f"{place}: {key}: {error}")
        return
    block, new = document.values, keys
    for depth, part in enumerate(keys[:-1], start=1):
        inner = block.get(part)
        if not isinstance(inner, dict):
            new = min(new, keys[:depth], key=len)  # the first block that was not there before
        block[part] = dict(cast("dict[str, Any]", inner)) if isinstance(inner, dict) else {}
        block = block[part]
    block[keys[-1]] = value
    document.places = {known: where for known, where in document.places.items() if known[: len(new)] != new}
    document.places |= {keys[:depth]: place for depth in range(len(new), len(keys) + 1)}


def _find_secrets(document: Document) -> Iterator[str]:
    """A recipe is copied into every artifact, so it must hold no secret; the value is not repeated in the message."""
    for keys, value in _leaves(document.values, ()):
        if not isinstance(value, str):
            continue
        name = str(keys[-1])
        # `max_tokens_seen` counts some; a variable of the environment may go on after the word, a key does not.
        is_named = names_secret(name) and names_secret(re.split(r"[_.-]", name)[-1]) and keys not in declared_keys()
        if is_named or holds_secret(value) or holds_environment_secret(value):
            found = "found a secret, which would be copied into every artifact"
            yield f"{document.place(keys)}: {show_keys(keys)}: {found}; leave it away and set the environment (HF_TOKEN)"


def _find_huge(document: Document) -> Iterator[str]:
    """A whole number of more than 64 bits fits nothing that the libraries are written in, nor does a setting of ours go above 31."""
    for keys, value in _leaves(document.values, ()):
        limit = _MAX_WHOLE if keys in declared_keys() else _MAX_IN_LIBRARIES
        if isinstance(value, int) and abs(value) >= limit:
            yield f"{document.place(keys)}: {show_keys(keys)}: found {show(value)}, needed a whole number below {limit:,}; lower it"


def _find_unheld(document: Document) -> Iterator[str]:
    """A number that float32, in which all is trained, makes 0 or infinite, does nothing or ends in NaN: an epsilon of 1e-300."""
    for keys, value in _leaves(document.values, ()):
        if isinstance(value, float) and value and not _LEAST_FLOAT <= abs(value) <= _MOST_FLOAT:
            needed = f"0, or one from {_LEAST_FLOAT:g} to {_MOST_FLOAT:g}, as float32 holds them"
            todo = "raise it" if abs(value) < 1 else "lower it"
            yield f"{document.place(keys)}: {show_keys(keys)}: found {show(value)}, needed {needed}; {todo}"


def _leaves(value: object, keys: Keys) -> Iterator[tuple[Keys, object]]:
    if isinstance(value, dict):
        for key, inner in cast("dict[str, object]", value).items():
            yield from _leaves(inner, (*keys, key))
    elif isinstance(value, list):
        for index, inner in enumerate(cast("list[object]", value)):
            yield from _leaves(inner, (*keys, index))
    else:
        yield keys, value


def _expand_shorthand(document: Document) -> None:
    """Turn a plain string, and of comparisons a list, into the block it stands for."""
    values = document.values
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
            if kind == "comparisons" and "train" in sources:
                kinds[kind]["train"] = expand_list(kinds[kind]["train"], kind)
    train = ("data", "comparisons", "train")
    listed = {keys: place for keys, place in document.places.items() if keys[:3] == train and len(keys) > 3 and isinstance(keys[3], int)}
    document.places |= {(*train, "parts", *keys[3:]): place for keys, place in listed.items()}
