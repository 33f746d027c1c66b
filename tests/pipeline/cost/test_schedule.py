"""How answers share the rows of a decoder, against the real one."""

import torch
from pytest import approx, mark
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.cost import schedule
from pipeline.cost.schedule import count_steps, draw_lengths
from stages.responses import rows
from stages.responses.rows import Rows


class Counted(Rows):
    """Rows that count what they feed."""

    steps = fed = 0

    def _forward(self, input_ids_BP, *given):
        if input_ids_BP.shape[1] == 1:
            self.steps, self.fed = self.steps + 1, self.fed + len(input_ids_BP)
        return super()._forward(input_ids_BP, *given)


@mark.parametrize(("count", "at_once"), [(3, 8), (16, 16), (60, 16), (41, 7)])
def test_steps_and_rows_are_those_of_the_decoder(count, at_once):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 24}
    model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    noise = torch.rand(count, 40, dtype=torch.float64)
    decoder = Counted(model, [[5, 6, 7]] * count, noise, frozenset({1, 2}), None, 1.0, False, at_once, None, True)
    with torch.no_grad():
        lengths = [len(response.ids) for response in decoder.answer()]
    assert len(set(lengths)) > 2
    steps, fed = count_steps(lengths, at_once)
    assert steps == decoder.steps
    assert fed == approx(decoder.fed, rel=0.02)  # the decoder moves a finished row out early where another is at its limit


def test_its_shares_are_the_decoders():
    assert (schedule.ADMIT_SHARE, schedule.COMPACT_SHARE) == (rows._ADMIT_SHARE, rows._COMPACT_SHARE)


def test_equal_answers_fill_all_rows():
    assert count_steps([10] * 32, 8) == (4 * 9, 4 * 9 * 8)


def test_a_long_answer_is_decoded_alone_in_the_end():
    # Three rows feed one token, which ends two of them; the third goes on alone.
    assert count_steps([2, 2, 12], 3) == (11, 3 + 10)


def test_lengths_are_drawn_evenly_between_quantiles():
    drawn = draw_lengths([10, 20, 100], 1000)
    assert (min(drawn), max(drawn)) == (10, 100)
    assert sum(length <= 20 for length in drawn) == approx(500, abs=10)
    assert sum(drawn) / 1000 == approx((15 + 60) / 2, rel=0.01)
    assert draw_lengths([7], 3) == [7, 7, 7]
