"""What `rlhf plan --cost` says of DeepSpeed-Chat's runs, whose times were published: rows of the table in pipeline/cost/README.md.

    python -P -m tests.bench.published        about four minutes; nothing is trained

Recipes and sources stand in tests/pipeline/estimates/published.py. What is said does not depend on the machine that says it.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.pipeline.estimates.published import RM_STATIC, STEP_1, STEP_2, make_plan, plan_on_many, plan_on_one

HOUR, DAY = 1.0, 24.0
GPUS = (8, 64)
# Actor -> hours on 8 and on 64 A100-80 of 80 GB; the critic is OPT-350M.
STEP_3_HOURS = {
    "opt-1.3b": (1.4, 31 / 60),
    "opt-6.7b": (4.1, 51 / 60),
    "opt-13b": (9 * HOUR, 1.25),
    "opt-30b": (18 * HOUR, 4 * HOUR),
    "opt-66b": (2.1 * DAY, 7.5),
}


def main() -> None:
    """Print each run as soon as it is planned."""
    print("| run | published | said | said / published |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        for run, published, said in list_runs(Path(directory)):
            print(f"| {run} | {published:.3g} h | {said:.3g} h | {said / published:.2f} |", flush=True)


def list_runs(place: Path) -> Iterator[tuple[str, float, float]]:
    """Plan each run: its name, hours that were published, hours that are said."""
    first, second = {"demonstrations": round(0.6 * RM_STATIC)}, {"comparisons": round(0.2 * RM_STATIC)}
    yield "step 1, opt-1.3b on 1 x A6000", 2900 / 3600, plan_training(place, "opt-1.3b", "sft", STEP_1, first)
    yield "step 2, opt-350m on 1 x A6000", 670 / 3600, plan_training(place, "opt-350m", "rm", STEP_2, second)
    yield "step 3, opt-1.3b on 1 x A6000", 1.2, plan_on_one(place)
    for actor, published in STEP_3_HOURS.items():
        for gpus, hours, said in zip(GPUS, published, plan_on_many(place, actor, GPUS), strict=True):
            yield f"step 3, {actor} on {gpus} x A100-80", hours, said


def plan_training(place: Path, model: str, stage: str, changes: tuple[str, ...], records: dict[str, int]) -> float:
    """Hours of training alone, on one A6000."""
    (made,) = make_plan(place, model, "a6000", stage, changes, **records)[1].stages
    return next(part.seconds for part in made.parts if part.name == "train") / 3600


if __name__ == "__main__":
    main()
