"""A stand-in for an accelerator: tensors with real numbers in the CPU's memory that report another device.

Operations that mix devices fail as on a GPU, and float64 fails as on Apple's. Operations that make the host wait are counted. Numbers,
including random ones, are the CPU's.

A tensor on such a device is a wrapper (`torch.Tensor._make_wrapper_subclass`) around a CPU tensor. As on a GPU, a CPU tensor
may take part if it doesn't have dimensions or is an index; any other has to be moved first.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
NAME = "standin"
CPU = torch.device("cpu")
# Operations in which the host waits for the device.
_WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero}
_MOVES = {aten.copy_, aten._to_copy}
_INDEXES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_SIZED_BY_VALUES = {aten.repeat_interleave}  # unless the output size is given


class Placed(torch.Tensor):
    """A tensor on a device that doesn't exist. For torch's compiled code, autograd above all, it is on the CPU."""

    @staticmethod
    def __new__(cls, inner, place):
        given = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device="cpu", requires_grad=inner.requires_grad, **given)
        self.inner, self.place, self.anywhere = inner, place, False
        return self

    def __tensor_flatten__(self):
        return ["inner"], self.place

    @staticmethod
    def __tensor_unflatten__(tensors, place, size, stride):
        return Placed(tensors["inner"], place)

    def __repr__(self):
        return f"Placed({self.inner!r}, device='{self.place}')"

    @property
    def device(self):
        return self.place

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        if not isinstance(value, Placed):
            raise RuntimeError(f"a parameter of {self.place} can't get data of {value.device}")
        torch.Tensor.data.__set__(self, value)
        self.inner, self.place = value.inner, value.place

    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        place, dtype, _, form = torch._C._nn._parse_to(*args, **{name: value for name, value in kwargs.items() if name != "copy"})
        found = self if place is None or _numbered(place) == self.place else _Move.apply(self, _numbered(place))
        given = {"dtype": self.dtype if dtype is None else dtype, "copy": kwargs.get("copy", False)}
        return torch.Tensor.to(found, **given, **({} if form is None else {"memory_format": form}))

    def cpu(self, *args):
        return self.to("cpu")

    def data_ptr(self):
        return self.inner.data_ptr()

    def storage(self):
        return self.inner.storage()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def tolist(self):
        WAITS["tolist"] += 1
        return self.inner.tolist()

    def numpy(self, **kwargs):
        raise TypeError(
            f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __deepcopy__(self, memo):
        copied = Placed(self.inner.detach().clone(), self.place)
        copied = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        memo[id(self)] = copied
        return copied

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def _numbered(place):
    place = torch.device(place)
    return place if place.type == "cpu" or place.index is not None else torch.device(place.type, 0)


class _Move(torch.autograd.Function):
    """Copies to another device, and the gradient back."""

    @staticmethod
    def forward(ctx, tensor, place):
        ctx.place = tensor.device
        return moved(tensor.detach(), place)

    @staticmethod
    def backward(ctx, gradient):
        return moved(gradient, ctx.place), None


def moved(tensor, place):
    """A copy on another device."""
    inner = (tensor.inner if isinstance(tensor, Placed) else tensor).clone()
    if place.type == "cpu":
        WAITS["to the CPU"] += 1
        return inner
    return Placed(inner, place)


WAITS: Counter[str] = Counter()


class _Mode(TorchDispatchMode):
    """Handles functions that create tensors, too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def dispatched(func, args, kwargs):
    """The result of an operation, on the device that it would have."""
    packet, asked = func.overloadpacket, kwargs.get("device")
    if packet.__name__.startswith(("_foreach", "_fused")):
        return _one_by_one(func, args, kwargs)
    flat = list(_tensors((args, kwargs)))
    placed = [tensor for tensor in flat if isinstance(tensor, Placed)]
    here = next((tensor.place for tensor in sorted(placed, key=lambda tensor: tensor.anywhere)), None)
    if here is None and (asked is None or torch.device(asked).type == "cpu"):
        found = func(*args, **kwargs)
        if flat or torch._C._current_graph_task_id() == -1 or not isinstance(found, torch.Tensor):
            return found
        # Autograd, for which all tensors are on the CPU, creates zeros for missing gradients, which may be combined with any device.
        zeros = Placed(found, torch.device(NAME, 0))
        zeros.anywhere = True
        return zeros
    flat = [tensor for tensor in flat if not getattr(tensor, "anywhere", False)]
    if packet in _INDEXES:
        indices = [tensor for tensor in args[1] if tensor is not None]
        if any(tensor.device not in (CPU, args[0].device) for tensor in indices):
            raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor ({args[0].device})")
        WAITS["index by a mask"] += any(tensor.dtype in (torch.bool, torch.uint8) for tensor in indices)
        flat = [tensor for tensor in flat if not any(tensor is index for index in indices)]
    if packet not in _MOVES and (wrong := [t for t in flat if t.device != here and (t.device != CPU or t.dim())]):
        where = f"{here} and {wrong[0].device}"
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {where}! ({func})")
    if packet in _WAITS or (packet in _SIZED_BY_VALUES and kwargs.get("output_size") is None):
        WAITS[str(packet)] += 1
    in_autograd = here is not None and torch._C._current_graph_task_id() != -1 and packet not in _MOVES
    there = here if asked is None or in_autograd else _numbered(asked)
    if packet is aten.copy_:
        there = args[0].device
        WAITS["to the CPU"] += there == CPU and args[1].device != CPU
    inputs = {id(tensor.inner): tensor for tensor in placed}
    plain_args, plain = _changed((args, kwargs), Placed, _inner)
    if "device" in plain:
        plain["device"] = CPU
    with torch._C._DisableTorchDispatch():
        found = func(*plain_args, **plain)
    if there != CPU and any(value.dtype is torch.float64 for value in _tensors(found)):
        raise TypeError(f"Cannot convert a tensor of {there} to float64, which it doesn't support ({func})")  # the message of Apple's GPUs
    if there == CPU:
        return args[0] if packet is aten.copy_ else found
    return _changed(found, torch.Tensor, lambda tensor: inputs[id(tensor)] if id(tensor) in inputs else Placed(tensor, there))


def _inner(tensor):
    return tensor.inner


def _tensors(value):
    """The tensors of an operation's arguments or results. torch.utils._pytree would take half of the time of a training."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _changed(value, kind, change):
    """Arguments or results with each tensor of a kind changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _changed(item, kind, change) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return (list if isinstance(value, list) else tuple)(_changed(item, kind, change) for item in value)
    return value


def _one_by_one(func, args, kwargs):
    """For an operation on lists of tensors, each result on the device of the first list's tensor; torch groups its inputs by device."""
    plain_args, plain = _changed((args, kwargs), Placed, _inner)
    with torch._C._DisableTorchDispatch():
        found = func(*plain_args, **plain)
    if func.overloadpacket.__name__.endswith("_"):
        return None
    places = [tensor.device for tensor in args[0]]
    return [tensor if place == CPU else Placed(tensor, place) for tensor, place in zip(found, places, strict=True)]


class _Module:
    """`torch.standin`, the module that torch and accelerate use."""

    present = False
    count = 2

    def is_available(self):
        return self.present

    is_initialized = is_available

    def device_count(self):
        return self.count if self.present else 0

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        """Its numbers are the CPU's."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self):
        return _MODULE.present

    def has_primary_context(self, number):
        return _MODULE.present

    def is_built(self):
        return True


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self):
        return torch._C._autograd.DeviceType.PrivateUse1


_MODULE, _HOOK, _GUARD = _Module(), _Hook(), _Guard()


@cache
def _register():
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _MODULE)
    torch._C._acc.register_python_privateuseone_hook(_HOOK)
    torch._C._acc.register_python_privateuseone_device_guard(_GUARD)


@contextmanager
def standing_in():
    """A context with two pretended accelerators; trainers place models and batches on the first.

    Yields the counts of operations that make the host wait.
    """
    import accelerate
    import transformers

    _register()
    place, own = torch.device(NAME, 0), transformers.TrainingArguments.device.fget
    swapped, lifted = torch.__future__.get_swap_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    WAITS.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_MODULE, "present", True)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor, *args: tensor)
        patch.setattr(transformers.TrainingArguments, "device", property(lambda self: (own(self), place)[1]))
        patch.setattr(accelerate.Accelerator, "device", property(lambda self: place))
        torch.__future__.set_swap_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with _Mode():
                yield WAITS
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)
            torch.__future__.set_swap_module_params_on_conversion(swapped)
