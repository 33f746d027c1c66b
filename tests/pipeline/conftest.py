"""What the tests of the pipeline share: small artifacts, published for real."""

import pytest

from pipeline.manifest import ManifestFields
from pipeline.store import Store

SMALL_MODEL = {"model/config.json": b"{}", "model/model.safetensors": bytes(range(256)) * 8, "metrics.jsonl": b'{"step": 1}\n'}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def publish():
    """A function that writes files into staging and publishes them."""

    def publish(store, kind="sft", files=SMALL_MODEL, **fields):
        with store.staging(kind) as staging:
            for name, content in files.items():
                path = staging.path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return store.publish(staging, ManifestFields(**fields))

    return publish
