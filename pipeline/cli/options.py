"""What the commands share: their options, how a recipe and a store are opened, how a line is printed."""

import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from stages.spec import ARTIFACT_KINDS, EXIT_MISSING, EXIT_USAGE, RUN_STAGES, StageName, data_inputs, with_ancestors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from pipeline.plan import Selection
    from pipeline.recipe.schema import Recipe
    from pipeline.store.store import Store

RefArgument = Annotated[str, typer.Argument(metavar="REF", help="ppo, ppo@v3, ppo@ALIAS or the beginning of a content id.")]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a packaged one.")]
SetOption = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as ppo.kl_coef=0.1; repeatable.")]
StoreOption = Annotated[
    Path | None, typer.Option("--store", envvar="RLHF_STORE", help="Directory of artifacts and runs; default: store, here.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OnlyOption = Annotated[str | None, typer.Option("--only", metavar="STAGE", help="This stage alone; those before it must be there.")]
FromOption = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="This stage and those after it.")]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]
SlurmOption = Annotated[bool, typer.Option("--slurm", help="Submit a SLURM job for each stage and follow them.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Make new artifacts even where one can be reused.")]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="Where another process runs a stage with the same inputs: wait and reuse what it makes, going on from its last checkpoint if "
        "it dies; or end with exit code 5.",
    ),
]
PrivateOption = Annotated[
    bool,
    typer.Option(
        "--private",
        help="Let nobody else read what this makes: samples, logs and token ids hold real prompts. Otherwise the umask decides. "
        "The same as --set private=true.",
    ),
]

STAGE_NAMES = ", ".join(RUN_STAGES)
KIND_NAMES = ", ".join(ARTIFACT_KINDS)


def select_stages(only: str | None, from_stage: str | None, until: str | None, force: bool) -> "Selection":
    """Turn --only, --from and --until into the stages that may run."""
    from pipeline.plan import Selection

    if only is not None and (from_stage is not None or until is not None):
        raise typer.BadParameter("--only is a stage alone; leave --from and --until away")
    first, last = parse_stage(from_stage if only is None else only), parse_stage(until if only is None else only)
    chosen: tuple[StageName, ...] = with_ancestors([last]) if last else RUN_STAGES
    run: tuple[StageName, ...] = tuple(stage for stage in chosen if first is None or first in with_ancestors([stage]))
    if not run:
        raise typer.BadParameter(f"--from {from_stage} comes after --until {until}; the order is {STAGE_NAMES}")
    return Selection(run, force)


def open_selected(
    recipe: str, overrides: list[str], only: str | None, from_stage: str | None, until: str | None, force: bool
) -> "tuple[Recipe, Selection]":
    """Load a recipe, and say which of its stages may run."""
    selection = select_stages(only, from_stage, until, force)
    return open_recipe(recipe, overrides, with_ancestors(selection.run), only, from_stage, until), selection


def parse_stage(name: str | None) -> StageName | None:
    """Read a stage's name as it was typed."""
    if name is None:
        return None
    for stage in RUN_STAGES:
        if stage == name:
            return stage
    raise typer.BadParameter(f"found {name!r:.40}, needed a stage: {STAGE_NAMES}")


def open_recipe(name: str, overrides: list[str], stages: tuple[StageName, ...], *named: str | None, to_run: bool = True) -> "Recipe":
    """Load a recipe, of which these stages will be planned; `named` ones it must have."""
    from pipeline.pasted import keep_recipe
    from pipeline.recipe.load import find_recipe, load_recipe

    keep_recipe(name, overrides)
    recipe = load_recipe(find_recipe(name), overrides, stages, to_run=to_run)
    require_stages(recipe, *named)
    if recipe.data.texts is not None and not any("texts" in data_inputs(stage, recipe.settings(stage)) for stage in recipe.stages):
        print("note: data.texts is read by no stage; add `pretrain: {}` or ppo.ptx_data: texts, or leave it away", file=sys.stderr)
    return recipe


def require_stages(recipe: "Recipe", *named: str | None) -> None:
    """Refuse the name of a stage that a recipe does not have."""
    if absent := [stage for stage in named if stage is not None and stage not in recipe.stages]:
        raise typer.BadParameter(f"found {absent[0]}, but the recipe has no block of that name; add `{absent[0]}: {{}}` to it")


def absolute_recipe(recipe: str) -> str:
    """Name a recipe so that a job in another directory finds it."""
    from pipeline.store.disk import expand_home

    path = expand_home(recipe)
    return str(path.absolute()) if path.is_file() else recipe


def open_store(given: Path | None, recipe: "Recipe | None" = None) -> "Store":
    """Open the store that was named, else the recipe's, else ./store.

    Raises:
        ConfigError: It is a file.
    """
    from pipeline.errors import ConfigError
    from pipeline.pasted import keep_store
    from pipeline.store.disk import expand_home
    from pipeline.store.store import Store

    chosen = given if given is not None else (recipe.store if recipe else "store")
    root = expand_home(chosen).absolute()
    keep_store(str(chosen), os.environ.get("RLHF_STORE") or "store")
    if os.path.exists(root) and not root.is_dir():  # noqa: PTH110  (Path.exists raises for a name that is too long)
        raise ConfigError([f"--store: found {root}, which is no directory; needed one, or a path at which to make one"])
    return Store(root)


def open_existing_store(given: Path | None) -> "Store":
    """Open a store that must be there already: a mistyped one holds nothing to ask about or to remove.

    Raises:
        StoreError: It is not there (exit 4).
    """
    from pipeline.errors import StoreError

    store = open_store(given)
    if not store.root.is_dir():
        raise StoreError(f"{store.root}: no such directory; a store is needed; give another --store", EXIT_MISSING)
    return store


def open_store_to_write(given: Path | None, recipe: "Recipe | None" = None) -> "Store":
    """Open a store in which a command will write, as privately as the recipe wants it.

    Raises:
        ConfigError: The libraries could not open it.
        ResourceError: A part of it is a link.
    """
    from pipeline.store.parts import require_own_parts, require_utf8

    store = open_store(given, recipe)
    require_utf8(store.root)
    require_own_parts(store.root)
    if recipe and recipe.private:
        os.umask(0o077)
    return store


def refuse_idle(options: "Mapping[str, object]", why: str) -> None:
    """Refuse options that would do nothing: what is typed is never ignored in silence.

    Args:
        options: Name -> value; None, False and what is empty were not given.
        why: Beside or without which other option they stand, what is needed and what to do.

    Raises:
        StoreError: One was given (exit 2).
    """
    from pipeline.errors import StoreError

    if found := [name for name, value in options.items() if value is not None and value is not False and value not in ("", [])]:
        raise StoreError(f"found {', '.join(found)} {why}", EXIT_USAGE)


def make_console(*, err: bool = False) -> "Console":
    """Make what prints tables: as wide as the terminal, 200 columns in a pipe."""
    from rich.console import Console

    # Without a terminal there is no width to keep to: a table's line stays one line.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200, stderr=err)


def say(console: "Console", line: str) -> None:
    """Print one line, of which nothing is taken for markup or an escape; the commands in it are complete."""
    from pipeline.pasted import complete
    from pipeline.report.tables import print_line

    print_line(console, complete(line))


def print_json(data: Any) -> None:
    """Print data as ASCII JSON."""
    from stages.lines import name_numbers

    print(json.dumps(name_numbers(data), indent=2, ensure_ascii=True))


def ask_line() -> str:
    """Ask for a line on the terminal, with an editor's keys; bytes that are no text are asked for anew.

    Raises:
        EOFError: There is no more.
    """
    with suppress(ImportError):
        __import__("readline")  # gives input() its keys and its history
    cast("io.TextIOWrapper", sys.stdin).reconfigure(errors="surrogateescape")
    while True:
        line = input("> ")
        if line.isascii() or not any("\udc80" <= char <= "\udcff" for char in line):
            return line
        print("found bytes that are no UTF-8; needed text; write the line anew")
