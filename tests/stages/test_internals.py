"""What the libraries are spared that we build on."""

from importlib.metadata import PathDistribution

from accelerate.utils import is_deepspeed_available

import stages.internals  # noqa: F401, which spares it


def test_what_is_installed_is_read_once(monkeypatch):
    read, read_text = [], PathDistribution.read_text

    def read_and_count(distribution, name):
        read.append(name)
        return read_text(distribution, name)

    monkeypatch.setattr(PathDistribution, "read_text", read_and_count)
    assert is_deepspeed_available() and is_deepspeed_available()
    assert len(read) <= 1
