"""What is dropped and cut, in words."""

from data.shortfall import describe_shortfall, warn_of_dropped_answers, warn_of_shortfall

LIMITS = (64, 24)


def test_nothing_lost_says_nothing():
    for kind in ("demonstrations", "comparisons", "prompts"):
        counts = {kind: 5, f"{kind}_used": 5, "prompts_cut": 0, "responses_dropped": 0, "comparisons_without_pair": 0}
        assert describe_shortfall(kind, counts, LIMITS) == ""
        assert warn_of_shortfall(kind, counts, LIMITS) == []


def test_demonstrations_are_told_by_what_happened_to_them():
    counts = {"demonstrations": 40, "demonstrations_used": 37, "prompts_cut": 2, "responses_dropped": 3}
    told = "3 of 40 demonstrations dropped (longer than 24 tokens)"
    assert describe_shortfall("demonstrations", counts, LIMITS) == f"{told}, 2 prompts cut to 64 tokens"
    assert warn_of_shortfall("demonstrations", counts, LIMITS) == [
        f"3 of 40 demonstrations (8%) are left out: {told}; raise tokens.max_response_tokens or shorten them"
    ]


def test_comparisons_without_a_pair_are_ties_or_what_the_drops_left():
    counts = {"comparisons": 20, "comparisons_used": 10, "prompts_cut": 0, "responses_dropped": 0, "comparisons_without_pair": 10}
    assert describe_shortfall("comparisons", counts, LIMITS) == "10 of 20 comparisons left out (ties)"
    assert "rank their answers differently" in warn_of_shortfall("comparisons", counts, LIMITS)[0]
    counts["responses_dropped"] = 1
    told = "1 answer dropped (longer than 24 tokens), 10 of 20 comparisons left out (ties, or what the drops left)"
    assert describe_shortfall("comparisons", counts, LIMITS) == told


def test_five_percent_are_tolerated():
    counts = {"prompts": 100, "prompts_cut": 5}
    assert warn_of_shortfall("prompts", counts, LIMITS) == []
    counts["prompts_cut"] = 6
    assert warn_of_shortfall("prompts", counts, LIMITS) == [
        "6 prompts of 100 (6%) are cut to 64 tokens; raise tokens.max_prompt_tokens or shorten them"
    ]


def test_answers_that_the_tokenizer_cannot_write_are_warned_of():
    counts = {"demonstrations": 9, "demonstrations_used": 9, "prompts_cut": 0, "responses_dropped": 0, "answers_altered": 2}
    (told,) = warn_of_shortfall("demonstrations", counts, LIMITS)
    assert told.startswith("2 answers cannot be written by the tokenizer as they are") and told.endswith("knows their characters")


def test_control_tokens_that_stand_in_the_data_as_text_are_warned_of():
    counts = {"prompts": 9, "prompts_cut": 0, "control_tokens": 9}
    (told,) = warn_of_shortfall("prompts", counts, LIMITS)
    assert told.startswith("9 of 9 prompts hold the text of a control token") and told.endswith("leave it away in the data")


def test_long_answers_that_are_dropped_warn_though_their_comparisons_are_left():
    counts = {"comparisons": 20, "comparisons_used": 20, "prompts_cut": 0, "responses_dropped": 4, "comparisons_without_pair": 0}
    assert warn_of_shortfall("comparisons", counts, LIMITS) == []
    assert warn_of_dropped_answers("comparisons", counts, 80, LIMITS) == []  # 5 % are tolerated
    assert warn_of_dropped_answers("comparisons", counts, 79, LIMITS) == [
        "4 of 79 answers (5%) are longer than 24 tokens and dropped: what a long answer is worth is not learnt; raise "
        "tokens.max_response_tokens"
    ]
    assert warn_of_dropped_answers("demonstrations", counts, 79, LIMITS) == []  # told as demonstrations that are left out
