"""Reward collators: the position of every token, by hand and against trl's own collator."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llmmod.data.collators import PrefixSharingRewardCollator, RewardCollator

PAIRS = [
    {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 9], "rejected_ids": [5, 9], "margin": 0.5},
    {"prompt_ids": [6], "chosen_ids": [7, 9], "rejected_ids": [8, 8, 8, 9], "margin": 0.0},
]
TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=9)


def test_a_row_has_each_prompt_once():
    row = PrefixSharingRewardCollator()(PAIRS)
    assert row["input_ids"].tolist() == [[1, 2, 3, 4, 9, 5, 9, 6, 7, 9, 8, 8, 8, 9]]
    assert row["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 2, 1, 2, 3, 4]]
    assert row["cu_seq_lens_q"].tolist() == [0, 5, 7, 10, 14]
    assert row["cu_seq_lens_k"].tolist() == [0, 5, 9, 12, 17]  # each answer attends to its prompt too
    assert (row["max_length_q"], row["max_length_k"]) == (5, 5)
    assert row["margin"].tolist() == [0.5, 0.0]


def test_padded_on_the_right_it_is_trls_own_batch():
    from trl.trainer.reward_trainer import DataCollatorForPreference

    whole = [
        {"margin": pair["margin"]} | {name: pair["prompt_ids"] + pair[name] for name in ("chosen_ids", "rejected_ids")} for pair in PAIRS
    ]
    expected, found = DataCollatorForPreference(pad_token_id=0)(whole), RewardCollator(TOKENIZER)(PAIRS)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_padded_on_the_left_real_tokens_end_the_row():
    batch = RewardCollator(TOKENIZER, side="left")(PAIRS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 9], [0, 0, 6, 7, 9], [0, 1, 2, 5, 9], [6, 8, 8, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1] * 5]


def test_lengths_are_rounded_up():
    assert RewardCollator(TOKENIZER, pad_to_multiple_of=8)(PAIRS)["input_ids"].shape == (4, 8)


@pytest.mark.parametrize("collator", [PrefixSharingRewardCollator(), RewardCollator(TOKENIZER)])
def test_without_a_margin_column_the_batch_has_none(collator):
    assert "margin" not in collator([{name: ids for name, ids in pair.items() if name != "margin"} for pair in PAIRS])
