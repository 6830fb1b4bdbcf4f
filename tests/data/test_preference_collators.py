"""Collators for pairs: padded batches against trl's own collator, and a row that shares prompts against one worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from llmmod.data.collators import PreferenceCollator, PrefixSharingCollator

TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=9)
PAIRS = [
    {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
    {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [10, 11, 12]},
]


@pytest.mark.parametrize("multiple", [None, 8])
def test_padded_pairs_are_those_of_trl(multiple):
    found, expected = PreferenceCollator(TOKENIZER, multiple)(PAIRS), DataCollatorForPreference(0, pad_to_multiple_of=multiple)(PAIRS)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_a_shared_row_by_hand():
    batch = PrefixSharingCollator(TOKENIZER)(PAIRS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 3, 7, 7, 10, 11]]
    assert batch["shift_labels"].tolist() == [[-100, -100, 4, 5, 6, 8, 10, 11, 12]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 0, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 5, 6, 9]
    assert batch["cu_seq_lens_k"].tolist() == [0, 4, 7, 8, 11]  # 6 attends to two more tokens of its prompt; the other prompt has one token
    assert (batch["max_length_q"], batch["max_length_k"]) == (4, 4)
    assert batch["completion_mask"].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize("collator", [PreferenceCollator, PrefixSharingCollator])
def test_reference_logps_are_kept(collator):
    known = [pair | {"ref_chosen_logps": -1.5, "ref_rejected_logps": -n} for n, pair in enumerate(PAIRS)]
    batch = collator(TOKENIZER)(known)
    assert batch["ref_chosen_logps"].tolist() == [-1.5, -1.5]
    assert batch["ref_rejected_logps"].tolist() == [0.0, -1.0]
    assert "ref_chosen_logps" not in collator(TOKENIZER)(PAIRS)
