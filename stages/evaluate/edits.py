"""Copies of good answers with one flaw each, for reward models of several rounds to be asked of. No stage of a recipe; it leaves nothing.

    python -P -m stages.evaluate.edits < REQUESTS

first line    {"probes": module:function | null, "directory": where its module may lie | null}, as `evaluate.probes`
then          {"prompt": text, "answer": text}, one for each answer
it writes     {"edits": {name: [copy, what it does]}} for each, once all are read
              {"error": text, "exit_code": number} where it cannot go on
"""

import sys
from pathlib import Path

from stages.evaluate.probes import ProbeError, ask_function, edit_answer, find_names
from stages.process.dialogue import Lines, Say, hold_dialogue
from stages.process.errors import StageError
from stages.responses.judge import load_function
from stages.spec import EXIT_USAGE


def edit(lines: Lines, say: Say) -> None:
    """Edit the answers, by what is for every task and by the user's function."""
    given = next(lines)
    name, directory = given["probes"], given["directory"]
    function = load_function("evaluate.probes", name, Path(directory) if directory else None) if name else None
    asked = [(line["prompt"], line["answer"]) for line in lines]
    names = sorted({found for _, answer in asked for found in find_names(answer)})
    for prompt, answer in asked:
        edits = edit_answer(prompt, answer, names)
        try:
            edits |= ask_function(function, name, prompt, answer) if function else {}
        except ProbeError as error:
            raise StageError(str(error), EXIT_USAGE) from error
        say(edits={key: [found.text, found.description] for key, found in edits.items()})


if __name__ == "__main__":
    sys.exit(hold_dialogue(edit))
