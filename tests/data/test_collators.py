from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llmmod.data.collators import FlatteningCollator, PaddingCollator
from llmmod.models.packing import packed_attention

NO = -100
EXAMPLES = [{"input_ids": [5, 6, 7, 2], "labels": [NO, NO, 7, 2]}, {"input_ids": [8, 2], "labels": [NO, 2]}]


def tokenizer(pad, eos=2):
    return SimpleNamespace(pad_token_id=pad, eos_token_id=eos)


@pytest.mark.parametrize(("pad", "filled"), [(0, 0), (2, 2), (None, 2)], ids=["pad", "pad-is-eos", "no-pad"])
def test_padding_is_on_the_right_and_the_real_eos_keeps_label_and_attention(pad, filled):
    batch = PaddingCollator(tokenizer(pad))(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [8, 2, filled, filled]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[NO, NO, 7, 2], [NO, 2, NO, NO]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_pad_to_multiple_of():
    batch = PaddingCollator(tokenizer(0), pad_to_multiple_of=8)(EXAMPLES)
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(2, 8)}
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 2]


def test_a_batch_of_like_lengths_is_not_padded():
    assert PaddingCollator(tokenizer(0))(EXAMPLES[:1])["input_ids"].tolist() == [[5, 6, 7, 2]]


def test_padding_changes_no_loss(tiny_llama, tiny_tokenizer):
    eos = tiny_tokenizer.eos_token_id
    collate = PaddingCollator(tokenizer(eos, eos))  # pad is eos
    examples = [{"input_ids": [9, 8, 7, 6, eos], "labels": [NO, NO, 7, 6, eos]}, {"input_ids": [9, eos], "labels": [NO, eos]}]

    def losses(batch):
        with torch.no_grad():
            logits = tiny_llama(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        per_token = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
        return per_token.sum(dim=1)

    alone = torch.cat([losses(collate([example])) for example in examples])
    assert torch.allclose(losses(collate(examples)), alone, atol=1e-4)  # float32, sums of at most three tokens' losses
    assert (alone > 0).all()


def test_examples_stand_one_after_the_other_and_nothing_is_padding():
    batch = FlatteningCollator(tokenizer(0))(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2, 8, 2]]
    assert batch["labels"].tolist() == [[NO, NO, 7, 2, NO, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 4, 6]
    assert (batch["max_length_q"], batch["max_length_k"]) == (4, 4)
    assert "attention_mask" not in batch
    assert {batch[name].dtype for name in ("input_ids", "labels", "position_ids")} == {torch.int64}
    assert batch["cu_seq_lens_q"].dtype == torch.int32


def test_the_examples_of_a_packed_row_stay_separate():
    packed = {"input_ids": [5, 6, 7, 2, 8, 2], "labels": [NO, NO, 7, 2, NO, 2], "seq_lengths": [4, 2]}
    one, separate = FlatteningCollator()([packed, EXAMPLES[1]]), FlatteningCollator()([*EXAMPLES, EXAMPLES[1]])
    assert one.keys() == separate.keys()
    assert one.pop("segment_lengths") == separate["segment_lengths"]
    assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(separate[name])) for name in one)


def test_no_example_s_first_token_is_predicted_from_the_last_of_another():
    """If prompts are trained too, an example's first token has a label; the loss's shift would pair it with the token before it."""
    trained = {"input_ids": [5, 6], "labels": [5, 6]}
    assert FlatteningCollator()([trained, {**trained, "input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], "seq_lengths": [2, 2]}])[
        "labels"
    ].tolist() == [[NO, 6, NO, 6, NO, 8]]


def test_flattening_changes_no_loss(tiny_llama):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 300, (length,), generator=generator).tolist() for length in (7, 2, 12)]
    examples = [{"input_ids": tokens, "labels": tokens} for tokens in ids]

    def summed(batch):
        with torch.no_grad(), packed_attention(tiny_llama, batch):
            logits = tiny_llama(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return torch.nn.functional.cross_entropy(logits[0, :-1], batch["labels"][0, 1:], reduction="sum")

    alone = sum(summed(FlatteningCollator()([example])) for example in examples)
    assert torch.allclose(summed(FlatteningCollator()(examples)), alone, atol=1e-4)  # float32, 18 tokens


def test_packed_rows_of_one_length_end_in_padding_that_is_an_example_of_its_own():
    packed = {"input_ids": [5, 6, 7, 2, 8, 2], "labels": [NO, NO, 7, 2, NO, 2], "seq_lengths": [4, 2]}
    batch = FlatteningCollator(length=9)([packed])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2, 8, 2, 0, 0, 0]]
    assert batch["labels"].tolist() == [[NO, NO, 7, 2, NO, 2, NO, NO, NO]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 4, 6] + [9] * 61
    assert (batch["max_length_q"], batch["max_length_k"]) == (9, 9)


def test_examples_that_are_not_packed_are_not_padded():
    assert FlatteningCollator(length=9)(EXAMPLES)["input_ids"].shape == (1, 6)
