"""The memory of a program, operation by operation, while it runs on fake tensors.

`Tracer` is a dispatch mode. Floating-point tensors are fake (`torch._subclasses.FakeTensor`: a shape, a dtype and a device), so a model of
any size costs nothing. Integers and masks are real: the traced code may read them, and indexing with a mask gives the true shape. A number
read from a fake tensor is 1. A storage counts, in its part, from its first use until nothing refers to it. So the effects of autograd,
checkpointing and the optimizer are included.

The live bytes are exact: for a Llama with 135M weights they equal the figures of torch's profiler. `heap` computes the memory of the
process from them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from llmmod.steps.plan.devices import Heap
from llmmod.steps.plan.model import FakeOperations, is_fake, tensors_of
from llmmod.upstream import replaced, require_upstream

require_upstream(__name__)

PARTS = ("weights", "reference", "gradients", "optimizer", "activations", "logits")
_BY_MASK = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
_IN_PLACE = ("aten::_fused_adamw_", "aten::_fused_adam_", "aten::_fused_sgd_", "aten::_fused_adagrad_")  # without a kernel for fake tensors

@dataclass
class Peak:
    """The peak memory of a phase of a program, bytes.

    Args:
        parts: its parts, by the names in `PARTS`.
        heap: the peak of the process's memory in that phase, in addition to its memory before.
    """

    parts: Counter[str] = field(default_factory=Counter)
    heap: int = 0

    @property
    def live(self) -> int:
        """The sum of all parts."""
        return self.parts.total()


class Tracer(TorchDispatchMode):  # type: ignore[misc,no-untyped-call]
    """Counts memory and FLOPs, see the module's docstring. `phase` names the current phase; `peaks` has the peak of each phase.

    `records` is true in a forward pass with gradients, also inside a `torch.autograd.Function`, where torch turns gradients off.

    Args:
        vocabulary: tensors with this last dimension are logits.
        scratch: returns the bytes of a matrix product's workspace, given its left and right factor.
    """

    def __init__(self, vocabulary: int = 0, *, scratch: Callable[[Any, Any], int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = FakeOperations()
        self._known: dict[int, tuple[int, int, str]] = {}  # id of a storage -> its number, bytes, part
        self._now: Counter[str] = Counter()
        self._count, self._scratch, self._heap = 0, scratch, Heap()
        self.vocabulary = vocabulary
        self.phase, self.records = "start", False
        self._paused, self._recomputes, self._graph = False, False, 0
        self.peaks: dict[str, Peak] = {}
        self.flops: Counter[str] = Counter()

    def restart(self, *, recomputes: bool = False) -> None:
        """Forget all peaks, and start with a heap that has the current tensors and is not fragmented.

        Args:
            recomputes: whether gradient checkpointing repeats the forward pass, of which the graph then keeps little.
        """
        self._recomputes = recomputes
        self.peaks, self.flops, self.phase, self._heap = {}, Counter(), "start", Heap()
        for number, size, _ in self._known.values():
            self._heap.take(number, size)

    def held(self, part: str) -> int:
        """The current size of a part, bytes."""
        return self._now[part]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which operations run without the tracer."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def tag(self, tensors: Any, part: str) -> None:
        """Assign tensors, however nested, to a part."""
        if isinstance(tensors, torch.Tensor):
            key = id(tensors.untyped_storage())
            if key in self._known:
                number, size, before = self._known[key]
                self._now[before] -= size
                self._now[part] += size
                self._known[key] = (number, size, part)
        elif isinstance(tensors, Mapping | list | tuple):
            for value in tensors.values() if isinstance(tensors, Mapping) else tensors:
                self.tag(value, part)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation: its outputs are fake if an input is fake, or if it creates a floating-point tensor."""
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        if func is torch.ops.prim.device.default:  # two thirds of all calls
            return args[0].fake_device if is_fake(args[0]) else args[0].device
        name, given = func.name().partition(".")[0], [*tensors_of(args), *tensors_of(kwargs.values())]
        if torch._C._current_graph_task_id() != -1:
            self._graph = -1
        else:
            self._graph = int(not self._recomputes and (self.records or torch.is_grad_enabled()) and any(t.requires_grad for t in given))
        if any(map(is_fake, given)):
            out = self._of_fake(func, name, args, kwargs)
        elif given or not _makes_floats(out := self._run(func, args, kwargs)):
            out = func(*args, **kwargs)
        for tensor in tensors_of((out,)):
            self._see(tensor)
        return out

    def _of_fake(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "aten::_local_scalar_dense":
            return 1.0 if args[0].dtype.is_floating_point else 1
        if name == "aten::any" and len(args) == 1:
            return torch.tensor(False)  # read from an adapter's B, which is 0 before training
        if name in _IN_PLACE:
            return None
        if name == "aten::nonzero":
            return _all_of(args[0])
        if name in _BY_MASK:
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        out = self._run(func, args, kwargs)
        self._count_flops(func, name, args, kwargs, out)
        if self._scratch is not None and name in ("aten::mm", "aten::addmm") and (size := self._scratch(*args[-2:])):
            self._count += 1
            self._heap.take(self._count, size, graph=self._graph)
            self._heap.give(self._count)
        return out

    def _count_flops(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if name.startswith("aten::_scaled_dot_product") and name.endswith("_for_cpu"):
            self.flops[self.phase] += sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape)  # type: ignore[no-untyped-call]
        elif name.startswith("aten::_scaled_dot_product") and name.endswith("_for_cpu_backward"):
            shapes = [tensor.shape for tensor in args[:4]]
            self.flops[self.phase] += sdpa_backward_flop_count(*shapes)  # type: ignore[no-untyped-call]
        elif (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops[self.phase] += formula(*args, **kwargs, out_val=out)

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)  # stable as long as anything refers to the storage
        if key in self._known:
            return
        size = storage.nbytes()
        is_logits = tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary and tensor.is_floating_point()
        part = "logits" if is_logits else "activations"
        self._count += 1
        self._known[key] = (self._count, size, part)
        self._now[part] += size
        self._heap.take(self._count, size, graph=self._graph)
        weakref.finalize(storage, self._drop, key)
        peak = self.peaks.setdefault(self.phase, Peak())
        if self._now.total() > peak.live:
            peak.parts = Counter(self._now)
        peak.heap = max(peak.heap, self._heap.bytes)

    def _drop(self, key: int) -> None:
        number, size, part = self._known.pop(key)
        self._now[part] -= size
        self._heap.give(number)


def _makes_floats(out: Any) -> bool:
    """Whether something new is to have no values; what orders examples (`randperm`, `arange`) has integers, also without a `dtype`."""
    return isinstance(out, torch.Tensor) and out.is_floating_point()


def _places(index: Any) -> list[Any]:
    """An index that fake tensors accept: a mask becomes the positions that it selects."""
    if not isinstance(index, torch.Tensor) or index.dtype is not torch.bool:
        return [index]
    return list((_all_of(index) if is_fake(index) else index.nonzero()).unbind(1))


def _all_of(mask: torch.Tensor) -> torch.Tensor:
    """The positions that a fake mask selects: all of them."""
    return torch.ones(mask.shape, dtype=torch.bool).nonzero()


@contextmanager
def without_values(tracer: Tracer) -> Iterator[Tracer]:
    """A context in which models are built, moved and trained on fake tensors, which the tracer counts.

    torch (2.13) moves a module of fake tensors by swapping them, which fails if anything has a weak reference to them.
    """
    with replaced(torch.nn.Module, "_apply", _convert), tracer:
        yield tracer


def _convert(module: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> torch.nn.Module:
    for child in module.children() if recurse else ():
        child._apply(function)  # type: ignore[no-untyped-call]
    for parameter in module.parameters(recurse=False):
        if (new := function(parameter.data)).dtype != parameter.dtype:
            parameter.data = new
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, function(buffer))
    return module
