"""A chat as people see it: answers as they are written on a terminal; in a pipe a line for each."""

from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.report.tables import print_line
from pipeline.text import clean, count, format_number


class ChatView:
    """Shows answers. Nothing that a model says steers the terminal; its line breaks stay on one, and are blanks in a pipe."""

    def __init__(self, console: Console, names: list[str]) -> None:
        self._console = console
        self._names = names
        self._shown: dict[int, str] = {}

    def begin(self) -> None:
        """Begin with the answers to a message."""
        self._shown = {}

    def told(self, place: int, text: str) -> None:
        """Show what a model says, as it comes."""
        if not self._console.is_terminal:
            return
        if place not in self._shown:
            self._console.print(Text(f"{self._names[place]}: ", style="bold cyan"), end="")
        self._shown[place] = self._shown.get(place, "") + text
        self._console.print(Text(clean_lines(text)), end="", soft_wrap=True)
        self._console.file.flush()

    def answered(self, place: int, answer: dict[str, Any]) -> None:
        """Show the rest of an answer and its score."""
        figures = describe_answer(answer)
        if not self._console.is_terminal:
            print_line(self._console, f"{self._names[place]} ({figures}): {answer['text']}")
            return
        shown = self._shown.get(place)
        if shown is None or not answer["text"].startswith(shown):
            self._console.print()
            shown = ""
            self._console.print(Text(f"{self._names[place]}: ", style="bold cyan"), end="")
        self._console.print(Text(clean_lines(answer["text"][len(shown) :])), soft_wrap=True)
        print_line(self._console, f"  {figures}", "dim")

    def say(self, line: str, style: str = "") -> None:
        """Show a line of our own."""
        print_line(self._console, line, style)


def describe_answer(answer: dict[str, Any]) -> str:
    """Write an answer's figures: score, tokens, whether it ended by itself."""
    score = [] if answer["score"] is None else [f"score {format_number(answer['score'])}"]
    return ", ".join([*score, count(answer["tokens"], "token"), *([] if answer["finished"] else ["not finished"])])


def clean_lines(text: str) -> str:
    """Clean text whose line breaks stay."""
    return "\n".join(clean(line) for line in text.split("\n"))
