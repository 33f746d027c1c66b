"""The commands that work on the store: list, verify, sign, name, remove, import and export artifacts; list runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.options import (
    KIND_NAMES,
    JsonOption,
    StoreOption,
    make_console,
    open_existing_store,
    open_store,
    open_store_to_write,
    print_json,
    say,
)
from pipeline.cli.remotes import list_remote
from pipeline.errors import StoreError
from stages.spec import EXIT_MISSING, EXIT_USAGE, EXIT_VERIFICATION, MODEL_KINDS

if TYPE_CHECKING:
    from pipeline.store.store import Store


def ls_command(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND|URL]", help=f"{KIND_NAMES}; all when left out. Or the address of a store elsewhere.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts, here or at an address (s3://, gs://, hf://, file://).

    Example: rlhf ls ppo
    """
    from pipeline.report.tables import list_data, print_list

    if kind is not None and "://" in kind:
        list_remote(kind, as_json)
        return
    opened = open_store(store)
    rows = list_data(opened, kind)
    if as_json:
        print_json(rows)
    else:
        print_list(make_console(), rows, opened.root, kind)


def verify_command(
    ref: Annotated[str | None, typer.Argument(help="One artifact; all when left out.")] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Its signature too, which must be by the key.")] = False,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Public key in PEM, for --signed.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every byte with the manifest; exit code 3 when something differs, 4 when there is nothing to verify.

    Example: rlhf verify ppo@best
    """
    if signed != (key is not None):
        raise typer.BadParameter("--signed and --key FILE belong together: by whose key it must be signed")
    opened = open_store(store)
    refs = opened.refs() if ref is None else [ref]
    lost = opened.find_lost() if ref is None else {}
    if not refs and not lost:
        found = "no artifacts" if opened.root.is_dir() else "no such directory"
        raise StoreError(f"{opened.root}: {found}; a store with some is needed; give another --store, or `rlhf run` first", EXIT_MISSING)
    problems = _verify_all(opened) if ref is None else {ref: opened.verify(ref)}
    if key is not None:
        from pipeline.store.disk import expand_home
        from pipeline.store.signing import find_signature_problems

        problems = {name: found or find_signature_problems(opened.get(name), expand_home(key)) for name, found in problems.items()}
    problems |= {name: [f"it {entry}, and is gone without `rlhf rm`; restore it, or `rlhf doctor --mend`"] for name, entry in lost.items()}
    withdrawn = {name: reason for name, found in problems.items() if not found and (reason := opened.find_withdrawal(opened.get(name)))}
    if as_json:
        print_json(problems)
        for name, reason in withdrawn.items():
            print(f"note: {name} is withdrawn: {reason}", file=sys.stderr)
    else:
        terminal = make_console()
        for name, found in problems.items():
            intact = f"intact{', signed by that key' if signed else ''}{f'; withdrawn: {withdrawn[name]}' if name in withdrawn else ''}"
            for line in found or [intact]:
                say(terminal, f"{name}: {line}")
    if any(problems.values()):
        raise typer.Exit(EXIT_VERIFICATION)


def _verify_all(store: "Store") -> dict[str, list[str]]:
    """Verify all versions; of one that is removed meanwhile nothing is said."""
    problems: dict[str, list[str]] = {}
    for ref in store.refs():
        try:
            found = store.verify(ref)
        except StoreError as error:
            if error.exit_code != EXIT_MISSING:
                raise
            continue
        if not found or ref in store.refs():
            problems[ref] = found
    return problems


def runs_command(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the runs, the newest first: when, how long, how it ended and why, what it published or which checkpoint it goes on from.

    Example: rlhf runs
    """
    from pipeline.report.runs import print_runs
    from pipeline.runs.listing import list_runs

    opened = open_store(store)
    rows = list_runs(opened)
    if as_json:
        print_json(rows)
    else:
        print_runs(make_console(), rows, opened.root)


def alias_command(
    ref: Annotated[str, typer.Argument(help="The artifact.")],
    name: Annotated[str, typer.Argument(help="Its new name: ppo@NAME.")],
    store: StoreOption = None,
) -> None:
    """Give an artifact a name.

    Example: rlhf alias ppo@v1 best
    """
    from pipeline.store.aliases import user_name

    opened = open_store(store)
    artifact = opened.get(ref)
    alias = opened.set_alias(artifact.kind, name, artifact.ref, by=user_name())
    before = f" (was {alias.previous})" if alias.previous else ""
    say(make_console(), f"{artifact.kind}@{name} -> {alias.ref}{before}")


_KEPT = 3


def gc_command(
    keep: Annotated[int, typer.Option("--keep", min=1, help="How many of the newest versions of each kind stay.")] = _KEPT,
    remove: Annotated[bool, typer.Option("--remove", help="Remove them; without this they are shown only.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the artifacts that nothing needs: no alias names them, they are not of the newest, nothing that stays was made from them.

    Answers whose judgements are not published yet stay too.

    Example: rlhf gc --keep 1
    """
    from pipeline.rounds.publish import find_unpublished
    from pipeline.store.removal import collect, plan_collection
    from pipeline.text import count, format_bytes

    opened = open_existing_store(store)
    removal = (collect if remove else plan_collection)(opened, keep, find_unpublished)
    refs = [artifact.ref for artifact in removal.artifacts]
    if as_json:
        print_json({"refs": refs, "bytes": removal.num_bytes, "removed": remove, "damaged": removal.damaged, "spared": removal.spared})
        return
    terminal = make_console()
    for ref in refs:
        say(terminal, f"{'removed' if remove else 'would remove'} {ref}")
    for ref in removal.spared:
        say(
            terminal,
            f"{ref}: stays, as what was said of it is not published; `rlhf rankings {ref} --publish` does, `rlhf rm {ref}` removes it",
        )
    for ref in removal.damaged:
        say(terminal, f"{ref}: damaged, stays; `rlhf verify {ref}` says why, `rlhf rm {ref}` removes it")
    same = "" if keep == _KEPT else f" --keep {keep}"  # without it others would be removed than are shown
    then = "" if remove or not refs else f"; `rlhf gc{same} --remove` removes them"
    if refs or removal.spared or removal.damaged:
        say(terminal, f"{count(len(refs), 'artifact')}, {format_bytes(removal.num_bytes)}{then}")
        return
    if not opened.refs():
        say(terminal, f"nothing to remove: no artifacts in {opened.root}")
        return
    newest = "the newest version" if keep == 1 else f"the {keep} newest versions"
    say(terminal, f"nothing to remove: {newest} of each kind, what an alias names, and")
    say(terminal, f"what those and unfinished runs were made from stay{'' if keep == 1 else '; `--keep 1` keeps fewer'}")


def rm_command(
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help="Versions (ppo@v3), and names (ppo@best: the version stays).")],
    store: StoreOption = None,
) -> None:
    """Remove artifacts, or their names; refused where one that stays was made from them, a name is left, or a run goes on from them.

    Example: rlhf rm ppo@v3 ppo@best
    """
    from pipeline.store.removal import remove

    if recipes := [ref for ref in refs if ref.endswith((".yaml", ".yml"))]:
        wanted = f"a reward model is trained by: rlhf run {recipes[0]} --until rm"
        raise StoreError(f"found {recipes[0]}, needed artifacts to remove; {wanted}", EXIT_USAGE)
    terminal = make_console()
    for ref in remove(open_store(store), refs):
        say(terminal, f"removed {ref}")


def import_command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model as save_pretrained writes it, or an artifact's directory with its manifest.")
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help=f"{', '.join(MODEL_KINDS)}; default: rm where its config has a score head, sft where it is a language model.",
        ),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Publish a copy of a directory from elsewhere, marked as imported; safetensors only. No run reuses it by itself.

    Example: rlhf import ~/models/policy --kind sft
    """
    from pipeline.store.disk import expand_home
    from pipeline.store.importing import import_directory

    if kind not in (None, *MODEL_KINDS):
        raise typer.BadParameter(f"found --kind {kind:.40}, needed a kind of model: {', '.join(MODEL_KINDS)}")
    imported = import_directory(open_store_to_write(store), expand_home(directory), kind)
    terminal = make_console()
    for note in imported.notes:
        say(terminal, f"note: {note}")
    say(terminal, f"imported {imported.artifact.ref}: {imported.artifact.path}")


def export_command(
    ref: Annotated[str, typer.Argument(help="The artifact.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory, or an empty one.")],
    merge: Annotated[
        bool, typer.Option("--merge", "--merged", help="A whole model in place of an adapter: merged/ where it is there, else merged now.")
    ] = False,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None, typer.Option("--dtype", help="Write the weights in this precision.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write a model with its tokenizer and a model card into a plain directory; every byte is verified.

    Example: rlhf export ppo my-policy --merge --dtype bfloat16
    """
    from pipeline.export import export
    from pipeline.store.disk import expand_home

    target = expand_home(directory).absolute()
    console = make_console(err=True)
    artifact = export(open_store(store), ref, target, merge=merge, dtype=dtype, told=lambda step: say(console, step))
    say(make_console(), f"exported {artifact.ref}: {target}")


def sign_command(
    ref: Annotated[str, typer.Argument(help="The artifact.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private key of an elliptic curve (P-256, P-384 or P-521), in PEM.")],
    store: StoreOption = None,
) -> None:
    """Sign an artifact with a key of yours, offline (OpenSSF model signing); every byte is verified first.

    Example: rlhf sign ppo@best --key key.pem
    """
    from pipeline.store.disk import expand_home
    from pipeline.store.signing import sign

    artifact, place = sign(open_store_to_write(store), ref, expand_home(key))
    say(make_console(), f"signed {artifact.ref}: {place}")


def sbom_command(ref: Annotated[str, typer.Argument(help="The artifact.")], store: StoreOption = None) -> None:
    """Print an artifact's bill of materials: files, data, packages, all that it was made from (CycloneDX 1.6, JSON).

    Example: rlhf sbom ppo@best
    """
    from pipeline.store.sbom import make_bill

    opened = open_store(store)
    artifact = opened.get(ref)
    print(make_bill(artifact, opened.lineage(artifact.ref)))
