"""Operations on fake tensors that are made again are like torch's own: shape, strides, dtype, and whose memory they share."""

from __future__ import annotations

import pytest
import torch

from llmmod.steps.plan.model import FakeOperations

aten = torch.ops.aten
OPERATIONS = [
    (aten.mm.default, (0, 1)),
    (aten.t.default, (0,)),
    (aten.slice.Tensor, (0, 1, 2, 5)),
    (aten.select.int, (0, 0, 1)),
    (aten._unsafe_view.default, (0, [2, 2, 6])),
    (aten.split.Tensor, (0, 2)),
    (aten.expand.default, (2, [3, 4])),
    (aten.add.Tensor, (0, 2)),
    (aten._to_copy.default, (0,)),
    (aten.detach.default, (0,)),
    (aten.max.dim, (0, 1)),
]
INPUTS = {aten.mm.default: 2}


def described(out, given):
    outputs = [out] if isinstance(out, torch.Tensor) else list(out)
    storages = [tensor.untyped_storage() for tensor in given]
    return [
        (type(out), o.shape, o.stride(), o.dtype, o.device, o.storage_offset(), [o.untyped_storage()._cdata == s._cdata for s in storages])
        for o in outputs
    ]


@pytest.mark.parametrize(("func", "args"), OPERATIONS, ids=lambda value: str(value) if callable(value) else "")
def test_a_repeated_operation_gives_what_torch_gives(func, args):
    run = FakeOperations()
    with run._mode as mode:
        whole = torch.ones(8, 6)
        given = [whole[2:6], torch.ones(6, 3), torch.ones(1, 1) if func is aten.add.Tensor else torch.ones(1, 4)]
    places = INPUTS.get(func, 2 if func is aten.add.Tensor else 1)
    args = tuple(given[arg] if place < places and isinstance(arg, int) else arg for place, arg in enumerate(args))
    with mode:
        expected = described(func(*args), given)
    assert described(run(func, args, {}), given) == expected
    assert described(run(func, args, {}), given) == expected
