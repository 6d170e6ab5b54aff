"""The weights of another engine's tokens by numbers worked out by hand, and when the update's log-probs may serve."""

from __future__ import annotations

from math import log

import pytest
import torch

from visual_r1.methods.importance import _Compared, can_reuse, importance_ratio

# Ratios of 2, 5, and of what the mask leaves out; of 1/2, of what the engine has no log-prob for, and of 1/10.
ENGINE = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, torch.nan, -3.0]])
TRAINER = torch.tensor([[-1.0 + log(2), -2.0 + log(5), 0.0], [-1.0 - log(2), -7.0, -3.0 - log(10)]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("mode", "clip_min", "clip_max", "expected"),
    [
        ("token_truncate", None, 3.0, [[2, 3, 1], [0.5, 1, 0.1]]),
        ("token_truncate", 0.2, 3.0, [[2, 3, 1], [0.5, 1, 0.2]]),
        ("token_mask", 0.2, 3.0, [[2, 0, 1], [0.5, 1, 0]]),
        ("token_mask", None, 5.5, [[2, 5, 1], [0.5, 1, 0.1]]),
        ("sequence_truncate", 0.1, 3.0, [[3], [0.1]]),
        ("sequence_truncate", None, None, [[10], [0.05]]),
        ("sequence_mask", 0.1, None, [[10], [0]]),
        ("sequence_mask", None, 3.0, [[0], [0.05]]),
        ("token_truncate", None, None, [[2, 5, 1], [0.5, 1, 0.1]]),
    ],
)
def test_ratios_are_those_worked_out_by_hand(mode, clip_min, clip_max, expected):
    ratio = importance_ratio(TRAINER, ENGINE, MASK, mode=mode, clip_min=clip_min, clip_max=clip_max)
    torch.testing.assert_close(ratio, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["token", "sequence_clamp", "word_mask", ""])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ValueError, match=f"vllm_importance_sampling_mode={mode}: unknown"):
        importance_ratio(TRAINER, ENGINE, MASK, mode=mode, clip_min=None, clip_max=None)


def curves(mode, *micro_batches):
    compared = _Compared()
    for number, rows in enumerate(micro_batches):
        trainer, engine, mask = TRAINER[rows], ENGINE[rows], MASK[rows]
        ratio = importance_ratio(trainer, engine, mask, mode=mode, clip_min=None, clip_max=None)
        if number == 0:  # in two passes, the first of which has found nothing yet
            compared.put(number, torch.zeros_like(trainer), engine, mask, ratio * 100)
        compared.put(number, trainer, engine, mask, ratio)
    return list(compared.curves(lambda value: value).values())


def test_curves_are_of_the_tokens_of_all_micro_batches_together():
    """Not a mean of the micro-batches' means."""
    differences = [log(2), log(5), log(2), log(10)]
    ratios = [2, 5, 0.5, 1, 0.1]
    for micro_batches in ([slice(0, 2)], [slice(0, 1), slice(1, 2)]):
        expected = [sum(differences) / 4, log(10), 0.1, sum(ratios) / 5, 5]
        assert curves("token_mask", *micro_batches) == pytest.approx(expected, rel=1e-5)
        expected[2:] = [0.05, (10 + 0.05) / 2, 10]
        assert curves("sequence_mask", *micro_batches) == pytest.approx(expected, rel=1e-5)


def test_where_no_token_counts_curves_are_0():
    compared = _Compared()
    compared.put(0, TRAINER, ENGINE, torch.zeros_like(MASK), torch.ones_like(TRAINER))
    assert set(compared.curves(lambda value: value).values()) == {0.0}


class Attention(torch.nn.Module):
    """Keeps its rate for the forward pass, as transformers' attention does."""

    def __init__(self, rate):
        super().__init__()
        self.attention_dropout = rate


@pytest.mark.parametrize(
    ("layer", "updates", "accumulation", "generation", "expected"),
    [
        pytest.param(Attention(0.0), 1, 4, 4, True, id="one-update"),
        pytest.param(torch.nn.Dropout(0.0), 1, 4, 2, True, id="several-batches-an-update"),
        pytest.param(Attention(0.0), 2, 4, 4, False, id="two-updates"),
        pytest.param(Attention(0.0), 1, 4, 8, False, id="an-update-in-the-middle"),
        pytest.param(torch.nn.Dropout(0.1), 1, 4, 4, False, id="dropout"),
        pytest.param(Attention(0.1), 1, 4, 4, False, id="dropout-in-attention"),
    ],
)
def test_the_updates_log_probs_serve_where_nothing_has_changed_since_sampling(
    layer, updates, accumulation, generation, expected
):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), layer)
    reuses = can_reuse(model, num_iterations=updates, accumulation_steps=accumulation, generation_steps=generation)
    assert reuses is expected
