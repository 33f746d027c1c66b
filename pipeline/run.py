"""For each stage: reuse, or launch and publish."""

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.schema import RecordKind
from pipeline.contract import make_fields, make_spec, read_result
from pipeline.errors import StoppedAfterStage, StoreError
from pipeline.estimates.room import warn_of_room
from pipeline.foreseen import foresee, require_meeting, require_server, warn_of_threads
from pipeline.inputs.prepare import Inputs, prepare
from pipeline.judge import doubt_judge, try_judge
from pipeline.launch.commands import Command, commands_by_hand, stage_commands
from pipeline.launch.events import Event
from pipeline.launch.failure import StageFailed, last_lines
from pipeline.launch.launch import launch
from pipeline.launch.signals import keep_signals
from pipeline.plan import Decision, Selection, decide, missing_artifact
from pipeline.privacy.forget import withdraw_forgotten
from pipeline.privacy.samples import tame_samples
from pipeline.recipe.schema import Recipe
from pipeline.runs.directory import HeldRun, forget_checkpoints, leave_evidence, open_run_directory, remove_checkpoints
from pipeline.runs.record import Attempt, record_attempt
from pipeline.runs.unfinished import describe_next
from pipeline.store.artifact import Artifact
from pipeline.store.disk import writing
from pipeline.store.manifest import LOG_FILE
from pipeline.store.parts import hold_artifacts, require_places
from pipeline.store.store import Store
from pipeline.tokens import Counts, make_tokens
from pipeline.tracking import find_missing_trackers, tracked
from stages.spec import EXIT_FAILED, STAGES, StageName


class View(Protocol):
    """Who watches a run."""

    def note(self, message: str) -> None: ...
    def reading(self, kind: str, count: int) -> None: ...
    def inputs_read(self, inputs: Inputs) -> None: ...
    def tokens_event(self, event: Event) -> None: ...
    def tokens_made(self, warnings: dict[RecordKind, list[str]]) -> None: ...
    def stage_reused(self, decision: Decision) -> None: ...
    def stage_waits(self, stage: StageName, holder: str, waited_s: float, events: Sequence[Event]) -> None: ...
    def stage_started(self, decision: Decision, run_dir: Path) -> None: ...
    def stage_event(self, event: Event) -> None: ...
    def stage_published(self, outcome: "Outcome") -> None: ...
    def stage_failed(self, stage: StageName) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """One stage of a finished run."""

    stage: StageName
    artifact: Artifact
    reused: bool
    duration_s: float


def run(recipe: Recipe, store: Store, selection: Selection, view: View, *, wait: bool = True) -> list[Outcome]:
    """Bring all selected stages up to date.

    Args:
        recipe: Resolved recipe.
        store: Where artifacts are found and published; its parts are its own (`pipeline.store.parts.require_own_parts`).
        selection: Stages that may run; earlier ones must be there.
        view: Is told what happens.
        wait: For another process that runs a stage with the same inputs, to reuse what it makes; else refuse.

    Returns:
        One outcome per selected stage.

    Raises:
        DataError, StoreError, StageFailed, StoppedAfterStage: With their exit codes.
    """
    store.reap()
    withdraw_forgotten(store)
    inputs = prepare(recipe, store.root, selection.needed(recipe), told=view.reading)
    view.inputs_read(inputs)
    counts: Counts | None = None
    artifacts: dict[str, Artifact] = {}
    outcomes: list[Outcome] = []
    for stage in selection.needed(recipe):
        selected = stage in selection.run
        decision = decide(stage, recipe, inputs, artifacts, store, force=selection.force and selected)
        if decision.artifact is None and not selected:
            raise missing_artifact(decision, selection)
        if decision.artifact is not None:
            forget_checkpoints(store.root, decision.run_name)
            outcome = Outcome(stage, decision.artifact, True, 0.0)
            view.stage_reused(decision)
        else:
            if counts is None:  # before the first of the stages trains: all that they will train on, their judge, and where they go
                require_places(store.root, [STAGES[stage].kind for stage in selection.run if stage in recipe.stages])
                require_server(recipe, [stage for stage in selection.run if stage in recipe.stages and stage not in artifacts])
                require_meeting(recipe)
                for message in [*warn_of_threads(recipe), *find_missing_trackers(recipe)]:
                    view.note(message)
                try_judge(recipe, inputs, [each for each in selection.run if each in recipe.stages and each not in artifacts])
                if doubt := doubt_judge(recipe, inputs, artifacts.get("rm")):
                    view.note(doubt)
                counts = make_tokens(recipe, inputs, store.root, view.tokens_event)
                view.tokens_made(foresee(recipe, counts))
                for message in warn_of_room(recipe, [stage for stage in selection.run if stage in recipe.stages], store.root):
                    view.note(message)
            outcome = run_stage(recipe, inputs, decision, store, view, fresh=selection.force, wait=wait)
        artifacts[stage] = outcome.artifact
        if selected:
            outcomes.append(outcome)
    return outcomes


def run_stage(
    recipe: Recipe, inputs: Inputs, decision: Decision, store: Store, view: View, *, fresh: bool = False, wait: bool = True
) -> Outcome:
    """Run one stage, or go on with its unfinished run, and publish what it leaves; or reuse what another process made of it meanwhile."""
    stage = decision.stage

    def told(holder: str, waited_s: float, events: list[Event]) -> None:
        view.stage_waits(stage, holder, waited_s, events)

    with ExitStack() as stack:
        try:
            run_directory = open_run_directory(store.root, decision.run_name, private=recipe.private, told=told if wait else None)
            held = stack.enter_context(run_directory)
        except BaseException:
            view.stage_failed(stage)
            raise
        if not fresh:  # again, as another process may have published it, or left other checkpoints, since it was decided
            decision = decide(stage, recipe, inputs, decision.parents, store)
        if decision.artifact is not None:
            remove_checkpoints(held.directory)
            view.stage_reused(decision)
            return Outcome(stage, decision.artifact, True, 0.0)
        if held.failed is not None:  # the same again would fail in the same way, once for each that waits
            raise _failed_elsewhere(stage, held.failed, held.directory.path / LOG_FILE)
        with _telling_of_removal(decision, store):
            for parent in decision.parents.values():
                store.require_verified(parent.ref)
        return _make(recipe, inputs, decision, store, view, held, fresh=fresh)


@contextmanager
def _telling_of_removal(decision: Decision, store: Store) -> Generator[None]:
    """Say what to do where a parent was there when the run began, and somebody removed it meanwhile: it need not be found out."""
    try:
        yield
    except StoreError as error:
        gone = [parent.ref for parent in decision.parents.values() if parent.ref not in store.refs()]
        if not gone:
            raise
        begun = f"{' and '.join(gone)} {'were' if len(gone) > 1 else 'was'} there when this began, and removed meanwhile"
        again = "start the same command again, which makes anew what is needed"
        raise StoreError(f"{decision.stage}: {begun}; needed still; {again} ({error.message})", error.exit_code) from error


def _failed_elsewhere(stage: StageName, attempt: Attempt, log_path: Path) -> StageFailed:
    who = f"process {attempt.process} of {attempt.user} on {attempt.host}, for which this waited, failed"
    message = f"{stage}: {who}: {attempt.reason.removeprefix(f'{stage}: ')}; mend that, or run again to try it once more"
    return StageFailed(message, attempt.exit_code or EXIT_FAILED, last_lines(log_path), log_path)


def _make(recipe: Recipe, inputs: Inputs, decision: Decision, store: Store, view: View, held: HeldRun, *, fresh: bool) -> Outcome:
    """Launch a stage in the run directory that is held, and publish what it leaves."""
    run_dir = held.directory.path
    with record_attempt(held.directory) as record_published, store.staging(STAGES[decision.stage].kind) as staging:
        if fresh:
            remove_checkpoints(held.directory)
        if not (run_dir / "checkpoints").exists():  # a new run, not an unfinished one
            for name in (LOG_FILE, "events.jsonl", *(f"{tracker}.json" for tracker in recipe.tracking)):
                (run_dir / name).unlink(missing_ok=True)
        spec = make_spec(recipe, inputs, decision, staging.path, run_dir, store.root)
        with hold_artifacts(store.root), writing(run_dir):
            (run_dir / "spec.json").write_text(spec.model_dump_json(indent=2), encoding="utf-8")
            (run_dir / "checkpoints").mkdir(exist_ok=True)  # from now on nobody removes what the spec names
            with _telling_of_removal(decision, store):
                store.require_there(decision.parents.values())
        view.stage_started(decision, run_dir)
        started_s = time.monotonic()
        try:

            def make_commands(marker: str) -> list[Command]:
                return stage_commands(decision.stage, run_dir / "spec.json", recipe.hardware, marker)

            alone = recipe.hardware.processes * recipe.hardware.nodes == 1
            heard: list[object] = []

            def hear(event: Event) -> None:
                heard.append(event.get("message"))
                view.stage_event(event)

            def tell_once(message: str) -> None:
                if message not in heard:
                    hear({"event": "note", "message": message})

            with tracked(recipe, spec, decision.config, run_dir, store.root, tell_once):
                received = launch(decision.stage, make_commands, run_dir, hear, offline=inputs.local, alone=alone, held=[held.lock])
            duration_s = time.monotonic() - started_s
            with keep_signals(most=1) as late:  # what the stage took its time for is published first, unless a second one comes
                result = read_result(decision.stage, staging.path, run_dir)
                fields = make_fields(recipe, inputs, decision, result, duration_s, run_dir.name)
                tame_samples(staging.path, recipe.data.samples, recipe.data.redact)
                leave_evidence(recipe, inputs.skipped(decision.stage, recipe), staging.path, run_dir)
                outcome = Outcome(decision.stage, store.publish(staging, fields), False, duration_s)
                withdraw_forgotten(store)  # this one, if it learnt from what was forgotten meanwhile
                record_published(outcome.artifact.ref)
                view.stage_published(outcome)
                # Only now: a run that is killed before this line finds its checkpoints again.
                remove_checkpoints(held.directory)
        except BaseException as error:
            view.stage_failed(decision.stage)
            if isinstance(error, StageFailed) and error.interrupted:
                error.next_run = describe_next(held.directory, decision.stage, fresh=fresh)
            raise
    if received is not None or late:
        raise StoppedAfterStage(late[0] if received is None else received)
    return outcome


def prepare_by_hand(recipe: Recipe, store: Store, stage: StageName) -> tuple[Path, list[tuple[str, list[str]]]]:
    """Write the spec of one stage's run, and say which commands start it; what they leave lies in the run's directory, unpublished.

    Returns:
        (run directory, [(where, command)]).

    Raises:
        StoreError: a stage before it has no artifact.
    """
    selection = Selection((stage,))
    inputs = prepare(recipe, store.root, selection.needed(recipe))
    make_tokens(recipe, inputs, store.root, lambda event: None)
    artifacts: dict[str, Artifact] = {}
    for earlier in selection.needed(recipe):
        decision = decide(earlier, recipe, inputs, artifacts, store, force=earlier == stage)
        if earlier == stage:
            with open_run_directory(store.root, decision.run_name, private=recipe.private) as held, writing(held.directory.path):
                run_dir = held.directory.path
                spec = make_spec(recipe, inputs, decision, run_dir / "output", run_dir, store.root)
                (run_dir / "spec.json").write_text(spec.model_dump_json(indent=2), encoding="utf-8")
                return run_dir, commands_by_hand(stage, run_dir / "spec.json", recipe.hardware)
        if decision.artifact is None:
            raise missing_artifact(decision, selection)
        artifacts[earlier] = decision.artifact
    raise AssertionError("the stage itself is among those that it needs")
