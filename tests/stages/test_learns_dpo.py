"""DPO learns: what an animal says is preferred in a wording that training never shows, beyond what chance explains, whatever is trained.

An animal is right where its own sound's margin over the five others is above 0 in the mean; by chance that is so for one of two. Rule: of
six animals with three seeds, 18 in all, at least 15 are right, which chance does once in 260 times, and the loss falls with each seed.

The rule was set with these seeds. With seeds 11 to 16, that nothing was chosen with, 32 (full), 30 (freeze), 32 (lora) and 33 (qlora) of 36
animals are right, which chance does once in 28,000 times or more seldom; with freeze, one of the two threes has 14 of 18.
"""

from __future__ import annotations

import pytest
from preferences import learnt
from ways import WAYS


@pytest.mark.parametrize("way", WAYS)
def test_own_sounds_are_preferred_where_they_were_never_asked_for_so(dpo_trainer, tiny_llama, way):
    right, fall = learnt(dpo_trainer, tiny_llama, way, seeds=(1, 2, 3), num_train_epochs=4.0)
    assert right >= 15
    assert fall < 0.5
