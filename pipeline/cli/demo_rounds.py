"""`make rounds`: the demo goes round by itself. A simulated annotator ranks on the page of `rlhf rank`, by HTTP, as a person would.

SFT -> its answers are ranked -> first reward model and policy -> its answers are ranked -> the second -> ... -> a table

It begins without a single ranking. The annotator ranks by the demo's rule plus noise (`data.demo.annotator`), and the rule judges held-out
answers: so the table shows what rankings bring where the people who rank agree with what is wanted.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

from data.demo.annotator import rank_answers
from pipeline.cli import run
from pipeline.cli.options import make_console, open_store_to_write, say
from pipeline.cli.rounds import open_rounds
from pipeline.errors import StoreError
from pipeline.report.progress import CountView, ProgressView
from pipeline.rounds.advance import advance
from pipeline.rounds.chain import Round, walk
from pipeline.rounds.examine import examine, write_rounds_page
from pipeline.rounds.simulate import Visitor
from pipeline.rounds.table import print_arms, print_flaws, print_rounds, tell_flaws, tell_gain
from pipeline.store.store import Store
from pipeline.text import format_duration
from stages.spec import EXIT_FAILED, EXIT_USAGE

# What the rounds set beside the demo's recipe: no ranking to begin with, and a reward model that learns from a thousand lists, not eight.
SETTINGS = (
    "base_model=demo@{data}",
    "data.demonstrations=demo@{data}",
    "data.comparisons=null",
    "data.prompts.train.path=demo@{data}:comparisons.train",
    "data.prompts.eval.path=demo@{data}:prompts.eval",
    "evaluate=null",
    "sft.eval_samples=200",
    "rm.epochs=2",
    "rm.warmup_steps=20",
    "ppo.iterations=40",
    "ppo.keep_every=null",
    "sample.answers=4",
    "sample.prompts={rankings}",
    "sample.batch_size=256",
)
_FLAWS = "data.demo.probes:edit"


def main(arguments: Sequence[str] | None = None) -> None:
    """Go round, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.cli.demo_rounds", description="The demo's rounds, with a simulated annotator."
    )
    parser.add_argument("--rounds", type=int, default=3, help="how many")
    parser.add_argument("--rankings", type=int, default=1000, help="rankings of each")
    parser.add_argument("--seed", type=int, default=11, help="of training and of the annotator's noise")
    parser.add_argument("--data", type=int, default=7, help="of the demo's data")
    parser.add_argument("--store", type=Path, default=None, help="default: ./store")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe; repeatable")
    given = parser.parse_args(arguments)
    recipe = open_rounds(
        "demo", [f"seed={given.seed}", *(line.format(data=given.data, rankings=given.rankings) for line in SETTINGS), *given.set]
    )
    store, console = open_store_to_write(given.store, recipe), make_console()
    started_s = time.monotonic()
    while not _has_gone(list(walk(recipe, store))[-1], given.rounds):
        found = advance(recipe, store, ProgressView(console), partial(say, console))
        if found.step == "rank":
            ranked = _rank(found, store, given.seed)
            say(console, f"round {found.number}: a simulated annotator ranked {ranked:,} times on the page")
    with CountView(console, "reward models: scores of answers with a flaw") as view:
        examined = examine(recipe, store, list(walk(recipe, store)), view.told, _FLAWS)
    rows, flaws, models = examined.rows, examined.flaws, examined.models
    console.print()
    print_rounds(console, rows)
    print_arms(console, rows)
    console.print()
    print_flaws(console, flaws, models)
    for line in (*tell_flaws(flaws, models), tell_gain(rows).sentence):
        say(console, line)
    say(console, f"report: {write_rounds_page(recipe, store, examined)}")
    say(console, f"{len(rows) - 1} rounds in {format_duration(time.monotonic() - started_s)}")


def _has_gone(newest: Round, rounds: int) -> bool:
    """Whether the policy is there that learnt from so many rounds: the one after them is where the next answers come from."""
    return newest.number > rounds and newest.step != "train"


def _rank(found: Round, store: Store, seed: int) -> int:
    """Serve the page as people have it, and rank on it until nothing is left; returns how often."""
    assert found.answers is not None
    command = [sys.executable, "-u", "-P", "-m", "pipeline.cli", "rank", found.answers.ref, "-a", "simulated", "--store", str(store.root)]
    rng = Random(f"{seed} {found.number}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
        try:
            assert page.stdout is not None
            links = (line.rsplit(" ", 1)[1].strip() for line in page.stdout if line.startswith("simulated: "))
            if (link := next(links, None)) is None:  # it has said why
                raise StoreError(f"`rlhf rank {found.answers.ref}` ended before it showed its page; run that by itself", EXIT_FAILED)
            visitor = Visitor(link)
            count = 0
            with CountView(make_console(), f"round {found.number}: ranking") as view:
                while visitor.rank_next(lambda prompt, answers: rank_answers(prompt, answers, rng)):
                    count += 1
                    view.told(min(count, found.sets), found.sets)
            visitor.close()
        finally:
            page.terminate()
    if not count:  # and the round waits all the same: it would for ever
        lack = found.lack or "nothing is left to rank"
        raise StoreError(f"round {found.number}: {lack}; give more --rankings", EXIT_USAGE)
    return count


if __name__ == "__main__":
    run(main)
