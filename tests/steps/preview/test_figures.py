"""A preview's numbers: counted by hand, with the same optimizer steps as in transformers' own Trainer."""

from __future__ import annotations

import pytest
from datasets import Dataset

from llmmod.config.schema.training import SftConf
from llmmod.data.dataset.packing import PackedDataset
from llmmod.steps.preview.figures import examples_of, measure, measured, plan

ROWS = [([1, 2, 3], [-100, 2, 3]), ([4, 5], [-100, 5]), ([6], [-100]), ([7, 8, 9, 10], [-100, -100, -100, 10])]
DATA = Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in ROWS])


def conf(**changes):
    return SftConf(stage="sft", use_cpu=True, **changes)


@pytest.mark.parametrize(
    ("data", "lengths", "trained"), [(DATA, [3, 2, 1, 4], 4), (DATA.select([3, 0]), [4, 3], 3)], ids=["all", "selected"]
)
def test_lengths_and_labels_are_counted(data, lengths, trained):
    figures = measure(data)
    assert (list(figures.lengths), figures.trained_tokens) == (lengths, trained)
    assert figures.trained_share == trained / sum(lengths)


def test_a_stream_is_measured_at_its_beginning():
    stream = DATA.to_iterable_dataset()
    first = examples_of(stream, streamed=3)
    numbers = measured(stream, first, conf(max_steps=4), smoke=False, packs=1)
    assert list(numbers.figures.lengths) == [3, 2, 1]
    assert not numbers.figures.complete
    assert (numbers.packs, numbers.plan.rows, numbers.plan.steps) == (None, None, 4)


def test_packed_examples_are_counted_and_steps_take_rows():
    packed = PackedDataset(DATA, 5)
    numbers = measured(packed, examples_of(packed), conf(per_device_train_batch_size=1, num_train_epochs=2), smoke=False, packs=2)
    # 4+1, 3+2: two full rows of five.
    assert (numbers.figures.examples, numbers.figures.tokens) == (4, 10)
    assert (numbers.packs.rows, numbers.packs.capacity, numbers.packs.fill) == (2, 5, 1.0)
    assert sorted(sorted(lengths) for lengths in numbers.packs.first) == [[1, 4], [2, 3]]
    assert (numbers.plan.rows, numbers.plan.steps) == (2, 4)


# rows, training.*, optimizer steps, epochs
PLANS = {
    "whole batches": (32, {"per_device_train_batch_size": 8, "num_train_epochs": 3}, 12, 3),
    "a last batch that isn't full": (33, {"per_device_train_batch_size": 8, "num_train_epochs": 1}, 5, 1),
    "which is dropped": (33, {"per_device_train_batch_size": 8, "num_train_epochs": 1, "dataloader_drop_last": True}, 4, 1),
    "accumulated": (33, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "num_train_epochs": 2}, 4, 2),
    "half an epoch, to the end of a step": (33, {"per_device_train_batch_size": 8, "num_train_epochs": 0.5}, 3, 0.6),
    "max_steps": (32, {"per_device_train_batch_size": 8, "max_steps": 6}, 6, 1.5),
    "fewer rows than a batch": (3, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "num_train_epochs": 1}, 1, 1),
}


@pytest.mark.parametrize("name", PLANS)
def test_steps_and_epochs(name):
    rows, changes, steps, epochs = PLANS[name]
    planned = plan(conf(**changes), rows, smoke=False)
    assert (planned.steps, planned.epochs) == (steps, pytest.approx(epochs))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_epochs": 1.5, "gradient_accumulation_steps": 2},
        {"num_train_epochs": 1.0, "dataloader_drop_last": True, "gradient_accumulation_steps": 3},
        {"num_train_epochs": 1.0, "max_steps": 3},
    ],
    ids=["epochs and a half", "dropped", "max_steps"],
)
def test_the_trainer_counts_the_same(toy_trainer, toy_splits, sft_conf, changes):
    trainer = toy_trainer(**changes)
    expected = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    assert plan(sft_conf(use_cpu=True, **changes), len(toy_splits.train), smoke=False).steps == expected


def test_a_rehearsal_takes_two_steps_of_small_batches():
    planned = plan(conf(per_device_train_batch_size=8, gradient_accumulation_steps=4), 8, smoke=True)
    assert (planned.per_device, planned.accumulation, planned.steps) == (2, 2, 2)


def test_devices_share_a_step(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    planned = plan(conf(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1), 64, smoke=False)
    assert (planned.batch, planned.steps) == (16, 4)


@pytest.mark.parametrize(("max_steps", "steps"), [(7, 7), (-1, None)])
def test_a_streams_steps_are_known_only_with_max_steps(max_steps, steps):
    planned = plan(conf(max_steps=max_steps), None, smoke=False)
    assert (planned.steps, planned.epochs) == (steps, None)


def test_a_pair_s_prompt_is_counted_once_and_its_length_is_that_of_the_longer_answer():
    pairs = Dataset.from_list(
        [
            {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5, 6]},
            {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]},
        ]
    )
    figures = measure(pairs)
    assert (list(figures.lengths), figures.trained_tokens, figures.tokens) == ([5, 3], 7, 10)
    prompts = measure(pairs.select_columns(["prompt_ids"]))
    assert (list(prompts.lengths), prompts.trained_tokens, prompts.tokens) == ([2, 1], 0, 3)


def test_steps_of_ppo_are_those_of_its_rollouts():
    """The number of steps from its sampler's batches, as transformers' Trainer counts them."""
    from llmmod.config.schema.training import PpoConf
    from llmmod.trainers.online.base import RolloutSampler

    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_mini_batches": 2, "num_ppo_epochs": 4}
    sampler = RolloutSampler(50, size=2 * 3 * 2, times=2 * 4 * 3, seed=0)
    expected = len(sampler) // (12 * 3)  # a batch has a rollout's prompts, and three batches are a step
    assert plan(PpoConf(stage="ppo", use_cpu=True, num_train_epochs=1, **batches), 50, smoke=False).steps == expected == 40
