"""The commands that bring artifacts to a store elsewhere, and from there. Their libraries are imported when they run."""

from typing import Annotated

import typer

from pipeline.cli.options import JsonOption, StoreOption, make_console, open_store, print_json, say
from pipeline.errors import StoreError
from stages.spec import EXIT_MISSING

UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="s3://BUCKET/PATH, gs://BUCKET/PATH, file:///DIR, or hf://OWNER/NAME for the Hugging Face Hub.")
]


def push_command(
    ref: Annotated[str, typer.Argument(help="ppo, ppo@v3, ppo@ALIAS or the beginning of a content id.")],
    url: UrlArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring an artifact and all that it was made from to a store elsewhere; one that was stopped goes on."""
    from pipeline.report.transfer import TransferView
    from pipeline.store.addresses import open_remote
    from pipeline.store.push import push

    opened, remote = open_store(store), open_remote(url)
    with TransferView(make_console(err=True)) as view:
        pushed = push(opened, ref, remote, view)
    _tell(pushed, "pushed", f"there already, at {remote.shown}", as_json)


def pull_command(
    ref: Annotated[str, typer.Argument(help="ppo, ppo@v3 or the beginning of a content id.")],
    url: UrlArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring an artifact and all that it was made from from a store elsewhere; every byte is verified, one that was stopped goes on."""
    from pipeline.report.transfer import TransferView
    from pipeline.store.addresses import open_remote
    from pipeline.store.pull import pull

    opened, remote = open_store(store), open_remote(url)
    with TransferView(make_console(err=True)) as view:
        pulled = pull(opened, ref, remote, view)
    _tell(pulled, "pulled, verified", "here already, verified", as_json)


def list_remote(url: str, as_json: bool) -> None:
    """List the artifacts of a store elsewhere."""
    from pipeline.report.tables import list_remote_data, print_list
    from pipeline.store.addresses import open_remote

    remote = open_remote(url)
    rows = list_remote_data(remote)
    if as_json:
        print_json(rows)
    elif rows:
        print_list(make_console(), rows, remote.shown)
    else:
        raise StoreError(f"{remote.shown}: no artifacts; a store with some needed; `rlhf push REF {remote.shown}` makes one", EXIT_MISSING)


def _tell(moved: dict[str, bool], done: str, kept: str, as_json: bool) -> None:
    if as_json:
        print_json(moved)
        return
    terminal = make_console()
    for ref, was_moved in moved.items():
        say(terminal, f"{ref}: {done if was_moved else kept}")
