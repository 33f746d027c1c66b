"""A recipe's numbers and a trace -> the parts of each stage, in order, with how much work each is."""

from collections.abc import Mapping

from data.schema import RecordKind
from pipeline.cost.amounts import Amount, Lengths, count_answers, count_training, count_update
from pipeline.cost.serving import MAX_ROWS
from stages.evaluate_settings import EvaluateSettings
from stages.sample_settings import SampleSettings
from stages.settings import PPOSettings, PretrainSettings, RMSettings, SFTSettings, StageSettings, TrainingSettings

Parts = dict[str, Amount]
_CALIBRATED = 1000  # demonstrations that RM scores
_SFT_ROWS = 64  # held-out prompts that SFT answers at once
_EVALUATED_AT_ONCE = 512  # answers of all processes between two words on how far evaluate is
_PROBES = 6  # copies with a flaw that are made of an answer


def list_parts(
    settings: StageSettings, lengths: Mapping[RecordKind, Lengths], limits: tuple[int, int], processes: int, kept: int = 0
) -> Parts:
    """Take a stage apart into what is done one after the other.

    Args:
        settings: Of the stage.
        lengths: Of the record sets that it reads.
        limits: Tokens of a prompt and of a response, at most.
        processes: On all nodes.
        kept: Models that PPO kept of its iterations, which evaluate asks too.
    """
    if isinstance(settings, PPOSettings):
        return _list_ppo(settings, lengths, limits, processes)
    if isinstance(settings, EvaluateSettings):
        return _list_evaluate(settings, lengths, limits, processes, kept)
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
        quantiles = _quantiles_of(lengths, limits[1])
        asked = float(min(settings.eval_samples, found.held_out) if found.known else settings.eval_samples)
        answers = count_answers(asked, found.prompt, quantiles, _SFT_ROWS, 1, "answers/")
        parts["answers"] = _times(answers, 2.0)
    return parts


def count_kept(settings: StageSettings) -> int:
    """Say of how many iterations PPO keeps the model, as `stages.ppo.kept` does."""
    if not isinstance(settings, PPOSettings) or not settings.keep_every:
        return 0
    return (settings.iterations - (settings.publish == "last")) // settings.keep_every


def count_opened(settings: StageSettings, kept: int = 0, *, reward_adapter: bool = False) -> int:
    """Say how often a stage opens a whole model: to begin with, and once more to merge an adapter into it in the end.

    Args:
        settings: Of the stage.
        kept: Models that PPO kept of its iterations, which evaluate asks too.
        reward_adapter: Whether the reward model is an adapter on the SFT model, which is opened once for both then.
    """
    if isinstance(settings, EvaluateSettings):
        return 4 + kept  # base, SFT, PPO and those that it kept, and the reward model
    merges = isinstance(settings, TrainingSettings) and settings.lora is not None and settings.lora.merge
    opened = 1
    if isinstance(settings, PPOSettings):
        shares = settings.lora is not None and settings.share_weights
        opened = 4 if not shares else 1 if reward_adapter else 2
    return opened + merges


def _list_ppo(settings: PPOSettings, lengths: Mapping[RecordKind, Lengths], limits: tuple[int, int], processes: int) -> Parts:
    prompt = lengths["prompts"].prompt
    most = settings.max_response_tokens or limits[1]
    response, quantiles = min(_response_of(lengths, most), most), _quantiles_of(lengths, most)
    rows, by_torch = settings.rollout_micro_batch_size, settings.rollout.engine == "torch"
    responses = float(settings.iterations * settings.rollout_batch_size)
    tokens = responses * (prompt + response)
    minibatches = settings.iterations * settings.rollout_batch_size / settings.minibatch_size
    parts: Parts = {}
    given = (rows, processes, "rollout/") if by_torch else (MAX_ROWS, 1, "")  # the server shares rows out over its GPUs by itself
    rollout = count_answers(settings.rollout_batch_size, prompt, quantiles, *given)
    parts["rollout"] = _times(rollout, settings.iterations)
    parts["score"] = Amount({"score/reward": tokens, "score/policy": tokens}, least=settings.iterations)
    parts["update"] = count_update(tokens, settings.ppo_epochs, minibatches)
    if settings.ptx_coef > 0:
        parts["ptx"] = _count_mixed(settings, lengths, limits, minibatches)
    if settings.eval_samples:
        between = (settings.iterations - 1) // settings.eval_every
        asked = float(min(settings.eval_samples, lengths["prompts"].held_out or settings.eval_samples))
        evaluations = 3.0 + between  # of SFT, in between, and in the end sampled and greedy
        parts["held-out answers"] = _times(count_answers(asked, prompt, quantiles, *given), evaluations)
        scored = evaluations * asked * (prompt + response)
        parts["held-out scores"] = Amount({"score/reward": scored, "score/policy": scored}, least=evaluations)
    return parts


def _count_mixed(settings: PPOSettings, lengths: Mapping[RecordKind, Lengths], limits: tuple[int, int], minibatches: float) -> Amount:
    """Say how much is learnt beside PPO's objective: demonstrations, or pieces of texts that fill the limits."""
    learnt = lengths.get("demonstrations")
    whole = settings.ptx_data == "texts" or learnt is None
    tokens = float(sum(limits)) if whole or learnt is None else learnt.prompt + learnt.response
    records = settings.ptx_batch_size or settings.minibatch_size
    times = minibatches * settings.ppo_epochs
    return Amount({"ptx": times * records * tokens}, least=times)


def _list_evaluate(
    settings: EvaluateSettings, lengths: Mapping[RecordKind, Lengths], limits: tuple[int, int], processes: int, kept: int
) -> Parts:
    """Base, PPO, the models that PPO kept and SFT answer; PPO and SFT say how likely what was sampled is; all is scored."""
    asked, prompt = lengths["prompts"], lengths["prompts"].prompt
    prompts = float(min(settings.prompts, asked.held_out or settings.prompts))
    most = settings.max_response_tokens or limits[1]
    response, quantiles = min(_response_of(lengths, most), most), _quantiles_of(lengths, most)
    few, pool = settings.policy_samples, max(settings.samples, settings.policy_samples)

    def answer(samples: float, how_long: tuple[float, ...]) -> Amount:
        given = (prompts * samples, prompt, how_long, settings.batch_size, processes, "answers/", _EVALUATED_AT_ONCE)
        return count_answers(*given)

    def look(samples: float, tokens: float) -> float:
        return prompts * (prompt + samples * tokens)  # a prompt once for all its answers

    trained = [answer(few, quantiles)] * (1 + kept) + [answer(pool, quantiles)] + [answer(1.0, quantiles)] * 2
    # A base model does not know where an answer ends.
    base = [answer(few, (float(most),)), answer(1.0, (float(most),))]
    likely = 2 * ((1 + kept) * look(few, response) + look(few, most))
    ranked = lengths.get("comparisons")
    scored = (1 + kept) * look(few, response) + look(few, most) + look(pool, response) + 2 * look(1.0, response) + look(1.0, most)
    if ranked is not None:
        compared = float(min(settings.comparisons, ranked.held_out or settings.comparisons))
        scored += compared * (ranked.prompt + ranked.answers * ranked.response)
        scored += min(settings.probe_prompts, compared) * (ranked.prompt + _PROBES * ranked.response)
    return {
        "answers": _add([*base, *trained]),
        "log-probabilities": Amount({"score/policy": likely}),
        "scores": Amount({"score/reward": scored}),
    }


def _response_of(lengths: Mapping[RecordKind, Lengths], most: float) -> float:
    """Guess how long sampled answers are: as those that SFT learns, which the policy begins by imitating."""
    learnt = lengths.get("demonstrations")
    return learnt.response if learnt and learnt.response else most


def _quantiles_of(lengths: Mapping[RecordKind, Lengths], most: float) -> tuple[float, ...]:
    """Guess the same of the shortest answer, the longest, and those between them."""
    learnt = lengths.get("demonstrations")
    known = learnt.quantiles if learnt and learnt.quantiles else (_response_of(lengths, most),)
    return tuple(min(length, most) for length in known)


def _times(amount: Amount, count: float) -> Amount:
    return Amount(
        {name: tokens * count for name, tokens in amount.phases.items()},
        {name: steps * count for name, steps in amount.steps.items()},
        amount.rows,
        amount.width,
        amount.least * count,
    )


def _add(amounts: list[Amount]) -> Amount:
    """Add amounts of the same phases; rows and width are averages over all decoding steps."""
    phases: dict[str, float] = {}
    steps: dict[str, float] = {}
    for amount in amounts:
        for name, tokens in amount.phases.items():
            phases[name] = phases.get(name, 0.0) + tokens
        for name, count in amount.steps.items():
            steps[name] = steps.get(name, 0.0) + count
    total = sum(steps.values()) or 1.0
    rows = sum(amount.rows * sum(amount.steps.values()) for amount in amounts) / total
    width = sum(amount.width * sum(amount.steps.values()) for amount in amounts) / total
    return Amount(phases, steps, rows, width, sum(amount.least for amount in amounts))
