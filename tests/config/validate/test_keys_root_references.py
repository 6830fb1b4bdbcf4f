"""Arguments of a step that refer to the root's finetune and model although the step has its own."""

from __future__ import annotations

OWN = ("experiment=stages", "+finetune@steps.second.finetune=full")
SAID = (
    "steps.second.training.learning_rate: comes from finetune.learning_rate=0.003 of the root, but steps.second.finetune.learning_rate is "
    "2e-05. Set it."
)


def test_an_adapter_s_rate_for_a_step_that_trains_all_weights(told):
    assert told(*OWN) == [SAID]


def test_a_rate_that_was_set_and_one_that_is_the_same(told):
    assert told(*OWN, "steps.second.training.learning_rate=1e-5") == []
    assert told(*OWN, "steps.second.finetune.learning_rate=3e-3") == []


def test_a_step_that_continues_another_step_s_model_keeps_that_model_s_settings(told):
    assert told("experiment=stages", "steps.second.model.from_step=first") == []


def test_a_rate_that_is_a_part_of_the_adapter_s(told):
    data = ("dataset=llmmod_qa", "+dataset@steps.second.dataset=llmmod_pairs")  # the rows that the second step's stage needs
    assert told(*OWN, *data, "stage@steps.second.training=dpo") == [SAID]
