"""The commands that follow people's records: which artifacts learnt from one, and forgetting it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import JsonOption, StoreOption, make_console, open_existing_store, open_store_to_write, print_json, say
from pipeline.errors import StoreError
from stages.spec import EXIT_VERIFICATION

if TYPE_CHECKING:
    from pipeline.privacy.trace import Trace
    from pipeline.store.store import Store

RecordArgument = Annotated[
    str, typer.Argument(metavar="RECORD|FILE", help="A file of records, one as a JSON object, or a text: a prompt, or a document.")
]


def trace_command(record: RecordArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Say which artifacts learnt from a record, directly or through those that they were made from.

    Example: rlhf trace people.jsonl
    """
    from pipeline.privacy.lists import find_secret
    from pipeline.privacy.trace import hash_asked, read_asked, trace

    opened = open_existing_store(store)
    asked = read_asked(record)
    secret = find_secret(opened.root) or b""  # without one nothing is listed, and all is unknown
    traces = trace(opened, hash_asked(asked, secret), secret)
    if as_json:
        print_json([_describe(found) for found in traces])
    else:
        _say_traces(traces, make_console())
    _require_all_read(opened, traces)


def forget_command(
    record: RecordArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Leave records out of all that learns from now on, and withdraw what learnt from them and all that stands on it. Sources stay.

    Example: rlhf forget people.jsonl
    """
    from pipeline.privacy.forget import forget
    from pipeline.privacy.lists import open_secret
    from pipeline.privacy.trace import hash_asked, read_asked
    from pipeline.ranking.place import list_judged
    from pipeline.store.withdrawn import name_maker

    open_existing_store(store)
    opened = open_store_to_write(store)
    asked = read_asked(record)
    secret = open_secret(opened.root)
    done = forget(opened, hash_asked(asked, secret), secret)
    kinds = list(dict.fromkeys(found.artifact.kind for found in done.traces if found.learnt))
    if as_json:
        artifacts = [_describe(found) for found in done.traces]
        print_json({"new": done.num_new, "artifacts": artifacts, "tokens": done.tokens, "runs": done.runs, "retrain": kinds})
        _require_all_read(opened, done.traces)
        return
    terminal = make_console()
    _say_traces(done.traces, terminal, then=": withdrawn")
    for name in done.tokens:
        say(terminal, f"tokens/{name}: removed, made anew without them")
    for name in done.runs:
        say(terminal, f"runs/{name}: an unfinished run that learns from them; nobody goes on with it; remove its directory")
    by_maker = {name_maker(kind): [each for each in kinds if name_maker(each) == name_maker(kind)] for kind in kinds}
    makers = [f"{', '.join(made)}, by {maker}{' with their recipe' * (maker == '`rlhf run`')}" for maker, made in by_maker.items()]
    again = f"to make anew: {'; '.join(makers)}; `rlhf gc --remove` then takes what is withdrawn"
    say(terminal, again if kinds else "nothing is to be made anew")
    for ref in list_judged(opened, [found.artifact for found in done.traces if found.learnt]):
        say(terminal, f"{ref}: what people said of its other records stays: `rlhf rankings {ref} --publish`, before gc takes the answers")
    left_out = "it is left out from now on" if done.num_new else "it was left out already"
    say(terminal, f"{left_out}, by this store; the sources stay as they are")
    _require_all_read(opened, done.traces)


def _require_all_read(store: "Store", traces: list["Trace"]) -> None:
    """Refuse to end well where a damaged version may have learnt as well, and what stands on it.

    Raises:
        StoreError: with their refs (exit 3).
    """
    read = {found.artifact.ref for found in traces}
    if damaged := [ref for ref, found in store.survey() if isinstance(found, StoreError) and ref not in read]:
        found = f"{', '.join(damaged)}: damaged, so it is not known what they and those made from them learnt from"
        raise StoreError(f"{found}; restore or remove them (`rlhf doctor`), then give the same command again", EXIT_VERIFICATION)


def _describe(found: "Trace") -> dict[str, Any]:
    return {"ref": found.artifact.ref, "learnt": found.learnt, "sets": found.sets, "through": found.through, "unknown": found.unknown}


def _say_traces(traces: list["Trace"], terminal: Any, then: str = "") -> None:
    for found in traces:
        if found.learnt:
            say(terminal, f"{found.artifact.ref}: {'; '.join(found.uses)}{then}")
    for found in traces:
        if found.unknown:
            todo = "trace it in the store that made it, or read its data once more with `rlhf check-data`"
            say(terminal, f"{found.artifact.ref}: not known of {', '.join(found.unknown)}, of which no list is kept here; {todo}")
    if not any(found.learnt for found in traces):
        say(terminal, "no artifact here is known to have learnt from it")
