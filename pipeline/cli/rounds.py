"""The commands of the loop with people: sample answers, and the rounds of which that is the first step."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.options import (
    ForceOption,
    JsonOption,
    PrivateOption,
    RecipeArgument,
    RefArgument,
    SetOption,
    StoreOption,
    WaitOption,
    make_console,
    open_recipe,
    open_store_to_write,
    print_json,
    say,
)
from stages.spec import RUN_STAGES, STAGES, StageName

if TYPE_CHECKING:
    from pipeline.recipe.schema import Recipe
    from pipeline.rounds.chain import Round
    from pipeline.rounds.examine import Examined
    from pipeline.store.store import Store

PromptsOption = Annotated[
    str, typer.Option("--prompts", metavar="FILE", help="A file of prompts; or train, held-out: those of the policy's recipe.")
]


def sample_command(
    ref: RefArgument,
    prompts: PromptsOption = "train",
    answers: Annotated[int | None, typer.Option("--k", min=2, max=9, help="Answers to each prompt, over all policies.")] = None,
    number: Annotated[int | None, typer.Option("--number", "-n", min=1, help="Prompts that are answered, drawn by the seed.")] = None,
    others: Annotated[list[str], typer.Option("--with", metavar="REF", help="Another policy that answers in turn; repeatable.")] = [],
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.01, help="Of the sampling; default: as in training.")] = None,
    choose: Annotated[
        Literal["random", "deltaucb"] | None,
        typer.Option(
            "--choose", help="deltaucb: show the answers that a reward model tells apart most, or knows least of; default: random."
        ),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option("--candidates", min=3, max=64, help="With deltaucb: answers to each prompt to choose from; default 8.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option("--reward-model", metavar="REF", help="With deltaucb: who chooses; default: whom the policy learnt from.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Default: the one that the policy was made with.")] = None,
    force: ForceOption = False,
    wait: WaitOption = True,
    private: PrivateOption = False,
    overrides: SetOption = [],
    store: StoreOption = None,
) -> None:
    """Have a policy answer prompts for people to rank: an artifact of answers, reused where it is there. Then: rlhf rank answers.

    Example: rlhf sample ppo --prompts held-out --k 4 --with sft@v1
    """
    from pipeline.chat import require_policy
    from pipeline.pasted import pasted
    from pipeline.recipe.load import find_recipe, load_recipe
    from pipeline.report.progress import ProgressView
    from pipeline.report.tables import print_summary
    from pipeline.rounds.sampling import load_own_recipe, override_prompts, sample

    opened = open_store_to_write(store)
    policies = [opened.get(name) for name in (ref, *others)]
    if again := next((policy.ref for place, policy in enumerate(policies) if policy.ref in [each.ref for each in policies[:place]]), None):
        raise typer.BadParameter(f"--with: found {again} twice, needed other policies; leave one away")
    for policy in policies:
        require_policy(policy)
    given = {
        "--k": ("answers", answers),
        "--number": ("prompts", number),
        "--temperature": ("temperature", temperature),
        "--choose": ("choose", choose),
        "--candidates": ("candidates", candidates),
        "--reward-model": ("reward_model", reward_model),
    }
    options = [("--prompts", override) for override in override_prompts(prompts)]
    options += [(option, f"sample.{key}={json.dumps(value)}") for option, (key, value) in given.items() if value is not None]
    overrides = [*overrides, *(["private=true"] if private else [])]
    if recipe:
        resolved = load_recipe(find_recipe(recipe), overrides, ["sample"], to_run=True, options=options)
    else:
        resolved = load_own_recipe(policies[0], overrides, options)
    terminal = make_console()
    outcome = sample(resolved, open_store_to_write(opened.root, resolved), policies, ProgressView(terminal), force=force, wait=wait)
    print_summary(terminal, [outcome])
    say(terminal, f"have people rank them: {pasted(f'rlhf rank {outcome.artifact.ref}')}")


def round_command(
    recipe: RecipeArgument = "demo",
    wait: WaitOption = True,
    private: PrivateOption = False,
    overrides: SetOption = [],
    store: StoreOption = None,
    as_json: JsonOption = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write a page of all rounds into reports/ of the store; old reward models are asked anew.")
    ] = False,
) -> None:
    """Go on with the rounds: sample answers, wait for people (exit code 6), publish their rankings, train reward model and policy anew.

    A call does what can be done until people are needed, or the next policy is there. Each step is reused or resumed as stages are.

    Example: rlhf round mine.yaml
    """
    from pipeline.report.progress import ProgressView
    from pipeline.rounds.advance import advance, tell
    from pipeline.rounds.chain import walk
    from pipeline.rounds.examine import Examined, write_rounds_page
    from pipeline.rounds.table import flaws_data, list_rounds, print_arms, print_rounds, rounds_data, tell_flaws
    from stages.spec import EXIT_WAITING

    resolved = open_rounds(recipe, [*overrides, *(["private=true"] if private else [])])
    opened = open_store_to_write(store, resolved)
    terminal = make_console(err=as_json)
    found = advance(resolved, opened, ProgressView(terminal), lambda line: say(terminal, line), wait=wait)
    rounds, page = list(walk(resolved, opened)), None
    examined = _examine(resolved, opened, rounds) if report else Examined(list_rounds(rounds))
    page = write_rounds_page(resolved, opened, examined) if report else None
    if as_json:
        told: dict[str, object] = {"round": found.number, "step": found.step, "ranked": found.ranked, "sets": found.sets}
        told |= {"answers": found.answers.ref if found.answers else None, "lack": found.lack}
        told |= {"report": str(page), "flaws": flaws_data(examined.flaws), "missing": examined.missing} if report else {}
        print_json(told | {"rounds": rounds_data(examined.rows)})
    else:
        terminal.print()
        print_rounds(terminal, examined.rows)
        print_arms(terminal, examined.rows)
        for line in tell_flaws(examined.flaws, examined.models):
            say(terminal, line)
    if page is not None:
        say(terminal, f"report: {page}")
    say(terminal, tell(found, "rlhf round"))
    if found.step == "rank":
        raise typer.Exit(EXIT_WAITING)


def _examine(recipe: "Recipe", store: "Store", rounds: "list[Round]") -> "Examined":
    from pipeline.report.progress import CountView
    from pipeline.rounds.examine import examine

    with CountView(make_console(err=True), "reward models: scores of answers with a flaw") as view:
        return examine(recipe, store, rounds, view.told)


def open_rounds(name: str, overrides: list[str]) -> "Recipe":
    """Load a recipe for its rounds; without comparisons they begin with the SFT model."""
    from pipeline.rounds.chain import lacks_chooser
    from stages.sample_settings import CHOOSING, SampleSettings

    begun: tuple[StageName, ...] = tuple(stage for stage in RUN_STAGES if "comparisons" not in STAGES[stage].data)
    looked = open_recipe(name, overrides, (), to_run=False)
    stages: tuple[StageName, ...] = (*(begun if looked.data.comparisons is None else RUN_STAGES), "sample")
    if lacks_chooser(looked):  # the first round draws at random, and reads no comparisons
        unread = [f"sample.{key}={json.dumps(SampleSettings.model_fields[key].default)}" for key in CHOOSING]
        open_recipe(name, [*overrides, "sample.choose=random", *unread], stages)
        return looked
    return open_recipe(name, overrides, stages)
