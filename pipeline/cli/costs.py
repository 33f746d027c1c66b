"""`rlhf plan --cost`: what a recipe needs, printed and kept to be compared with what it takes."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from pipeline.cli.options import make_console, open_store_to_write, print_json, require_stages, say
from pipeline.errors import ConfigError, ResourceError
from pipeline.estimates.estimate import Estimate, make_estimate
from pipeline.estimates.fits import find_fits
from pipeline.estimates.kept import keep_estimate
from pipeline.estimates.machine import choose_machine
from pipeline.estimates.past import calibrate_estimate, correct_alike
from pipeline.estimates.scale import GPU_COUNTS, PER_MACHINE, find_refused, holds_for_more, scale_up, tell_refused
from pipeline.estimates.traces import parse_records
from pipeline.pasted import keep_recipe
from pipeline.plan import Selection
from pipeline.recipe.load import find_recipe, load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.report.bar import Waiting
from pipeline.report.costs import estimate_data, print_estimate, print_fits, print_scale, scale_data
from stages.spec import StageName, with_ancestors


def print_cost(
    recipe: str,
    overrides: list[str],
    selection: Selection,
    named: Iterable[str | None],
    store: Path | None,
    gpu: str | None,
    records: list[str],
    *,
    explain: bool,
    scale: bool,
    as_json: bool,
) -> None:
    """Print what the stages of a recipe need on a machine.

    Args:
        recipe: As it was named.
        overrides: Of `--set`.
        selection: Which stages.
        named: Those of them that were named.
        store: That was named.
        gpu: Of the table; None: this machine.
        records: Of `--records`.
        explain: Each step of the arithmetic too.
        scale: On more and more GPUs too.
        as_json: As plain data.
    """

    def read(change: dict[str, str]) -> Recipe:
        more = [f"{key}={value}" for key, value in change.items()]
        return load_recipe(find_recipe(recipe), [*overrides, *more], with_ancestors(selection.run), has_files=False)

    keep_recipe(recipe, overrides)
    resolved = read({})
    require_stages(resolved, *named)
    stages: list[StageName] = [stage for stage in selection.run if stage in resolved.stages]
    waiting, opened = make_console(err=True), open_store_to_write(store, resolved)
    machine = choose_machine(resolved.hardware, gpu)
    if scale and machine.gpu is None:
        raise ConfigError(["--scale: found this machine's CPU, needed a GPU of the table; give --gpu h100"])
    # Not read anew: a recipe that its batches keep from eight GPUs is no fault of the user's, and some numbers of GPUs may do.
    wide = resolved.model_copy(update={"hardware": resolved.hardware.model_copy(update={"processes": PER_MACHINE, "nodes": 1})})
    refused = find_refused(resolved, stages) if scale else {}
    with Waiting(waiting) as view:
        counts = parse_records(records)
        made = make_estimate(resolved, stages, opened.root, machine, records=counts, told=view.doing)
        estimate = calibrate_estimate(made, resolved, opened)
        fits = {
            stage.stage: find_fits(stage, read, resolved, opened.root, machine, counts, view.doing)
            for stage in estimate.stages
            if stage.verdict.word == "does not fit"
        }
        scaled = []
        if scale:
            view.doing("scaling up")
            alike = holds_for_more(estimate.processes) or len(refused) == len(GPU_COUNTS)
            traced = estimate if alike else make_estimate(wide, stages, opened.root, machine, records=counts, told=view.doing)
            scaled = scale_up(wide, correct_alike(traced, estimate))
    _keep(opened.root, resolved, estimate, waiting)
    left_out = list(tell_refused(refused))
    if as_json:
        print_json(estimate_data(estimate, fits) | ({"scale": scale_data(scaled), "scale_left_out": left_out} if scale else {}))
        return
    print_estimate(make_console(), estimate, explain=explain)
    for stage, found in fits.items():
        print_fits(make_console(), stage, found, estimate)
    if scale:
        print_scale(make_console(), scaled, estimate, left_out)


def _keep(root: Path, recipe: Recipe, estimate: Estimate, waiting: Console) -> None:
    """Keep what was said where it can be; a store that is made for it is told, as its path may be mistyped."""
    was_there = root.exists()
    try:
        keep_estimate(root, recipe, estimate)
    except ResourceError as error:
        say(waiting, f"not kept to be compared with what it takes: {error}")
    else:
        if not was_there:
            say(waiting, f"made {root}, where this is kept to be compared with what it takes")
