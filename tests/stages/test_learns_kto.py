"""KTO learns: what an animal says is wanted in a wording that training never shows, beyond what chance explains, whatever is trained.

An animal is right where the rewards of its own sound are above those of the five others in the mean; by chance one of two is. Rule: of six
animals with three seeds, 18 in all, at least 15 are right, which chance does once in 260 times, and the loss falls with each seed.

The settings were chosen with other seeds. With those that nothing was chosen with, 21 to 26, it holds in both threes for each way: of 36
animals 32 (full), 32 (freeze), 33 (lora) and 33 (qlora) are right.
"""

from __future__ import annotations

import pytest
from preferences import learnt
from ways import WAYS

RATE = {"full": 5e-3, "freeze": 1e-2, "lora": 1e-2, "qlora": 1e-2}
EPOCHS = {"full": 6.0, "freeze": 4.0, "lora": 6.0, "qlora": 6.0}


@pytest.mark.parametrize("way", WAYS)
def test_own_sounds_are_wanted_where_they_were_never_asked_for_so(kto_trainer, tiny_llama, way):
    changes = {"learning_rate": RATE[way], "num_train_epochs": EPOCHS[way], "per_device_train_batch_size": 8}
    right, fall = learnt(kto_trainer, tiny_llama, way, seeds=(1, 2, 3), **changes)
    assert right >= 15
    assert fall < 0.5
