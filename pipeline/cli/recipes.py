"""The commands that work on a recipe: run it, plan it, check its data, print it, start a stage by hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    STAGE_NAMES,
    ForceOption,
    FromOption,
    JsonOption,
    OnlyOption,
    PrivateOption,
    RecipeArgument,
    SetOption,
    SlurmOption,
    StoreOption,
    UntilOption,
    WaitOption,
    absolute_recipe,
    make_console,
    open_recipe,
    open_selected,
    open_store,
    open_store_to_write,
    parse_stage,
    print_json,
    refuse_idle,
    say,
    select_stages,
)
from pipeline.cli.rounds import open_rounds
from stages.spec import RUN_STAGES, StageName, with_ancestors

if TYPE_CHECKING:
    from pipeline.plan import Decision


def run_command(
    recipe: RecipeArgument = "demo",
    only: OnlyOption = None,
    from_stage: FromOption = None,
    until: UntilOption = None,
    force: ForceOption = False,
    slurm: SlurmOption = False,
    wait: WaitOption = True,
    private: PrivateOption = False,
    overrides: SetOption = [],
    store: StoreOption = None,
) -> None:
    """Bring the stages up to date: reuse what is there, run the rest. An interrupted run goes on where it stopped.

    Example: rlhf run mine.yaml --set ppo.kl_coef=0.1
    """
    from pipeline.report.progress import ProgressView
    from pipeline.report.tables import print_summary
    from pipeline.run import run

    overrides = [*overrides, "private=true"] if private else overrides
    resolved, selection = open_selected(recipe, overrides, only, from_stage, until, force)
    opened = open_store_to_write(store, resolved)
    terminal = make_console()
    if slurm:
        from pipeline.launch.slurm import run_by_slurm

        root = opened.root
        arguments = [absolute_recipe(recipe), "--store", str(root.resolve()), *(word for pair in overrides for word in ("--set", pair))]
        arguments += ["--force"] if force else []
        arguments += [] if wait else ["--no-wait"]
        stages: list[StageName] = [stage for stage in selection.run if stage in resolved.stages]
        raise typer.Exit(run_by_slurm(resolved.hardware, root, stages, arguments, lambda line: say(terminal, line)))
    outcomes = run(resolved, opened, selection, ProgressView(terminal), wait=wait)
    print_summary(terminal, outcomes)


_WITH_COST = "With --cost"


def plan_command(
    recipe: RecipeArgument = "demo",
    only: OnlyOption = None,
    from_stage: FromOption = None,
    until: UntilOption = None,
    force: ForceOption = False,
    overrides: SetOption = [],
    store: StoreOption = None,
    as_json: JsonOption = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Say instead what it needs: memory, disk, time, money; kept in the store beside what it takes.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="NAME", help="On which GPU, such as h100; default: this machine.", rich_help_panel=_WITH_COST),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, max=1024, help="How many on each machine.", rich_help_panel=_WITH_COST)
    ] = None,
    records: Annotated[
        list[str],
        typer.Option(
            "--records",
            metavar="KIND=NUMBER",
            help="How many records a hub's data set has, such as comparisons=60000; repeatable.",
            rich_help_panel=_WITH_COST,
        ),
    ] = [],
    explain: Annotated[bool, typer.Option("--explain", help="Each step of the arithmetic.", rich_help_panel=_WITH_COST)] = False,
    scale: Annotated[
        bool, typer.Option("--scale", help="Also on 8 to 1,024 GPUs: what more of them bring.", rich_help_panel=_WITH_COST)
    ] = False,
) -> None:
    """Say what `run` would do, and why; of a recipe with a block `rounds`, what `rlhf round` would. With --cost: what it would need.

    Example: rlhf plan mine.yaml --cost --gpu h100 --gpus 8
    """
    if cost:
        overrides = [*([f"hardware.processes={gpus}"] if gpus else []), *overrides]  # a change that is pasted behind it counts
        from pipeline.cli.costs import print_cost

        refuse_idle({"--force": force}, "beside --cost, which counts all stages, reused or not; needed one of them; leave it away")
        selection, named = select_stages(only, from_stage, until, force), (only, from_stage, until)
        print_cost(recipe, overrides, selection, named, store, gpu, records, explain=explain, scale=scale, as_json=as_json)
        return
    idle = {"--gpu": gpu, "--gpus": gpus, "--records": records, "--explain": explain, "--scale": scale}
    refuse_idle(idle, "without --cost; needed both; add --cost")
    from pipeline.plan import plan
    from pipeline.rounds.advance import tell
    from pipeline.rounds.chain import walk

    if not (only or from_stage or until or force) and open_recipe(recipe, overrides, (), to_run=False).rounds is not None:
        resolved = open_rounds(recipe, overrides)
        *_, last = walk(resolved, open_store(store, resolved))
        print_plan_of(last.decisions, as_json)
        say(make_console(err=as_json), tell(last, "rlhf round"))
        return
    resolved, selection = open_selected(recipe, overrides, only, from_stage, until, force)
    print_plan_of(plan(resolved, open_store(store, resolved), selection), as_json)


def print_plan_of(decisions: "list[Decision]", as_json: bool) -> None:
    """Print what becomes of each stage."""
    from pipeline.report.tables import plan_data, print_plan

    if as_json:
        print_json(plan_data(decisions))
    else:
        print_plan(make_console(), decisions)


def config_command(
    recipe: RecipeArgument = "demo",
    overrides: SetOption = [],
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the resolved recipe: defaults, recipe and --set together.

    Example: rlhf config mine.yaml
    """
    import yaml

    from pipeline.recipe.schema import recipe_schema

    if schema:
        print_json(recipe_schema())
        return
    resolved = open_recipe(recipe, overrides, RUN_STAGES, to_run=False).model_dump(mode="json")
    if as_json:
        print_json(resolved)
    else:
        print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=False, width=120), end="")


def launch_command_command(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help=f"{STAGE_NAMES}.")],
    recipe: RecipeArgument = "demo",
    overrides: SetOption = [],
    store: StoreOption = None,
) -> None:
    """Print the commands that start one stage by hand, on each node; what they leave is not published, but `run` goes on from it.

    Example: rlhf launch-command sft mine.yaml
    """
    import shlex

    from pipeline.run import prepare_by_hand

    name = parse_stage(stage)
    assert name is not None
    resolved = open_recipe(recipe, overrides, with_ancestors([name]), stage)
    run_dir, commands = prepare_by_hand(resolved, open_store_to_write(store, resolved), name)
    for where, command in commands:
        print(f"# {f'on {where}, ' if where else ''}in {Path.cwd()}; leaves {run_dir / 'output'}")
        print(shlex.join(command))


def check_data_command(
    recipe: RecipeArgument = "demo",
    overrides: SetOption = [],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read and tokenise all data of a recipe: every bad line, duplicates, contradictions, leakage, what is cut; and ask its judge once.

    Example: rlhf check-data mine.yaml
    """
    from pipeline.inputs.prepare import prepare
    from pipeline.judge import try_judge
    from pipeline.report.progress import ProgressView
    from pipeline.report.tables import findings_data, print_findings
    from pipeline.tokens import make_tokens

    resolved = open_recipe(recipe, overrides, RUN_STAGES)
    root = open_store_to_write(store, resolved).root
    view = ProgressView(make_console(err=True))
    inputs = prepare(resolved, root, resolved.stages, told=view.reading)
    try_judge(resolved, inputs, resolved.stages)
    counts = make_tokens(resolved, inputs, root, view.tokens_event)
    view.tokens_made({})
    data = findings_data(inputs, counts, resolved)
    if as_json:
        print_json(data)
    else:
        print_findings(make_console(), data)
