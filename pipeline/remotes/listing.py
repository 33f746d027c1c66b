"""Which versions a remote has, whatever it is."""

from pipeline.remotes import hub
from pipeline.remotes.remote import HUB, Remote
from pipeline.store.refs import Ref


def list_refs(remote: Remote, kind: str | None = None) -> list[Ref]:
    """List the versions that have a directory, or on the Hub a tag, by kind, then version."""
    found = hub.list_tags(remote) if remote.protocol == HUB else remote.versions(kind)
    return sorted((ref for ref in found if kind in (None, ref.kind)), key=lambda ref: (ref.kind, ref.version or 0))
