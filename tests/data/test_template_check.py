import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data import template_check
from data.chat import encode_answers
from data.schema import DataError
from data.template_check import require_ends, require_special_tokens, require_template
from data.turns import begins_with_prompt

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


def test_pad_token_that_is_also_a_word_is_refused_but_not_the_unknown_token(tokenizer_of):
    # "!" as pad token, as GPT-2's first id: texts would lose it wherever special tokens are left out, and no record with it be encoded.
    assert faults_of(tokenizer_of(GOOD_TEMPLATE, pad="b")) == [
        "pad_token: 'b' typed in a text becomes the pad token's id; needed a special token that no text turns into; set another pad_token"
    ]
    tokenizer = tokenizer_of(GOOD_TEMPLATE, pad="x")
    tokenizer.unk_token = "x"
    require_special_tokens(tokenizer)


def test_a_piece_of_a_vocabulary_may_be_the_end_token_and_only_texts_that_hold_it_are_refused():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("[P]", 0.0), ("▁", -1.0), ("a", -1.0), ("b", -1.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "[P]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=GOOD_TEMPLATE, **special)
    require_special_tokens(tokenizer)
    with pytest.raises(DataError, match="record 2: answer: refused by the chat template or tokenizer"):
        encode_answers(tokenizer, ["a b", "a </s> b"])


def test_a_template_that_writes_by_chance_is_refused(tokenizer_of):
    (fault,) = faults_of(tokenizer_of("{{ range(99999) | random }}" + GOOD_TEMPLATE))
    assert fault.startswith("chat_template: wrote two texts for the same message (chance?)")


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{% for %}", "{{ 1 / 0 }}"]
)
def test_template_that_reaches_out_or_fails_is_refused(tokenizer_of, template):
    assert faults_of(tokenizer_of(template))[0].startswith("chat_template: cannot render a user's message (")


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def short_limits(monkeypatch):
    monkeypatch.setattr(template_check, "ITEM_SECONDS", 0.5)


@pytest.mark.parametrize(
    "template", [pytest.param(ENDLESS, marks=pytest.mark.slow), "{{ 9 ** (9 ** 9) }}"]
)  # the second in native code, where no timer of Python's comes through
def test_template_that_never_ends_is_stopped(tokenizer_of, short_limits, template):
    needed = "with a message of one word, it or the tokenizer took more than 0.5 s; needed ones that end; replace them"
    assert faults_of(tokenizer_of(template)) == [f"chat_template: {needed}"]


def test_template_that_wants_all_memory_is_stopped(tokenizer_of):
    assert "took more than 2 GiB of memory" in faults_of(tokenizer_of("{{ 'a' * 4000000000 }}"))[0]


def test_template_that_floods_is_refused(tokenizer_of):
    assert faults_of(tokenizer_of("{{ 'a' * 200000 }}"))[0].startswith("chat_template: wrote 200,000 characters for one word")


def test_template_that_leaves_the_message_out_is_refused(tokenizer_of):
    assert faults_of(tokenizer_of("{{ 'Hello' }}"))[0].startswith("chat_template: wrote the same for Hello and Goodbye; ")


@pytest.mark.slow
def test_what_never_ends_with_an_answer_is_found_before_it_is_asked_here(tokenizer_of, short_limits):
    tokenizer = tokenizer_of("{% if messages | length > 1 %}" + ENDLESS + "{% endif %}" + GOOD_TEMPLATE)
    with pytest.raises(DataError, match=r"chat_template: with a message of one word, it or the tokenizer took more than 0\.5 s"):
        require_ends(tokenizer, lambda: begins_with_prompt(tokenizer))
    require_ends(tokenizer, lambda: 1 / 0)  # raised again where it is done


@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param(ENDLESS, "took more than 0.5 s", marks=pytest.mark.slow),
        ("{{ 'a' * 4000000000 }}", "took more than 2 GiB of memory"),
        ("{{ 1 / 0 }}", "cannot render"),
    ],
)
def test_a_trial_that_renders_in_its_own_child_says_what_a_check_in_a_child_says(tokenizer_of, short_limits, template, said):
    tokenizer = tokenizer_of(template)
    with pytest.raises(DataError) as caught:
        require_ends(tokenizer, lambda: require_special_tokens(tokenizer, tried=True))
    assert [f"{problem.field}: {problem.message}" for problem in caught.value.problems] == faults_of(tokenizer)
    assert said in str(caught.value)


def test_before_a_chat_the_template_alone_is_tried(tokenizer_of, short_limits):
    require_template(tokenizer_of("{{ messages[0]['content'] }}", pad=None))
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages[0]['content'] }}"
    with pytest.raises(DataError, match="needed ones that end"):
        require_template(tokenizer_of(endless))
