"""The commands that bring artifacts to a store elsewhere, and from there. Their libraries are imported when they run."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import JsonOption, StoreOption, make_console, open_store, print_json, say
from pipeline.errors import StoreError
from stages.spec import EXIT_MISSING

if TYPE_CHECKING:
    from pipeline.remotes.remote import Remote
    from pipeline.remotes.transfers import View
    from pipeline.store.store import Store

UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="s3://BUCKET/PATH, gs://BUCKET/PATH, file:///DIR, or hf://OWNER/NAME for the Hugging Face Hub.")
]


def push_command(
    ref: Annotated[str, typer.Argument(help="ppo, ppo@v3, ppo@ALIAS or the beginning of a content id.")],
    url: UrlArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring an artifact and all that it was made from to a store elsewhere; one that was stopped goes on.

    Example: rlhf push ppo s3://bucket/team
    """
    from pipeline.remotes.push import push

    _move(push, ref, url, store, as_json, "pushed", "there already")


def pull_command(
    ref: Annotated[str, typer.Argument(help="ppo, ppo@v3 or the beginning of a content id.")],
    url: UrlArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring an artifact and all that it was made from from a store elsewhere; every byte is verified, one that was stopped goes on.

    Example: rlhf pull ppo@v3 s3://bucket/team
    """
    from pipeline.remotes.pull import pull

    _move(pull, ref, url, store, as_json, "pulled, verified", "here already, verified")


def list_remote(url: str, as_json: bool) -> None:
    """List the artifacts of a store elsewhere."""
    from pipeline.remotes.addresses import open_remote
    from pipeline.report.tables import list_remote_data, print_list

    remote = open_remote(url)
    rows = list_remote_data(remote)
    if as_json:
        print_json(rows)
    elif rows:
        print_list(make_console(), rows, remote.shown)
    else:
        raise StoreError(f"{remote.shown}: no artifacts; a store with some needed; `rlhf push REF {remote.shown}` makes one", EXIT_MISSING)


def _move(
    move: Callable[["Store", str, "Remote", "View"], dict[str, bool]], ref: str, url: str, store: Path | None, as_json: bool, *words: str
) -> None:
    """Push or pull, and say of each version which of the two words holds: it was moved, or it was there."""
    from pipeline.remotes.addresses import open_remote
    from pipeline.report.transfer import TransferView

    with TransferView(make_console(err=True)) as view:
        moved = move(open_store(store), ref, open_remote(url), view)
    if as_json:
        print_json(moved)
        return
    terminal = make_console()
    for version, was_moved in moved.items():
        say(terminal, f"{version}: {words[0] if was_moved else words[1]}")
