"""What tests of several packages share: a tiny base model with a real tokenizer, built once per run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One test worker per core: a second thread each would only make them wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory):
    """The embedded demo's files: records and base model."""
    from data.demo.materialize import write_demo

    directory = tmp_path_factory.mktemp("demo")
    write_demo(directory, seed=7)
    return directory


@pytest.fixture(scope="session")
def base_model_dir(demo_dir):
    """The demo's base model: a Llama of 0.86 M parameters, random weights, with its tokenizer."""
    return demo_dir / "base"


def pytest_collection_modifyitems(items):
    """Begin with the files that take minutes: at the end one worker would be left alone with them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
