"""What the figures of a PPO run are known to mean: pure functions of its rows, with the reason of each threshold.

They audit: KL, entropy and length tell afterwards that a run went wrong, and promise no early warning.
"""

import math
from collections.abc import Mapping
from functools import partial

from stages.settings import PPOSettings
from stages.warnings.watch import WINDOW, History, Row, Rule

# Mean |log π_old − log μ| of a token, in nats, where both are our own forward. Rounding alone makes 1e-6 in float32, 1e-2 in bfloat16.
MAX_OWN_GAP, MAX_OWN_GAP_BFLOAT16 = 1e-3, 0.1

_FREE_KL, _FREE_TOKENS = 10.0, 100.0
_FULL_PULL = 2.0
_LONGER = 2.0
_ENTROPY_LEFT = 0.2
_MAX_DEVIATION, _MAX_DEVIATION_BFLOAT16 = 1e-2, 0.5
_SURE = 3.0


def make_rules(settings: PPOSettings, *, computes_in_bfloat16: bool) -> Mapping[str, Rule]:
    """Return the rules of a run, by name, in the order in which they are told."""
    return {
        "engine_gap": partial(find_engine_gap, own=settings.rollout.engine == "torch", computes_in_bfloat16=computes_in_bfloat16),
        "start_ratio": partial(find_start_ratio, computes_in_bfloat16=computes_in_bfloat16),
        "kl": partial(find_far_policy, kl_target=settings.kl_target),
        "judge_falls": find_falling_judge,
        "finished_falls": find_falling_share,
        "length": find_growing_length,
        "entropy": find_low_entropy,
        "critic": find_blind_critic,
    }


def find_far_policy(history: History, kl_target: float | None) -> str | None:
    """Find a policy that is too far from the SFT model: mean of `objective/kl`, nats a response.

    With `ppo.kl_target`: more than twice that. The controller of Ziegler et al. 2019 (2.2) pulls with full force from 1.2 times the target
    on, so twice as far it has lost. Without: more than 10 nats, where the range ends that TRL's training FAQ recommends. That people's
    preference rises with the KL at first and then falls, while the reward model's score goes on, is figure 5 of Stiennon et al. 2020 (arXiv
    2009.01325). Such texts had under 100 tokens; a longer response may be as far per token.
    """
    kl, tokens = history.now("objective/kl"), history.now("response_length")
    if kl is None or tokens is None:
        return None
    limit = _FULL_PULL * kl_target if kl_target is not None else _FREE_KL * max(1.0, tokens / _FREE_TOKENS)
    if not kl > limit:
        return None
    found = f"KL to the SFT model is {kl:.3g} nats a response ({history.span()})"
    if kl_target is not None:
        return f"{found}, over twice ppo.kl_target = {kl_target:g}: the penalty does not hold it; raise ppo.kl_coef or lower ppo.kl_horizon"
    way = f"raise ppo.kl_coef (found {history.newest.get('kl_coef', math.nan):g}), or take an earlier iteration"
    return f"{found}, above {limit:.3g}: so far away the reward model's score says little of what people prefer; {way}"


def find_falling_judge(history: History) -> str | None:
    """Find a judge that fell since an earlier evaluation, by more than its noise, while the score did not: over-optimisation as such.

    Both averages have a standard error; that of their difference is taken as if the evaluations were independent, which is too large, as
    they share prompts and sampling noise. Three of it, not two, since the newest is compared with each of the earlier ones.
    """
    found = _find_fall(history, "judge_score")
    if found is None:
        return None
    then, now = found
    return (
        f"the judge fell from {then['eval/sampled/judge_score']:.3g} (iteration {then['step']:.0f}) to "
        f"{now['eval/sampled/judge_score']:.3g} ({now['step']:.0f}) while the score rose from {then['eval/sampled/score']:.3g} to "
        f"{now['eval/sampled/score']:.3g}: the policy fools the reward model; raise ppo.kl_coef, or stop at iteration {then['step']:.0f}"
    )


def find_falling_share(history: History) -> str | None:
    """Find a share of finished held-out answers that fell by more than its noise while the score did not; see `find_falling_judge`."""
    found = _find_fall(history, "finished")
    if found is None:
        return None
    then, now = found
    return (
        f"answers that end by themselves fell from {then['eval/sampled/finished']:.0%} (iteration {then['step']:.0f}) to "
        f"{now['eval/sampled/finished']:.0%} ({now['step']:.0f}) while the score did not fall: not to end pays; lower "
        "ppo.missing_eos_score, or raise ppo.max_response_tokens where answers need more"
    )


def find_growing_length(history: History) -> str | None:
    """Find responses that are over twice as long as at the start.

    Length was much of what PPO gained in Singhal et al. 2023 (arXiv 2310.03716): reward models like it, whatever stands there. The demo,
    healthy, ends at 1.3 times.
    """
    before, now = history.begin("response_length"), history.now("response_length")
    if before is None or now is None or not now > _LONGER * before:
        return None
    found = f"responses have {now:.0f} tokens ({history.span()}), {now / before:.1f} times as many as at first"
    return f"{found}: the reward model may pay for length; look at the rm stage's eval/length_correlation, and raise ppo.kl_coef"


def find_low_entropy(history: History) -> str | None:
    """Find a policy whose entropy per token is under a fifth of that at the start.

    What can still be gained ends with the entropy (Cui et al. 2025, arXiv 2505.22617: R = −a · exp(H) + b). The demo keeps three fifths.
    """
    before, now = history.begin("policy/entropy_avg"), history.now("policy/entropy_avg")
    if before is None or now is None or not now < _ENTROPY_LEFT * before:
        return None
    found = f"the policy's entropy is {now:.2g} nats a token ({history.span()}), {now / before:.0%} of that at first"
    return f"{found}: it says nearly the same whenever asked, so nothing new is tried; lower ppo.learning_rate or raise ppo.kl_coef"


def find_blind_critic(history: History) -> str | None:
    """Find a critic whose explained variance was at or below 0 in each of the newest rows: it predicts no better than a constant."""
    values = [row.get("val/explained_variance", math.nan) for row in history.last]
    if len(values) < WINDOW or not all(value <= 0 for value in values):
        return None
    found = f"the critic explains nothing of the returns (explained variance at most {max(values):.2g}, {history.span()})"
    return f"{found}: advantages are noise; raise ppo.critic_learning_rate, or set ppo.critic_warmup_iterations"


def find_start_ratio(history: History, computes_in_bfloat16: bool) -> str | None:
    """Find a token whose ratio was not 1 before the first step of an iteration: the same weights gave it two probabilities.

    `val/ratio_start_deviation` is the largest |log ratio| of thousands of tokens. Rounding makes up to 1e-4 of it in float32 and some
    hundredths to tenths in bfloat16.
    """
    deviation = history.newest.get("val/ratio_start_deviation", 0.0)
    if not deviation > (_MAX_DEVIATION_BFLOAT16 if computes_in_bfloat16 else _MAX_DEVIATION):
        return None
    found = f"before the first step of iteration {history.newest['step']:.0f} a token's ratio was {math.exp(min(deviation, 99)):.3g}"
    return f"{found}, not 1: PPO learns from other probabilities than the rollout's; set hardware.attention: eager"


def find_engine_gap(history: History, own: bool, computes_in_bfloat16: bool) -> str | None:
    """Find sampled tokens whose log-probabilities are, on average, not those that the trainer computes.

    Our own engine runs the same forward: see `MAX_OWN_GAP`; the first iteration is refused for it. Another engine's kernels make
    hundredths of a nat, and the run stops at 0.3.
    """
    gap = history.newest.get("rollout/logprob_gap", 0.0)
    if not gap > (MAX_OWN_GAP if own and not computes_in_bfloat16 else MAX_OWN_GAP_BFLOAT16):
        return None
    way = "set hardware.attention: eager" if own else "see that the server serves the same base in the same precision"
    found = f"sampled tokens' log-probabilities are {gap:.2g} nats a token away from the trainer's (iteration {history.newest['step']:.0f})"
    return f"{found}: PPO learns from another policy's responses; {way}"


def _find_fall(history: History, figure: str) -> tuple[Row, Row] | None:
    """Find the earlier evaluation from which a figure fell most, if by more than noise, with the score no lower now than then."""
    name, score = f"eval/sampled/{figure}", "eval/sampled/score"
    rows = [row for row in history.evaluations if name in row and f"{name}_se" in row and score in row]
    if len(rows) < 2 or history.evaluations[-1] is not rows[-1]:
        return None
    *earlier, now = rows
    then = max(earlier, key=lambda row: row[name])
    noise = math.hypot(then[f"{name}_se"], now[f"{name}_se"])
    return (then, now) if then[name] - now[name] > _SURE * noise and now[score] >= then[score] else None
