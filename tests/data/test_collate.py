from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llmmod.data.collate import PadRight

NO = -100
EXAMPLES = [{"input_ids": [5, 6, 7, 2], "labels": [NO, NO, 7, 2]}, {"input_ids": [8, 2], "labels": [NO, 2]}]


def tokenizer(pad, eos=2):
    return SimpleNamespace(pad_token_id=pad, eos_token_id=eos)


@pytest.mark.parametrize(("pad", "filled"), [(0, 0), (2, 2), (None, 2)], ids=["pad", "pad-is-eos", "no-pad"])
def test_padding_is_on_the_right_and_the_real_eos_keeps_label_and_attention(pad, filled):
    batch = PadRight(tokenizer(pad))(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [8, 2, filled, filled]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[NO, NO, 7, 2], [NO, 2, NO, NO]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_the_width_is_a_multiple_where_one_is_asked_for():
    batch = PadRight(tokenizer(0), pad_to_multiple_of=8)(EXAMPLES)
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(2, 8)}
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 2]


def test_a_batch_of_like_lengths_is_not_padded():
    assert PadRight(tokenizer(0))(EXAMPLES[:1])["input_ids"].tolist() == [[5, 6, 7, 2]]


def test_padding_changes_no_loss(tiny_llama, tiny_tokenizer):
    eos = tiny_tokenizer.eos_token_id
    collate = PadRight(tokenizer(eos, eos))  # pad is eos
    examples = [{"input_ids": [9, 8, 7, 6, eos], "labels": [NO, NO, 7, 6, eos]}, {"input_ids": [9, eos], "labels": [NO, eos]}]

    def losses(batch):
        with torch.no_grad():
            logits = tiny_llama(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        per_token = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
        return per_token.sum(dim=1)

    alone = torch.cat([losses(collate([example])) for example in examples])
    assert torch.allclose(losses(collate(examples)), alone, atol=1e-4)  # float32, sums of at most three tokens' losses
    assert (alone > 0).all()
