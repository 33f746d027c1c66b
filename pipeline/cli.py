"""The command `rlhf`: one verb, one function. Starts without torch; errors are one line and an exit code."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.launch.environment import QUIET
from pipeline.terminal import prepare_terminal
from stages.spec import EXIT_FAILED, EXIT_OK, EXIT_VERIFICATION, STAGES, StageName, data_inputs, with_ancestors

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.plan import Selection
    from pipeline.recipe.schema import Recipe
    from pipeline.store.store import Store

app = typer.Typer(
    help="SFT -> reward model -> PPO: one recipe, chained stages, versioned artifacts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a packaged one.")]
SetOption = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as ppo.kl_coef=0.1; repeatable.")]
StoreOption = Annotated[Path | None, typer.Option("--store", envvar="RLHF_STORE", help="Directory of artifacts and runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OnlyOption = Annotated[str | None, typer.Option("--only", metavar="STAGE", help="This stage alone; those before it must be there.")]
FromOption = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="This stage and those after it.")]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]
SlurmOption = Annotated[bool, typer.Option("--slurm", help="Submit a SLURM job for each stage and follow them.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Make new artifacts even where one can be reused.")]

_NAMES = ", ".join(STAGES)


@app.command("run")
def run_command(
    recipe: RecipeArgument = "demo",
    only: OnlyOption = None,
    from_stage: FromOption = None,
    until: UntilOption = None,
    force: ForceOption = False,
    slurm: SlurmOption = False,
    overrides: SetOption = [],
    store: StoreOption = None,
) -> None:
    """Bring the stages up to date: reuse what is there, run the rest. An interrupted run goes on where it stopped."""
    from pipeline.report.progress import ProgressView
    from pipeline.report.tables import print_summary
    from pipeline.run import run

    selection = _select(only, from_stage, until, force)
    resolved = _load_recipe(recipe, overrides, with_ancestors(selection.run), only, from_stage, until)
    console = _console()
    if slurm:
        from pipeline.launch.slurm import run_by_slurm

        root = _open_store(store, resolved).root
        arguments = [_absolute(recipe), "--store", str(root.resolve()), *(word for pair in overrides for word in ("--set", pair))]
        arguments += ["--force"] if force else []
        stages: list[StageName] = [stage for stage in selection.run if stage in resolved.stages]
        raise typer.Exit(run_by_slurm(resolved.hardware, root, stages, arguments, lambda line: _say(console, line)))
    outcomes = run(resolved, _open_store(store, resolved), selection, ProgressView(console))
    print_summary(console, outcomes)


@app.command("plan")
def plan_command(
    recipe: RecipeArgument = "demo",
    only: OnlyOption = None,
    from_stage: FromOption = None,
    until: UntilOption = None,
    force: ForceOption = False,
    overrides: SetOption = [],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what `run` would do, and why."""
    from pipeline.plan import plan
    from pipeline.report.tables import plan_data, print_plan

    selection = _select(only, from_stage, until, force)
    resolved = _load_recipe(recipe, overrides, with_ancestors(selection.run), only, from_stage, until)
    decisions = plan(resolved, _open_store(store, resolved), selection)
    if as_json:
        _print_json(plan_data(decisions))
    else:
        print_plan(_console(), decisions)


@app.command("ls")
def ls_command(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help=f"{_NAMES}; all when left out.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts."""
    from pipeline.report.tables import list_data, print_list

    opened = _open_store(store)
    rows = list_data(opened, kind)
    if as_json:
        _print_json(rows)
    else:
        print_list(_console(), rows, opened.root)


@app.command("show")
def show_command(
    ref: Annotated[str, typer.Argument(help="ppo, ppo@v3, ppo@ALIAS or the beginning of a content id.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one artifact: manifest, metrics, lineage, samples."""
    from pipeline.report.tables import print_artifact, show_data

    opened = _open_store(store)
    data = show_data(opened, opened.get(ref))
    if as_json:
        _print_json(data)
    else:
        print_artifact(_console(), data)


@app.command("verify")
def verify_command(
    ref: Annotated[str | None, typer.Argument(help="One artifact; all when left out.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every byte with the manifest; exit code 3 when something differs."""
    opened = _open_store(store)
    problems = {name: opened.verify(name) for name in ([ref] if ref else opened.refs())}
    if as_json:
        _print_json(problems)
    else:
        console = _console()
        for name, found in problems.items():
            for line in found or ["intact"]:
                _say(console, f"{name}: {line}")
    if any(problems.values()):
        raise typer.Exit(EXIT_VERIFICATION)


@app.command("config")
def config_command(
    recipe: RecipeArgument = "demo",
    overrides: SetOption = [],
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the resolved recipe: defaults, recipe and --set together."""
    import yaml

    from pipeline.recipe.schema import recipe_schema

    if schema:
        _print_json(recipe_schema())
        return
    resolved = _load_recipe(recipe, overrides, tuple(STAGES), to_run=False).model_dump(mode="json")
    if as_json:
        _print_json(resolved)
    else:
        print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=False, width=120), end="")


@app.command("launch-command")
def launch_command_command(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help=f"{_NAMES}.")],
    recipe: RecipeArgument = "demo",
    overrides: SetOption = [],
    store: StoreOption = None,
) -> None:
    """Print the commands that start one stage by hand, on each node; what they leave is not published, but `run` goes on from it."""
    import shlex

    from pipeline.run import prepare_by_hand

    name = _stage(stage)
    assert name is not None
    resolved = _load_recipe(recipe, overrides, with_ancestors([name]), stage)
    run_dir, commands = prepare_by_hand(resolved, _open_store(store, resolved), name)
    for where, command in commands:
        print(f"# {f'on {where}, ' if where else ''}in {Path.cwd()}; leaves {run_dir / 'output'}")
        print(shlex.join(command))


@app.command("check-data")
def check_data_command(
    recipe: RecipeArgument = "demo",
    overrides: SetOption = [],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read and tokenise all data of a recipe: every bad line, duplicates, contradictions, leakage, what is cut; and ask its judge once."""
    from pipeline.judge import try_judge
    from pipeline.plan import prepare
    from pipeline.report.progress import ProgressView
    from pipeline.report.tables import findings_data, print_findings
    from pipeline.tokens import make_tokens

    resolved = _load_recipe(recipe, overrides, tuple(STAGES))
    root = _open_store(store, resolved).root
    view = ProgressView(_console(err=True))
    inputs = prepare(resolved, root, resolved.stages, told=view.reading)
    try_judge(resolved, inputs, resolved.stages)
    counts = make_tokens(resolved, inputs, root, view.tokens_event)
    view.tokens_made({})
    data = findings_data(inputs, counts, resolved.tokens)
    if as_json:
        _print_json(data)
    else:
        print_findings(_console(), data)


@app.command("alias")
def alias_command(
    ref: Annotated[str, typer.Argument(help="The artifact.")],
    name: Annotated[str, typer.Argument(help="Its new name: ppo@NAME.")],
    store: StoreOption = None,
) -> None:
    """Give an artifact a name."""
    from pipeline.store.aliases import user_name

    opened = _open_store(store)
    artifact = opened.get(ref)
    alias = opened.set_alias(artifact.kind, name, artifact.ref, by=user_name())
    before = f" (was {alias.previous})" if alias.previous else ""
    _say(_console(), f"{artifact.kind}@{name} -> {alias.ref}{before}")


def main() -> NoReturn:
    """Run the command line; user mistakes and failures end in one line on stderr and their exit code."""
    prepare_terminal()
    os.environ.update(QUIET)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_by_signal)
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except Exception as error:
        from pipeline.report.errors import print_error

        sys.exit(print_error(error))
    sys.exit(EXIT_OK)


def _end_by_signal(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def _select(only: str | None, from_stage: str | None, until: str | None, force: bool) -> "Selection":
    from pipeline.plan import Selection

    if only and (from_stage or until):
        raise typer.BadParameter("--only is a stage alone; leave --from and --until away")
    first, last = _stage(only or from_stage), _stage(only or until)
    chosen: tuple[StageName, ...] = with_ancestors([last]) if last else tuple(STAGES)
    run: tuple[StageName, ...] = tuple(stage for stage in chosen if first is None or first in with_ancestors([stage]))
    if not run:
        raise typer.BadParameter(f"--from {from_stage} comes after --until {until}; the order is {_NAMES}")
    return Selection(run, force)


def _stage(name: str | None) -> StageName | None:
    if name is None:
        return None
    for stage in STAGES:
        if stage == name:
            return stage
    raise typer.BadParameter(f"found {name!r:.40}, needed a stage: {_NAMES}")


def _load_recipe(name: str, overrides: list[str], stages: tuple[StageName, ...], *named: str | None, to_run: bool = True) -> "Recipe":
    """Load a recipe, of which these stages will be planned; `named` ones it must have."""
    from pipeline.recipe.load import find_recipe, load_recipe

    recipe = load_recipe(find_recipe(name), overrides, stages, to_run=to_run)
    if absent := [stage for stage in named if stage is not None and stage not in recipe.stages]:
        raise typer.BadParameter(f"found {absent[0]}, but the recipe has no block of that name; add `{absent[0]}: {{}}` to it")
    if recipe.data.texts is not None and not any("texts" in data_inputs(stage, recipe.settings(stage)) for stage in recipe.stages):
        print("note: data.texts is read by no stage; add `pretrain: {}` or ppo.ptx_data: texts, or leave it away", file=sys.stderr)
    return recipe


def _absolute(recipe: str) -> str:
    from pipeline.store.disk import expand_home

    path = expand_home(recipe)
    return str(path.absolute()) if path.is_file() else recipe


def _open_store(given: Path | None, recipe: "Recipe | None" = None) -> "Store":
    from pipeline.store.disk import expand_home
    from pipeline.store.store import Store

    return Store(expand_home(given or (recipe.store if recipe else "store")))


def _console(*, err: bool = False) -> "Console":
    from rich.console import Console

    # Without a terminal there is no width to keep to: a table's line stays one line.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200, stderr=err)


def _say(console: "Console", line: str) -> None:
    from rich.text import Text

    from pipeline.text import clean

    console.print(Text(clean(line)), soft_wrap=True)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=True))


if __name__ == "__main__":
    main()
