"""The memory that a training needs on a device, and changes that reduce it: `Planner` traces the training as it is and with changes.

The changes are ordered by their cost. A smaller micro-batch with more accumulation costs little speed. Gradient checkpointing costs about a
quarter (one more forward pass). Adapters instead of whole weights, and 4-bit weights, change what is learnt or how precisely. More devices
cost money.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from llmmod.config.schema.finetune import LoraConf
from llmmod.config.schema.quantization import QuantizationConf
from llmmod.models.loading.structure import base_model
from llmmod.steps.plan.devices import Device, per_device
from llmmod.steps.plan.memory import Tracer, without_values
from llmmod.steps.plan.model import PlannedLinear, planned_model
from llmmod.steps.plan.trace import Rows, Trace, Traced, scratch_of
from llmmod.upstream import require_upstream

require_upstream(__name__)

_GPU_FRAGMENTS = 0.05  # share that torch's caching allocator reserves in addition to the tensors; assumed, not measured on a GPU
_MOST_ADVICE = 4
_CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


class Planner:
    """The memory of one training on one kind of device.

    Args:
        conf: part -> configuration: `model`, `finetune`, `training`.
        tokenizer: the model's tokenizer.
        hub: `hub.*`.
        smoke: whether it is a rehearsal.
        device: the device to plan for.
        way, processes: how the training is distributed, and over how many processes.
        reward: bytes of the reward models.
    """

    def __init__(
        self, conf: Mapping[str, Any], *, tokenizer: Any, hub: Any, smoke: bool, device: Device, way: str, processes: int, reward: int = 0
    ) -> None:
        self.conf, self.device, self.way, self.processes, self.reward = dict(conf), device, way, processes, reward
        self._given = {"tokenizer": tokenizer, "hub": hub, "smoke": smoke}
        tracer = Tracer(scratch=None if device.is_gpu else scratch_of)
        with without_values(tracer):
            head = conf["training"].head
            self.model = planned_model(conf["model"], conf["finetune"], head=head, on_gpu=device.is_gpu, **self._given)
        training = conf["training"]
        if device.is_gpu and not device.here:  # as `training_arguments` would choose on that GPU
            training = replace(
                training, use_cpu=True, bf16=not getattr(training, "fp16", False) if training.bf16 is None else training.bf16
            )
            training = replace(training, fp16=False)
        self.traced = Traced(self.model, tracer, training, tokenizer=tokenizer, on_gpu=device.is_gpu, smoke=smoke)

    @property
    def parameters(self) -> tuple[int, int]:
        """The number of parameters, and of trained parameters; a packed weight counts as its unpacked weights."""
        packed = sum(layer.stands_for - layer.weight.numel() for layer in self.model.modules() if isinstance(layer, PlannedLinear))
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return sum(size for size, _ in counts) + packed, sum(size for size, trained in counts if trained)

    def trace(self, rows: Rows, **changes: Any) -> Trace:
        """A trace of the training on these rows; `changes`: changes to `training.*`."""
        if self._by_rows:
            changes["per_device_train_batch_size"] = len(rows.train)
        return self.traced.run(rows, **changes)

    @property
    def _by_rows(self) -> bool:
        """Whether a micro-batch consists of examples; in ppo and grpo it consists of completions."""
        return bool(self.conf["training"].data_kind != "prompt")

    def memory(self, trace: Trace) -> dict[str, int]:
        """The memory of each device at the peak: part -> bytes."""
        layer = max(sum(p.nbytes for p in layer.parameters()) for layer in self.traced.layers)
        trained = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        held = [per_device(peak.parts, self.way, self.processes, layer=layer, trained=trained) for peak in trace.peaks.values()]
        parts = max(held, key=Counter.total)
        fragments = round(_GPU_FRAGMENTS * parts.total()) if self.device.is_gpu else max(0, trace.heap - trace.peak.live)
        return {**parts, "fragments": fragments, "reward": self.reward, "baseline": self.device.baseline}

    def total(self, rows: Rows, **changes: Any) -> int:
        """The memory of each device for a training on these rows, bytes."""
        return sum(self.memory(self.trace(rows, **changes)).values())

    def largest(self, rows: Rows, total: int) -> tuple[int, int | None]:
        """The largest micro-batch of the longest examples that fits, and the longest examples that fit with this micro-batch.

        The peak is linear in the tokens of a micro-batch; two traces give the line. If attention saves its scores, the peak is not linear
        in the length of an example, and that length is None.

        Args:
            rows: a micro-batch.
            total: the memory of each device with that micro-batch, bytes.
        """
        longest, least = max(rows.train, key=tokens_of), 2 if self.conf["training"].stage == "kto" else 1
        small = [stretched(longest, max(8, length_of(longest) // 2))] * least
        tokens, fewer = sum(map(tokens_of, rows.train)), sum(map(tokens_of, small))
        slope = max(1.0, (total - self.total(replace(rows, train=small, held_out=()))) / max(1, tokens - fewer))
        room = max(0.0, tokens + (self.device.bytes - total) / slope)
        text = base_model(self.model).config.get_text_config()
        positions = getattr(text, "max_position_embeddings", None) or 2**17
        length = int(room / tokens * length_of(longest) * tokens / (tokens_of(longest) * len(rows.train)))
        eager = text._attn_implementation == "eager"
        return int(room / tokens_of(longest)), None if eager else min(positions, length)

    def advice(self, rows: Rows) -> list[str]:
        """Overrides to paste, each of which makes the training fit, the one with the lowest cost first."""
        return list(islice(self._fitting(rows), _MOST_ADVICE))

    def _fitting(self, rows: Rows) -> Iterator[str]:
        line = self._smaller(rows)
        if line is None and not self.conf["training"].gradient_checkpointing:
            line = self._smaller(rows, "model.gradient_checkpointing=true", **_CHECKPOINTING)
        if line is not None:
            yield line
        for words, changed in self._other_ways():
            line = changed._smaller(rows, words) or changed._smaller(rows, f"{words} model.gradient_checkpointing=true", **_CHECKPOINTING)
            if line is not None:
                yield line
        if self.way in ("none", "ddp") and self.device.is_gpu:
            for processes in (2, 4, 8, 16):
                line = self._shared(processes)._smaller(rows, f"distributed=fsdp distributed.processes={processes}")
                if line is not None:
                    yield line
                    break

    def _smaller(self, rows: Rows, words: str = "", **changes: Any) -> str | None:
        """Overrides with the largest micro-batch that fits, out of the whole, a half, a quarter, …; None if the smallest doesn't fit."""
        conf, count = self.conf["training"], len(rows.train)
        longest = sorted(rows.train, key=tokens_of, reverse=True)
        least = count if not self._by_rows else min(count, 2 if conf.stage == "kto" else 1)
        counts = [count >> power for power in range(0 if words else 1, count.bit_length()) if count >> power >= least]
        if len(counts) > 1 and self.total(replace(rows, train=longest[: counts[-1]], held_out=()), **changes) > self.device.bytes:
            return None
        for fewer in counts:
            if self.total(replace(rows, train=longest[:fewer], held_out=()), **changes) <= self.device.bytes:
                own, times = [words] if words else [], -(-count // fewer)
                if times > 1:
                    own += [f"training.per_device_train_batch_size={fewer}"]
                    own += [f"training.gradient_accumulation_steps={conf.gradient_accumulation_steps * times}"]
                return " ".join(own) or None
        return None

    def _shared(self, processes: int) -> Planner:
        """A planner of the same training on several processes."""
        other = copy.copy(self)
        other.way, other.processes = "fsdp", processes
        return other

    def _other_ways(self) -> Iterator[tuple[str, Planner]]:
        """Adapters instead of whole weights, and adapters on 4-bit weights: the override, and its planner."""
        finetune, model = self.conf["finetune"], self.conf["model"]
        if not isinstance(finetune, LoraConf):
            finetune = LoraConf(name="lora", target_modules=model.lora_targets, r=8, lora_alpha=16, task_type="CAUSAL_LM")
            yield "finetune=lora", self._with(finetune=finetune)
        if model.quantization.bits is None:
            yield "finetune=qlora", self._with(finetune=finetune, model=replace(model, quantization=QuantizationConf(bits=4)))

    def _with(self, **conf: Any) -> Planner:
        how: dict[str, Any] = {"device": self.device, "way": self.way, "processes": self.processes, "reward": self.reward}
        return Planner({**self.conf, **conf}, **self._given, **how)


def tokens_of(row: Mapping[str, Any]) -> int:
    """Tokens of an example in all its columns of ids."""
    return sum(len(value) for name, value in row.items() if name.endswith("_ids"))


def length_of(row: Mapping[str, Any]) -> int:
    """Tokens of an example; of a pair, of the prompt with the longer answer."""
    if "input_ids" in row:
        return len(row["input_ids"])
    answers = [len(value) for name, value in row.items() if name.endswith("_ids") and name != "prompt_ids"]
    return len(row["prompt_ids"]) + max(answers, default=0)


def stretched(row: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """An example stretched or cut to `tokens`; prompt and answers keep their shares."""
    now = length_of(row)
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in ("input_ids", "labels") or name.endswith("_ids"):
            found[name] = _of_length(value, max(2, len(value) * tokens // now))
        else:
            found[name] = [tokens] if name == "seq_lengths" else value
    return found


def _of_length(values: Sequence[int], length: int) -> list[int]:
    return ([*values] * (-(-length // max(1, len(values)))))[:length]
