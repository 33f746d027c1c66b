"""What can be known of a recipe's base model before its first stage trains, for all its stages: `stages.tokens` asks first.

A stage asks what concerns itself once more when it starts: it may be started by hand.
"""

from typing import Any

from transformers import AutoConfig

from data.schema import RecordKind
from data.token_split import TokenSet
from stages.family import check_lora, find_family
from stages.models.weights import find_base, open_pretrained
from stages.process.errors import StageError
from stages.responses.stop import find_stop
from stages.spec import EXIT_USAGE, TokensSpec

# What makes the records of a kind shorter.
_LIMITS = {
    "demonstrations": "tokens.max_prompt_tokens or tokens.max_response_tokens",
    "comparisons": "tokens.max_prompt_tokens or tokens.max_response_tokens",
    "prompts": "tokens.max_prompt_tokens or ppo.max_response_tokens",
}


def check_model(spec: TokensSpec, tokenizer: Any) -> None:
    """See that all stages can go through: the base model's family, where adapters go, what ends a response.

    Raises:
        StageError: Something of it does not; exit code 2.
    """
    find_family(spec.base_model, spec.revision)
    check_lora(spec.base_model, {str(stage): lora for stage, lora in spec.adapters.items()}, spec.revision)
    for stage, stop_token in spec.stop_tokens.items():
        find_stop(stage, stop_token, tokenizer)


def check_lengths(spec: TokensSpec, kind: RecordKind, side: TokenSet) -> None:
    """See that the base model has a position for each token of a record; of a prompt, for the longest response to it as well.

    Raises:
        StageError: A record is longer; exit code 2.
    """
    path, revision = find_base(spec.base_model, spec.revision)
    config = open_pretrained(AutoConfig, path, revision=revision).get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    lengths_M = side.file.count_tokens()[side.used]
    if kind == "comparisons":  # each answer follows the prompt alone
        rows = side.used[lengths_M > limit]
        longest = max((len(prompt) + max(map(len, answers)) for prompt, *answers in map(side.file.documents, rows.tolist())), default=0)
    else:
        longest = int(lengths_M.max(initial=0)) + (spec.max_rollout_tokens if kind == "prompts" else 0)
    if longest > limit:
        what = "prompt and response" if kind == "prompts" else f"of the {kind}"
        raise StageError(
            f"{kind}: found {longest} tokens in the longest {what}, needed at most the {limit} that {spec.base_model} has positions for; "
            f"lower {_LIMITS[kind]}",
            EXIT_USAGE,
        )
