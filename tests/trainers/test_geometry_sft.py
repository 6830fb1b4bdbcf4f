"""The gradient of an optimizer step of pt and sft doesn't depend on how examples are divided, padded, packed or ordered."""

from __future__ import annotations

import geometry
import pytest
from datasets import Dataset

from llmmod.data.collators import FlatteningCollator, PaddingCollator
from llmmod.data.dataset.packing import PackedDataset
from llmmod.trainers.sft import SftTrainer

LENGTHS = ((9, 4), (3, 1), (20, 12), (2, 3), (6, 26), (4, 14), (11, 1))  # tokens of a prompt and of its answer
CAPACITY = 40


class PadLeft(PaddingCollator):
    """The same rows padded on the left, with positions that start at a row's first token, which doesn't have a label."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            for name in ("input_ids", "attention_mask", "labels"):
                batch[name][row] = batch[name][row].roll(-length)
            batch["labels"][row, -length] = -100
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return batch


@pytest.fixture(params=["pt", "sft"])
def examples(request):
    """For pt, documents with every token trained; for sft, the same ones with only the answers trained."""
    token = iter(range(5, 400))
    rows = [([next(token) for _ in range(asked + said)], asked) for asked, said in LENGTHS]
    return [{"input_ids": ids, "labels": ids if request.param == "pt" else [-100] * asked + ids[asked:]} for ids, asked in rows]


@pytest.fixture
def gradient(toy_trainer, examples):
    """A function: changes of `training.*` -> the gradient of one step."""

    def of(train=None, collator=FlatteningCollator, **changes):
        def make(**given):
            trainer = toy_trainer(train=Dataset.from_list(examples) if train is None else train, **given)
            trainer.data_collator = collator(trainer.processing_class)
            return trainer

        return geometry.step_gradient(make, **changes)

    return of


def test_however_the_examples_are_divided_padded_packed_and_ordered(gradient, examples):
    expected = gradient(collator=PaddingCollator, **geometry.divided(8, 1))
    packed = PackedDataset(Dataset.from_list(examples), CAPACITY)
    assert 1 < len(packed) < len(examples)
    by_length = Dataset.from_list(sorted(examples, key=lambda example: -len(example["input_ids"])))
    ways = {
        **{f"a row, {batch} x {steps}": {**geometry.divided(batch, steps)} for batch, steps in geometry.DIVISIONS},
        "padded right": {"collator": PaddingCollator, **geometry.divided(2, 4)},
        "padded left": {"collator": PadLeft, **geometry.divided(2, 4)},
        "padded left together": {"collator": PadLeft, **geometry.divided(8, 1)},
        "packed": {"train": packed, **geometry.divided(1, len(packed))},
        "packed together": {"train": packed, **geometry.divided(len(packed), 1)},
        "longest first": {"train": by_length, **geometry.divided(2, 4)},
    }
    for name, changes in ways.items():
        assert geometry.apart(gradient(**changes), expected) < 1e-6, name


def test_a_mean_of_the_batches_means_would_be_another(gradient, monkeypatch):
    """Shows that the comparison can fail: the mean of the batches' means gives another gradient."""
    expected = gradient(**geometry.divided(8, 1))
    monkeypatch.setattr(SftTrainer, "_get_num_items_in_batch", lambda *args: None)
    assert geometry.apart(gradient(**geometry.divided(2, 4)), expected) > 1e-2
