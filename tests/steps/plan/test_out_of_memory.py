"""The message if a training runs out of memory."""

from __future__ import annotations

import pytest
import torch

from llmmod.config.schema.model import FullConf
from llmmod.config.schema.training import SftConf
from llmmod.errors import RunError
from llmmod.steps.plan.figures import SAID, memory_explained


@pytest.fixture
def session(make_session):
    """A session with a micro-batch of 8."""
    training = SftConf(stage="sft", per_device_train_batch_size=8, gradient_checkpointing=False)
    made = make_session(None, training=training, finetune=FullConf(name="full"))
    left = {}
    made.put, made.get = left.__setitem__, left.get
    made.conf = lambda step, part: getattr(made.root, part)
    return made


def test_a_device_without_memory_names_the_keys_to_lower_and_what_was_planned(session):
    session.put(SAID, "30.0 GB on a GPU, which has 24.0 GB: it does NOT fit")
    with pytest.raises(RunError) as raised, memory_explained(session, "train"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert str(raised.value) == (
        "training.per_device_train_batch_size: 8, and memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB.); the plan was: "
        "30.0 GB on a GPU, which has 24.0 GB: it does NOT fit. Try 4 with training.gradient_accumulation_steps=2, which trains the same. "
        "Use less memory: model.gradient_checkpointing=true (slower), dataset.cutoff_len, finetune=lora."
    )


def test_a_real_allocation_that_no_machine_has_is_recognised(session):
    with pytest.raises(RunError, match="it was not planned: 'pipeline=\\[plan\\]' shows"), memory_explained(session, "train"):
        torch.empty(2**55)


def test_other_errors_stay_what_they_are(session):
    with pytest.raises(RuntimeError, match="shape") as raised, memory_explained(session, "train"):
        raise RuntimeError("shape mismatch")
    assert not isinstance(raised.value, RunError)
