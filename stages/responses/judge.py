"""The user's judge: a function that says what a response is worth; never seen in training. Torch-free.

    python -P -m stages.responses.judge MODULE:FUNCTION DIRECTORY < [[prompt, response], ...]

asks it once for each, and prints what is wrong with it, if anything is: the pipeline tries it so before the first stage trains.
"""

import importlib
import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stages.process.errors import StageError
from stages.spec import ANSWERED, EXIT_OK, EXIT_USAGE

_OUR_PACKAGES = ("data", "stages", "pipeline")
_NEEDED = 'needed finite figures with `score` among them, such as {"score": 0.7}, or one number'


class JudgeError(Exception):
    """A judge raised, or answered something else than figures; the message names it."""


class Judge:
    """A function of (prompt, response, finished) that returns named figures, `score` among them, or one number, which is the score."""

    def __init__(self, name: str, function: Any) -> None:
        self.name = name
        self._function = function
        self._figures: list[str] | None = None
        self.has_failed = False

    def ask(self, prompt: str, response: str, finished: bool) -> dict[str, float]:
        """Ask for the figures of one response.

        Raises:
            JudgeError: It raised, or what it returned are no figures, or others than before.
        """
        try:
            return self._ask(prompt, response, finished)
        except JudgeError:
            self.has_failed = True
            raise

    def _ask(self, prompt: str, response: str, finished: bool) -> dict[str, float]:
        try:
            answer = self._function(prompt, response, finished)
            figures = _read_figures(answer)
        except (Exception, SystemExit) as error:
            raise JudgeError(f"judge: {self.name} raised {describe_raised(error)}; mend it, or leave judge out of the recipe") from error
        if figures is None or "score" not in figures:
            raise JudgeError(f"judge: {self.name} returned {answer!r:.80}, {_NEEDED}; mend it, or leave judge out of the recipe")
        if self._figures is not None and list(figures) != self._figures:
            found, before = ", ".join(figures), ", ".join(self._figures)
            raise JudgeError(f"judge: {self.name} returned {found}, needed {before} as before; give every response the same figures")
        self._figures = list(figures)
        return figures


def load_judge(name: str | None, directory: Path | None) -> Judge | None:
    """Import a judge; None: there is none. Otherwise as `load_function`."""
    return None if name is None else Judge(name, load_function("judge", name, directory))


def load_function(key: str, name: str, directory: Path | None) -> Callable[..., Any]:
    """Import `module:function` of the user's.

    Args:
        key: Of the recipe, which names it.
        name: From where.
        directory: Where its module may lie too, after all that is installed or on PYTHONPATH.

    Raises:
        StageError: It is not there, or its module cannot be imported (exit 2).
    """
    if directory is not None and str(directory) not in sys.path:
        sys.path.append(str(directory))
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if (package := module_name.partition(".")[0]) in _OUR_PACKAGES and f"{module_name}.".startswith(f"{error.name}."):
            taken = f"found no module {module_name} in {package}, which is a package of rlhf; needed another name for a package of your own"
            raise StageError(f"{key}: {name}: {taken}; rename it", EXIT_USAGE) from error
        if error.name not in (module_name, module_name.partition(".")[0]):
            raise StageError(f"{key}: {name}: it needs {error.name}, which is not installed; install it", EXIT_USAGE) from error
        places = f"installed, on PYTHONPATH{f' or in {directory}' if directory else ''}"
        raise StageError(f"{key}: {name}: found no module {error.name} {places}; put it there, or mend the name", EXIT_USAGE) from error
    except (Exception, SystemExit) as error:
        raise StageError(f"{key}: {name}: its module raised {describe_raised(error)}; mend it", EXIT_USAGE) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = f"found no function {function_name} in {getattr(module, '__file__', None) or module_name}"
        raise StageError(f"{key}: {name}: {found}; give module:function, in a module that is not called as an installed one", EXIT_USAGE)
    return function


def _read_figures(answer: Any) -> dict[str, float] | None:
    """Read what a judge returned; None where it is no figures."""
    named: dict[Any, Any] = dict(answer) if isinstance(answer, Mapping) else {"score": answer}
    try:
        figures = {key: float(value) for key, value in named.items() if not isinstance(value, str | bytes)}
    except (TypeError, ValueError):
        return None
    whole = len(figures) == len(named) and all(isinstance(key, str) for key in figures)
    return figures if whole and all(map(math.isfinite, figures.values())) else None


def describe_raised(error: BaseException) -> str:
    """Say on one line what was raised, and where in the user's files."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {text}"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"


def main() -> int:
    """Try a judge on samples; what is wrong with it is the last line of standard error."""
    name, directory = sys.argv[1:]
    try:
        judge = load_judge(name, Path(directory) if directory else None)
        assert judge is not None
        for prompt, response in json.load(sys.stdin):
            judge.ask(prompt, response, True)
    except (StageError, JudgeError) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    print(f"\n{ANSWERED}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
