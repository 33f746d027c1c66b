"""A recipe's numbers and a trace -> the parts of each stage, in order, with how much work each is."""

from collections.abc import Mapping

from data.schema import RecordKind
from pipeline.cost.amounts import Amount, Lengths, count_answers, count_training, count_update
from stages.evaluate_settings import EvaluateSettings
from stages.sample_settings import SampleSettings
from stages.settings import PPOSettings, PretrainSettings, RMSettings, SFTSettings, StageSettings

Parts = dict[str, Amount]
_CALIBRATED = 1000  # demonstrations that RM scores
_SFT_ROWS = 64  # held-out prompts that SFT answers at once


def list_parts(settings: StageSettings, lengths: Mapping[RecordKind, Lengths], limits: tuple[int, int], processes: int) -> Parts:
    """Take a stage apart into what is done one after the other.

    Args:
        settings: Of the stage.
        lengths: Of the record sets that it reads.
        limits: Tokens of a prompt and of a response, at most.
        processes: On all nodes.
    """
    if isinstance(settings, PPOSettings):
        return _list_ppo(settings, lengths, limits, processes)
    if isinstance(settings, EvaluateSettings):
        return _list_evaluate(settings, lengths, limits, processes)
    if isinstance(settings, SampleSettings):
        raise ValueError("sample is no stage of a run")
    kind: RecordKind = (
        "comparisons" if isinstance(settings, RMSettings) else "texts" if isinstance(settings, PretrainSettings) else "demonstrations"
    )
    found = lengths[kind]
    tokens = found.prompt + found.answers * found.response
    records, batch = float(found.records or 0), float(settings.batch_size)
    held_out_tokens = found.held_out * tokens  # these are not packed
    if isinstance(settings, PretrainSettings) or (isinstance(settings, SFTSettings) and settings.packing):
        row = settings.sequence_length if isinstance(settings, PretrainSettings) else sum(limits)
        records, tokens = records * tokens / row, float(row)
    # Held-out records are looked at as often as the settings say, and once in the end; RM scores demonstrations then, its scale's zero.
    looks = 1 + (settings.epochs if settings.eval_every is None else settings.epochs * records / batch // settings.eval_every)
    scored = looks * held_out_tokens
    if isinstance(settings, RMSettings) and (zero := lengths.get("demonstrations")):
        scored += min(zero.records or 0, _CALIBRATED) * (zero.prompt + zero.response)
    parts: Parts = {"train": count_training(tokens, batch, records, settings.epochs, scored)}
    if isinstance(settings, SFTSettings) and settings.eval_samples:
        # Nobody knows how long answers will be: as long as those that are learnt; greedy ones and sampled ones.
        parts["answers"] = count_answers(2.0 * settings.eval_samples, found.prompt, _longest(found, limits), _SFT_ROWS, 1, "answers/")
    return parts


def _list_ppo(settings: PPOSettings, lengths: Mapping[RecordKind, Lengths], limits: tuple[int, int], processes: int) -> Parts:
    prompt = lengths["prompts"].prompt
    most = settings.max_response_tokens or limits[1]
    response = min(_response_of(lengths, most), most)
    responses = float(settings.iterations * settings.rollout_batch_size)
    tokens = responses * (prompt + response)
    minibatches = settings.iterations * settings.rollout_batch_size / settings.minibatch_size
    parts: Parts = {}
    if settings.rollout.engine == "torch":
        rollout = count_answers(settings.rollout_batch_size, prompt, most, settings.rollout_micro_batch_size, processes, "rollout/")
        parts["rollout"] = _times(rollout, settings.iterations)
    parts["score"] = Amount({"score/reward": tokens, "score/policy": tokens})
    parts["update"] = count_update(tokens, settings.ppo_epochs, minibatches)
    if settings.eval_samples:
        evaluations = 2 + settings.iterations / settings.eval_every
        answers = Amount()  # by vLLM: not known
        if settings.rollout.engine == "torch":
            answers = count_answers(settings.eval_samples, prompt, most, settings.rollout_micro_batch_size, processes, "rollout/")
        scored = settings.eval_samples * (prompt + response)
        answers = Amount(answers.phases | {"score/reward": scored, "score/policy": scored}, answers.steps, answers.rows, answers.width)
        parts["held-out answers"] = _times(answers, evaluations)
    return parts


def _list_evaluate(settings: EvaluateSettings, lengths: Mapping[RecordKind, Lengths], limits: tuple[int, int], processes: int) -> Parts:
    prompt = lengths["prompts"].prompt
    most = settings.max_response_tokens or limits[1]
    each = settings.samples + 2 * settings.policy_samples + 3  # SFT's pool; base and PPO; a greedy answer of each
    answers = float(settings.prompts * each)
    decoded = count_answers(answers, prompt, most, settings.batch_size, processes, "answers/")
    # Of each answer: what its model, SFT and the reward model say.
    looked = 3 * answers * (prompt + _response_of(lengths, most))
    return {"answers": decoded, "scores": Amount({"answers/prefill": looked})}


def _response_of(lengths: Mapping[RecordKind, Lengths], most: float) -> float:
    """Guess how long sampled answers are: as those that SFT learns, which the policy begins by imitating."""
    learnt = lengths.get("demonstrations")
    return learnt.response if learnt and learnt.response else most


def _longest(found: Lengths, limits: tuple[int, int]) -> float:
    """Rows are decoded until the last has ended."""
    return min(2 * found.response, limits[1])


def _times(amount: Amount, count: float) -> Amount:
    return Amount(
        {name: tokens * count for name, tokens in amount.phases.items()},
        {name: steps * count for name, steps in amount.steps.items()},
        amount.rows,
        amount.width,
    )
