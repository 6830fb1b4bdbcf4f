"""Each row has the same total weight, also if it has several pairs or judged answers.

The oracle repeats pairs: a row of three pairs and a row of one have the weights of a dataset without weights that contains the three pairs
once and the other pair three times. So the tested code doesn't compute any of the expected numbers.
"""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from geometry import DIVISIONS, apart, divided, step_gradient
from preferences import RM_COLLATORS

DPO_COLLATORS = [{"_target_": f"llmmod.data.collators.{name}"} for name in ("PrefixSharingCollator", "PreferenceCollator")]
LENGTHS = [(9, 4, 7), (3, 1, 5), (20, 12, 2), (2, 3, 3), (6, 6, 1), (4, 14, 16), (11, 1, 1), (5, 2, 8)]
# Rows of one, three and four pairs. So that each row counts the same, their pairs are repeated twelve, four and three times.
OF_ROW = [1, 3, 3, 3, 4, 4, 4, 4]
TIMES = [12 // count for count in OF_ROW]


def pairs():
    token = iter(range(5, 400))
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{name: [next(token) for _ in range(n)] for name, n in zip(names, found, strict=True)} for found in LENGTHS]


def answers():
    return [
        {"prompt_ids": p["prompt_ids"], "completion_ids": p["chosen_ids" if n % 2 else "rejected_ids"], "label": bool(n % 2)}
        for n, p in enumerate(pairs())
    ]


def weighed(examples):
    return Dataset.from_list([example | {"weight": 1 / count} for example, count in zip(examples, OF_ROW, strict=True)])


def repeated(examples):
    return Dataset.from_list([example for example, times in zip(examples, TIMES, strict=True) for _ in range(times)])


def moved(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter) * parameter.std()


STAGES = {
    "rm": [{"collator": one} for one in RM_COLLATORS],
    "dpo": [
        *({"collator": one} for one in DPO_COLLATORS),
        {"loss_type": ["hinge", "ipo"], "loss_weights": [1.0, 0.5]},
        {"use_weighting": True},
    ],
    "kto": [{"loss_type": "apo_zero_unpaired", "desirable_weight": 1.5}],
}
CASES = [pytest.param(stage, changes, id=f"{stage}-{n}") for stage, cases in STAGES.items() for n, changes in enumerate(cases)]


@pytest.fixture
def trainer_of(rm_trainer, dpo_trainer, kto_trainer, tiny_llama):
    """A function: stage, training data -> a trainer."""

    def make(stage, train, **changes):
        evaluation = train.select(range(len(train))) if isinstance(train, Dataset) else None  # the same object means: no training
        return {"rm": rm_trainer, "dpo": dpo_trainer, "kto": kto_trainer}[stage](train=train, evaluation=evaluation, **changes)

    return make


@pytest.mark.parametrize(("stage", "changes"), CASES)
def test_a_steps_gradient_is_that_of_rows_that_count_once(trainer_of, stage, changes):
    examples = answers() if stage == "kto" else pairs()

    def gradient(train, batch, steps):
        return step_gradient(lambda **given: trainer_of(stage, train, **given), **(changes | divided(batch, steps)))

    expected = gradient(repeated(examples), sum(TIMES), 1)
    for batch, steps in DIVISIONS:
        assert apart(gradient(weighed(examples), batch, steps), expected) < 1e-4
    alike = gradient(Dataset.from_list(examples), 8, 1)
    assert apart(alike, expected) > 0.05, "the weights change the gradient at all"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("stage", "changes"), [*CASES, pytest.param("dpo", {"loss_type": ["sigmoid", "sft"]}, id="dpo-sft")])
def test_an_evaluation_is_that_of_rows_that_count_once(trainer_of, tiny_llama, tiny_reward, stage, changes, batch):
    examples = answers() if stage == "kto" else pairs()

    def metrics(rows):
        trainer = trainer_of(stage, rows, per_device_eval_batch_size=batch, **changes)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        moved(trainer.model)
        found = trainer.evaluate()
        trainer.model.load_state_dict(before)
        return {name: value for name, value in found.items() if not name.endswith(("runtime", "per_second", "time"))}

    found, expected = metrics(weighed(examples)), metrics(repeated(examples))
    over_tokens = ("eval_entropy", "eval_logits/chosen", "eval_logits/rejected") if stage == "kto" else ()
    for name in over_tokens:
        found.pop(name), expected.pop(name)
    assert len(found) >= 5
    assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_rows_of_one_pair_train_bit_for_bit_as_without_weights(trainer_of, stage):
    examples = answers() if stage == "kto" else pairs()
    changes = divided(2, 4) | ({"loss_type": "kto"} if stage == "kto" else {})
    one, other = (
        step_gradient(lambda rows=rows, **given: trainer_of(stage, rows, **given), **changes)
        for rows in (Dataset.from_list(examples), Dataset.from_list([example | {"weight": 1.0} for example in examples]))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stage", STAGES)
def test_of_a_stream_the_weights_are_scaled_by_the_step(trainer_of, stage):
    examples = answers() if stage == "kto" else pairs()
    changes = divided(2, 4) | ({"loss_type": "apo_zero_unpaired"} if stage == "kto" else {})

    def gradient(train):
        return step_gradient(lambda **given: trainer_of(stage, train, **given), **changes)

    assert apart(gradient(weighed(examples).to_iterable_dataset()), gradient(weighed(examples))) < 1e-4
