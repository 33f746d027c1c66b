import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.fingerprint import fingerprint
from data.load import load_records
from data.schema import Comparison, Demonstration, Message, Prompt

texts = st.text(max_size=8)
messages = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts), min_size=1, max_size=3).map(tuple)
answers = st.lists(texts, min_size=2, max_size=3).map(tuple)
records = st.one_of(
    st.builds(Prompt, messages),
    st.builds(Demonstration, messages, texts),
    answers.flatmap(
        lambda given: st.builds(
            Comparison, messages, st.just(given), st.tuples(*[st.integers(1, 3)] * len(given)), st.sampled_from(["", "forum"])
        )
    ),
)


@settings(deadline=None)
@given(one=st.lists(records, max_size=3), other=st.lists(records, max_size=3))
@pytest.mark.slow
def test_fingerprints_are_equal_exactly_when_records_are(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


def test_fingerprint_does_not_depend_on_format_place_or_extra_columns(tmp_path, write_lines, source):
    rows = [{"prompt": "Grüße?\n", "completion": "ja"}, {"completion": "b", "prompt": "a", "extra": 1}]
    (tmp_path / "other.json").write_text(json.dumps(rows, indent=1))
    lines = load_records(write_lines(*rows), "demonstrations")
    array = load_records(source(tmp_path / "other.json"), "demonstrations")
    assert fingerprint(lines) == fingerprint(array)
    assert fingerprint(lines) != fingerprint(lines[::-1])


def test_fingerprint_stays_what_it_was():
    # Cache keys rest on it: when it changes for the same records, every stage runs again. Worked out with sha256sum.
    record = Comparison((Message("user", "é?"),), ("a", "b"), (1, 2), "s")
    assert fingerprint([record]) == "sha256:70f26d512eff483bc34f9c713ecfa99fc722ebc9685453d9dd083e0b686457bd"
