"""Sampled answers to held-out demonstrations -> one number, by whom `sft.judge` names: the step with the highest is published.

language model   the share of prompts to which it prefers the answer to the demonstration's own, a tie half; asked in both orders
reward model     the mean of its scores
"""

import math
from collections.abc import Sequence
from statistics import fmean

from data.tokens import EncodedPromptRecord
from stages.evaluate_settings import JudgeSettings, LLMJudgeSettings
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.process.gpu import find_device
from stages.responses.chat_api import ChatClient
from stages.responses.chat_http import ChatError
from stages.responses.judge_model import JudgeModel
from stages.responses.judging import Answer
from stages.responses.llm_judge import Pair, compare_pairs

_KEY = "sft.judge"


class Chooser:
    """Says how good the model of a step is; the main process asks it. It remembers no step: a resumed run goes by the same numbers."""

    def __init__(self, context: StageContext, settings: JudgeSettings) -> None:
        self._context, self._settings = context, settings
        self._model: JudgeModel | None = None

    def ask(self, prompts: Sequence[EncodedPromptRecord], demonstrations: Sequence[str], answers: Sequence[Answer]) -> float:
        """Say how good answers are: the higher, the better; NaN where it could not say it of each, which is told.

        Args:
            prompts: One for each answer.
            demonstrations: What people answered to them.
            answers: Of the model of this step.
        """
        try:
            if self._settings.llm is not None:
                return self._compare(self._settings.llm, prompts, demonstrations, answers)
            return self._score(prompts, answers)
        except (ChatError, StageError, ValueError) as error:
            told = str(error) if str(error).startswith(_KEY) else f"{_KEY}: {error}"
            self._context.note(f"{told}; this step cannot be chosen")
            return math.nan

    def _compare(
        self,
        settings: LLMJudgeSettings,
        prompts: Sequence[EncodedPromptRecord],
        demonstrations: Sequence[str],
        answers: Sequence[Answer],
    ) -> float:
        pairs = [
            Pair([{"role": message.role, "content": message.content} for message in prompt.prompt], demonstration, answer.text)
            for prompt, demonstration, answer in zip(prompts, demonstrations, answers, strict=True)
        ]
        client = ChatClient(settings, self._context.spec.replies_dir)
        verdicts = compare_pairs(client, pairs, settings.instructions, self._context.tells("replies of the judge"))
        if any(verdict.how == "unasked" for verdict in verdicts):
            raise ValueError(f"found pairs that were not asked, as max_cost = {settings.max_cost:g} was near; raise it")
        known = [verdict.outcome for verdict in verdicts if verdict.outcome is not None]
        if len(known) < len(verdicts):
            lost = f"{len(verdicts) - len(known)} of {len(verdicts)} pairs had a reply that is no verdict, and nothing is guessed"
            if not known:
                raise ValueError(lost)
            self._context.note(f"{_KEY}: {lost}")
        return fmean(known)

    def _score(self, prompts: Sequence[EncodedPromptRecord], answers: Sequence[Answer]) -> float:
        spec = self._context.spec
        if self._model is None:
            self._context.progress("opening the judge", 0, 0)
            key = f"{_KEY}.reward_model"
            self._model = JudgeModel(spec.models["judge"], self._settings.revision, spec.hardware, find_device(spec.hardware), key)
        texts, finished = [answer.text for answer in answers], [answer.finished for answer in answers]
        scores = self._model.score([prompt.prompt for prompt in prompts], texts, finished)
        if not all(map(math.isfinite, scores)):
            raise ValueError(f"{self._model.path} gave scores that are not finite; take another")
        return fmean(scores)
