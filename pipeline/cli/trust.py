"""The commands that let others trust an artifact: a signature, a bill of materials."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import StoreOption, make_console, open_store, open_store_to_write, say


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
