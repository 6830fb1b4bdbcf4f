"""Operations on fake tensors, each kind of which torch works out once.

A model repeats the same operations in each layer, and a FakeTensorMode (torch 2.13) takes 0.2 ms for each, mostly for its own cache. Here
the outputs of a repeated operation are made like those of the first time, which takes less than half of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from llmmod.upstream import require_upstream

require_upstream(__name__)

# These share an input's memory in other ways than a view with the same dtype and a distance that follows from the shapes.
_EXCLUDED = ("aten::detach", "aten::alias", "aten::as_strided", "aten::lift_fresh")


def is_fake(tensor: Any) -> bool:
    """Whether it is a tensor without values."""
    return isinstance(tensor, FakeTensor)


class FakeOperations:
    """Runs operations on fake tensors: a call with function, arguments and keywords returns the outputs."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[Any, tuple[type | None, list[_Output]] | None] = {}  # signature -> the kind of the outputs, and each of them

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The outputs of an operation."""
        key = _signature((func, args, kwargs)) if _is_function_of_shapes(func) else None
        try:
            known = self._known.get(key)
        except TypeError:  # an argument can't be a part of a key
            key, known = None, None
        given = [*tensors_of(args), *tensors_of(kwargs.values())]
        if known is not None:
            kind, outputs = known
            with in_kernel_invocation_manager(self._mode):
                made = [output.tensor(given) for output in outputs]
            made = [FakeTensor(self._mode, tensor, output.device) for tensor, output in zip(made, outputs, strict=True)]
            return made[0] if kind is None else kind(made)
        with self._mode:
            out = func(*args, **kwargs)
        if key is not None and key not in self._known:
            shares = func.name() == "aten::_unsafe_view" or any(found.alias_info is not None for found in func._schema.returns)
            self._known[key] = _outputs_of(out, given, shares=shares)
        return out


class _Output(NamedTuple):
    """What an operation's output is like.

    Args:
        device: of the fake tensor.
        shape, stride, dtype: as a tensor's.
        source: the number of the input whose memory it shares, and by how many elements it begins later; None: it has its own.
    """

    device: torch.device
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    source: tuple[int, int] | None

    def tensor(self, given: Sequence[torch.Tensor]) -> torch.Tensor:
        """Such a tensor on the device `meta`."""
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        if self.source is not None:
            number, later = self.source
            made.set_(given[number].untyped_storage(), given[number].storage_offset() + later, self.shape, self.stride)
        return made


def tensors_of(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors in an operation's arguments or outputs, nested at most once."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (part for part in value if isinstance(part, torch.Tensor))


@cache
def _is_function_of_shapes(func: Any) -> bool:
    """Whether an operation's outputs, apart from their values, follow from the inputs' shapes, strides and dtypes."""
    by_values = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & {*func.tags}
    return not by_values and not func._schema.is_mutable and func.name().partition(".")[0] not in _EXCLUDED


def _signature(value: Any) -> Any:
    """A key that tells apart arguments for which an operation's outputs differ."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device, isinstance(value, FakeTensor)
    if isinstance(value, dict):
        value = [*value.items()]
    return tuple(map(_signature, value)) if isinstance(value, list | tuple) else (type(value), value)


def _outputs_of(out: Any, given: Sequence[torch.Tensor], *, shares: bool) -> tuple[type | None, list[_Output]] | None:
    """The kind of an operation's outputs (None: a single tensor), and what each is like; None if they can't be made again.

    Args:
        out: the outputs.
        given: the tensors among the inputs.
        shares: whether the operation says that its outputs share an input's memory.
    """
    outputs = [out] if isinstance(out, torch.Tensor) else out
    if not isinstance(outputs, list | tuple) or not all(isinstance(tensor, FakeTensor) for tensor in outputs):
        return None
    of_inputs, of_outputs = ([tensor.untyped_storage() for tensor in tensors] for tensors in (given, outputs))  # kept, as ids are compared
    numbers = {id(storage): number for number, storage in enumerate(of_inputs)}
    found: list[_Output] = []
    for tensor, storage in zip(outputs, of_outputs, strict=True):
        number = numbers.get(id(storage))
        if any(tensor is other for other in given) or (number is not None and given[number].dtype != tensor.dtype):
            return None
        if shares and number is None:
            return None
        source = None if number is None else (number, tensor.storage_offset() - given[number].storage_offset())
        found.append(_Output(tensor.fake_device, tuple(tensor.shape), tensor.stride(), tensor.dtype, source))
    own = [id(storage) for storage, output in zip(of_outputs, found, strict=True) if output.source is None]
    return None if len({*own}) != len(own) else (None if outputs is not out else type(out), found)
