import pytest

from data import template_check
from data.schema import DataError
from data.template_check import require_special_tokens

GOOD_TEMPLATE = "{% for m in messages %}[U]{{ m['content'] }}{% endfor %}[A]"


def faults_of(tokenizer):
    with pytest.raises(DataError) as caught:
        require_special_tokens(tokenizer)
    return [f"{problem.field}: {problem.message}" for problem in caught.value.problems]


def test_demo_tokenizer_has_all_that_is_required(tokenizer, tokenizer_of):
    require_special_tokens(tokenizer)
    require_special_tokens(tokenizer_of(GOOD_TEMPLATE))


def test_every_missing_token_and_template_is_named(tokenizer_of):
    assert [fault.split(";")[0] for fault in faults_of(tokenizer_of(None, pad=None, eos=None))] == [
        "chat_template: missing",
        "eos_token: missing",
        "pad_token: missing",
    ]


def test_pad_equal_to_eos_is_refused(tokenizer_of):
    assert faults_of(tokenizer_of(GOOD_TEMPLATE, pad="</s>")) == [
        "pad_token: is the end token '</s>' too, so the model would never learn to stop; "
        "needed another token; set pad_token to an unused special token"
    ]


def test_end_token_that_is_also_a_word_is_refused(tokenizer_of):
    tokenizer = tokenizer_of(GOOD_TEMPLATE, eos="b")
    assert faults_of(tokenizer) == [
        "eos_token: 'b' typed in a text becomes the end token's id; needed a special token that no text turns into; set another eos_token"
    ]


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{% for %}", "{{ 1 / 0 }}"]
)
def test_template_that_reaches_out_or_fails_is_refused(tokenizer_of, template):
    assert faults_of(tokenizer_of(template))[0].startswith("chat_template: cannot render a user's message (")


def test_template_that_never_ends_is_stopped(tokenizer_of, monkeypatch):
    monkeypatch.setattr(template_check, "MAX_TEMPLATE_SECONDS", 0.2)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert faults_of(tokenizer_of(loop))[0].startswith("chat_template: did not end in 0.2 s")


def test_template_that_floods_is_refused(tokenizer_of):
    assert faults_of(tokenizer_of("{{ 'a' * 200000 }}"))[0].startswith("chat_template: wrote 200,000 characters for one word")
