"""The commands of the loop with people: sample answers, and the rounds of which that is the first step."""

from typing import Annotated

import typer

from pipeline.cli.options import (
    ForceOption,
    PrivateOption,
    RefArgument,
    SetOption,
    StoreOption,
    WaitOption,
    make_console,
    open_store_to_write,
    say,
)

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
    given = {"sample.answers": answers, "sample.prompts": number, "sample.temperature": temperature}
    settings = [f"{key}={value}" for key, value in given.items() if value is not None]
    settings = [*override_prompts(prompts), *settings, *overrides, *(["private=true"] if private else [])]
    resolved = load_recipe(find_recipe(recipe), settings, ["sample"], to_run=True) if recipe else load_own_recipe(policies[0], settings)
    terminal = make_console()
    outcome = sample(resolved, open_store_to_write(opened.root, resolved), policies, ProgressView(terminal), force=force, wait=wait)
    print_summary(terminal, [outcome])
    say(terminal, f"have people rank them: rlhf rank {outcome.artifact.ref}")
