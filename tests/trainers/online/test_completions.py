"""Rows of prompts with answers, and a model's log-probabilities against a naive forward of each answer alone, in float64."""

from __future__ import annotations

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from llmmod.trainers.online.completions import completion_rows, score_completions

PROMPTS = [[11, 12, 13], [21], [31, 32, 33, 34, 35, 36]]
LENGTHS = [4, 1, 2]


@pytest.fixture
def answers():
    mask = torch.arange(4)[None] < torch.tensor(LENGTHS)[:, None]
    return torch.where(mask, torch.arange(100, 112).view(3, 4), 0), mask


def test_rows_by_hand(answers):
    batch = completion_rows(PROMPTS[:2], answers[0][:2], answers[1][:2], pad_id=9)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 100, 101, 102, 103], [21, 104, 9, 9, 9, 9, 9]]
    assert batch["attention_mask"].sum(1).tolist() == [7, 2]
    assert batch["predicted_from"].tolist() == [[2, 3, 4, 5], [0, 0, 0, 0]]
    left = completion_rows(PROMPTS[:2], answers[0][:2], answers[1][:2], pad_id=9, left=True)
    assert left["input_ids"].tolist() == [[11, 12, 13, 100, 101, 102, 103], [9, 9, 9, 9, 9, 21, 104]]
    assert left["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0, 1]]
    assert left["predicted_from"].tolist() == [[2, 3, 4, 5], [5, 0, 0, 0]]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_scores_are_those_of_each_answer_alone(tiny_llama, answers, left, temperature):
    head = torch.nn.Linear(32, 1)
    ids, mask = answers
    add_fused_lm_head(tiny_llama, temperature=temperature, outputs=("log_probs", "entropy"))
    found = score_completions(tiny_llama, completion_rows(PROMPTS, ids, mask, pad_id=0, left=left), value_head=head)
    for row, (prompt, count) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        whole = torch.tensor([[*prompt, *ids[row, :count].tolist()]])
        output = tiny_llama(input_ids=whole, output_hidden_states=True)
        before = slice(len(prompt) - 1, len(prompt) + count - 1)
        log_p = torch.log_softmax(output.logits[0, before].double() / temperature, -1)
        expected = {
            "logps": log_p.gather(1, ids[row, :count, None])[:, 0],
            "entropy": -(log_p.exp() * log_p).sum(-1),
            "values": head(output.hidden_states[-1][0, before])[:, 0],
        }
        for name, values in expected.items():
            told_of = getattr(found, name)[row]
            torch.testing.assert_close(told_of[:count].double(), values.double(), rtol=1e-5, atol=1e-5)
            assert not told_of[count:].any()


def test_only_answers_reach_the_head(tiny_llama, answers, monkeypatch):
    rows = []
    real = torch.nn.functional.linear

    def counted(hidden, weight, bias=None):
        if weight is tiny_llama.lm_head.weight:
            rows.append(hidden.shape[:-1].numel())
        return real(hidden, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    add_fused_lm_head(tiny_llama)
    score_completions(tiny_llama, completion_rows(PROMPTS, *answers, pad_id=0))
    assert rows == [sum(LENGTHS)]
