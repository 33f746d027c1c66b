"""The pipeline's side of the contract with a stage (stages.spec).

Decision -> StageSpec, what the stage is given; StageResult, what it left -> ManifestFields, what the manifest says
"""

from pathlib import Path

from pydantic import ValidationError

from data.secrets import redact_values
from pipeline.inputs.judge_model import named_judge
from pipeline.inputs.prepare import Inputs
from pipeline.launch.failure import StageFailed
from pipeline.plan import Decision
from pipeline.recipe.schema import Recipe
from pipeline.store.compare import flatten
from pipeline.store.manifest import LOG_FILE, ManifestFields, Parent
from pipeline.store.parts import REPLIES_DIR, TOKENS_DIR
from pipeline.store.provenance import code_state, package_versions
from pipeline.text import clean
from stages.result import StageResult
from stages.spec import EXIT_FAILED, MODEL_DIR, RESULT_FILE, REWARD_MODEL, STAGES, StageName, StageSpec, asks_judge, data_inputs


def make_spec(recipe: Recipe, inputs: Inputs, decision: Decision, output_dir: Path, run_dir: Path, root: Path) -> StageSpec:
    """Say what a stage is given.

    Args:
        recipe: Resolved recipe.
        inputs: As `prepare` returns them.
        decision: With the artifacts that it reads.
        output_dir: Where its output goes.
        run_dir: Of its run.
        root: Of the store.
    """
    stage = decision.stage
    models: dict[str, str] = {}
    if STAGES[stage].asked_for:
        roles = {ref: REWARD_MODEL if parent.kind == "rm" else ref for ref, parent in decision.parents.items()}
        models = {roles[ref]: str(parent.opened_path) for ref, parent in decision.parents.items()}
    for role, maker in STAGES[stage].models.items():
        made = decision.parents.get(maker) if maker else None
        models[role] = str(made.opened_path) if made else inputs.base_model
    if stage == "ppo" and (start := decision.parents.get("ppo")):
        models["start"] = str(start.opened_path)
    settings = recipe.settings(stage)
    judge = named_judge(settings)
    if judge is not None and (found := inputs.judge_models.get(stage)):
        models["judge"] = found.path
        settings = settings.model_copy(update={"judge": judge.model_copy(update={"revision": found.revision})})
    return StageSpec(
        stage=stage,
        settings=settings,
        tokens=recipe.tokens,
        hardware=recipe.hardware,
        models=models,
        revision=inputs.revision if inputs.base_model in models.values() else None,
        data={kind: inputs.data[kind] for kind in data_inputs(stage, recipe.settings(stage))},
        eval_fraction=recipe.data.eval_fraction,
        skip_bad=recipe.data.skip_bad,
        redact=tuple(recipe.data.redact),
        forgotten=inputs.forgotten,
        judge=recipe.judge if asks_judge(recipe.settings(stage)) else None,
        judge_directory=Path(recipe.judge_directory) if recipe.judge_directory else None,
        seed=recipe.seed,
        tokens_dir=root / TOKENS_DIR,
        replies_dir=root / REPLIES_DIR,
        fingerprints=inputs.source_fingerprints(),
        weights=inputs.weights if "comparisons" in data_inputs(stage, recipe.settings(stage)) else {},
        output_dir=output_dir,
        checkpoint_dir=run_dir / "checkpoints",
        events_path=run_dir / "events.jsonl",
    )


def read_result(stage: StageName, staging: Path, run_dir: Path) -> StageResult:
    """Read what a stage says of itself, and see that it left what it must.

    Raises:
        StageFailed: It did not.
    """
    path = staging / RESULT_FILE
    try:
        result = StageResult.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        found = f"{stage}: its process ended with exit code 0 before it was done"
        message = f"{found}, as code of yours in it can have it do (os._exit in a judge); mend that, and the same command goes on"
        raise StageFailed(message, EXIT_FAILED, [], run_dir / LOG_FILE) from error
    except (OSError, ValidationError) as error:
        message = f"{stage}: ended with exit code 0 but left no valid {RESULT_FILE}: {clean(str(error).splitlines()[0])}"
        raise StageFailed(message, EXIT_FAILED, [], run_dir / LOG_FILE) from error
    if STAGES[stage].leaves_model and not (staging / MODEL_DIR).is_dir():
        raise StageFailed(f"{stage}: ended with exit code 0 but left no {MODEL_DIR}/", EXIT_FAILED, [], run_dir / LOG_FILE)
    return result


def make_fields(
    recipe: Recipe, inputs: Inputs, decision: Decision, result: StageResult, duration_s: float, run_name: str
) -> ManifestFields:
    """Say what the manifest holds of a stage that is done; published rankings that it read are parents too."""
    rankings = inputs.rankings if "comparisons" in data_inputs(decision.stage, recipe.settings(decision.stage)) else []
    return ManifestFields(
        parents=[Parent(ref=parent.ref, content_id=parent.content_id) for parent in [*decision.parents.values(), *rankings]],
        data=dict(flatten(inputs.fingerprints(decision.stage, recipe))),
        cache_key=decision.key,
        config=redact_values(decision.config),
        seed=recipe.seed,
        code=code_state(),
        packages=package_versions(),
        device=result.device,
        precision=result.precision,
        world_size=result.world_size,
        metrics=redact_values(result.metrics),
        intervals=redact_values(result.intervals),
        facts=redact_values(result.facts.model_dump(mode="json")) if result.facts else {},
        counts=redact_values(result.counts) | inputs.treated(decision.stage, recipe),
        warnings=result.warnings,
        notes=result.notes,
        duration_s=duration_s,
        run_id=run_name,
    )
