"""Room on the disk for what an evaluation writes, asked for before the first answer: as if each were as long as it may be."""

from collections.abc import Sequence

from data.tokens import EncodedPromptRecord
from stages.evaluate.subjects import Subject
from stages.process.context import StageContext
from stages.process.distributed import decide_in_main
from stages.process.room import refuse_full

_TOKEN = 8 + 4  # of an answer that is kept: its id, its log-probability
_ANSWER = 200  # its length, its end, its KL, its score, what a judge says of it
_PART = 4096  # of a file of them, at least
_TOKEN_TEXT = 8  # of a row of samples.jsonl: words are four or five characters, other scripts three bytes each
_ROW = 800  # figures and their names
_FIGURES = 1_000_000  # evaluation.json, log, events, result


def require_room_for_answers(
    context: StageContext, subjects: Sequence[Subject], prompts: Sequence[EncodedPromptRecord], longest: int
) -> None:
    """Refuse to begin where the disk cannot hold the answers and the output; every rank calls it.

    Args:
        context: Of the stage.
        subjects: Who answers.
        prompts: What they are asked.
        longest: Tokens of an answer at most.

    Raises:
        StageError: It cannot; exit code 5.
    """
    samples = sum(subject.samples for subject in subjects)
    asked = sum(len(prompt.prompt[-1].content.encode()) for prompt in prompts)
    answers = samples * len(prompts) * (longest * _TOKEN + _ANSWER) + 4 * len(subjects) * _PART
    output = samples * (asked + len(prompts) * (longest * _TOKEN_TEXT + _ROW)) + _FIGURES
    directory, output_dir = context.spec.checkpoint_dir, context.spec.output_dir
    context.planned_bytes = {directory: answers, output_dir: output}

    def check() -> None:
        there = sum(path.stat().st_size for path in directory.rglob("*.npz"))  # of a run that goes on
        if directory.stat().st_dev == output_dir.stat().st_dev:
            needs = {directory: max(answers - there, 0) + output}
        else:
            needs = {directory: max(answers - there, 0), output_dir: output}
        refuse_full(needs, f"answers of at most {answers:,} and an output of at most {output:,}")

    decide_in_main(context, check)
