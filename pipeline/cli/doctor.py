"""The command that looks over a store: what is broken, left over, unfinished or withdrawn."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import JsonOption, StoreOption, make_console, open_existing_store, print_json, say
from pipeline.errors import StoreError
from stages.spec import EXIT_VERIFICATION

if TYPE_CHECKING:
    from pipeline.doctor import Finding

_NO_FAULT = ("unfinished", "withdrawn")


def doctor_command(
    mend: Annotated[
        bool, typer.Option("--mend", help="Remove leftovers and names that mean nothing; says what it did. Artifacts stay.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Begin the ledger anew with the versions that are there; the old one is kept.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look over a store: broken artifacts and names, leftovers, runs without artifact; exit code 3 when something is to do.

    Example: rlhf doctor --mend
    """
    from pipeline.doctor import examine
    from pipeline.store.ledger import begin_anew
    from pipeline.text import count

    opened = open_existing_store(store)
    if trust:
        aside = begin_anew(opened.root)
        say(make_console(err=True), f"the ledger begins anew with what is there; {f'before it: {aside}' if aside else 'there was none'}")
    findings = examine(opened)
    rows = [_mend(finding) if mend and finding.mend else _row(finding) for finding in findings]
    left = [row for row in rows if row["level"] not in _NO_FAULT and not row["mended"]]
    if as_json:
        print_json(rows)
    else:
        terminal = make_console()
        for row in rows:
            say(terminal, ": ".join(filter(None, (row["level"], row["place"], row["message"], row["mended"] or row["to_mend"]))))
        todo = sum(bool(row["to_mend"]) for row in left)
        then = f"; `rlhf doctor --mend` mends {todo} of them" if todo and not mend else ""
        numbers = {level: sum(row["level"] == level for row in rows) for level in _NO_FAULT}
        told = " and ".join(f"{number} {level}" for level, number in numbers.items() if number)
        done = f"nothing is broken or left over; {told}, which is no fault" if told else "nothing to do"
        say(terminal, f"{count(len(left), 'thing')} to do{then}" if left else done)
    if left:
        raise typer.Exit(EXIT_VERIFICATION)


def _row(finding: "Finding", mended: str = "", error: str = "") -> dict[str, Any]:
    to_mend = "" if finding.mend is None or mended else (f"not mended: {error}" if error else "--mend puts it right")
    return {"level": finding.level, "place": finding.place, "message": finding.message, "mended": mended, "to_mend": to_mend}


def _mend(finding: "Finding") -> dict[str, Any]:
    assert finding.mend is not None
    try:
        return _row(finding, mended=f"mended: {finding.mended}" if finding.mend() else "mended: it was gone already")
    except StoreError as error:
        return _row(finding, error=error.message)
