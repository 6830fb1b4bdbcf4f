from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stage=dpo", "dataset.packing=true"],
            "dataset.packing: true, but each row of this stage is a preference, and only conversations and documents share rows. "
            "Set it to false.",
        ),
        (
            ["stage=sft", "dataset.ranked=ends"],
            "dataset.ranked: only answers that are compared or judged can be ranked. Leave it out, or use stage=rm, dpo or kto.",
        ),
        (
            ["stage=dpo", "dataset.mask_prompt=false"],
            "dataset.mask_prompt: not read: this stage fixes which tokens are trained.",
        ),
        (
            ["dataset.drop_last_block=true"],
            "dataset.drop_last_block: only documents that are joined into blocks have a last one. Use stage=pt with dataset.packing=false.",
        ),
    ],
)
def test_options_of_other_kinds(told, overrides, message):
    assert told(*overrides) == [message]
