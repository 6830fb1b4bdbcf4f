"""The memory that a training needs on a device, and changes that reduce it: `Planner` traces the training as it is and with changes.

The changes are ordered by their cost. A smaller micro-batch with more accumulation costs little speed. Gradient checkpointing costs about a
quarter (one more forward pass). Adapters instead of whole weights, and 4-bit weights, change what is learnt or how precisely. More devices
cost money.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from llmmod.config.schema.model import LoraConf, QuantizationConf
from llmmod.errors import ConfigError
from llmmod.models.loading.structure import base_model
from llmmod.steps.plan.devices import Device, per_device
from llmmod.steps.plan.memory import Tracer, without_values
from llmmod.steps.plan.model import PlannedLinear, planned_model
from llmmod.steps.plan.trace import EVALUATION, Rows, Trace, Traced, extrapolated, scratch_of
from llmmod.upstream import require_upstream

require_upstream(__name__)

_GPU_FRAGMENTS = 0.05  # share that torch's caching allocator reserves in addition to the tensors; assumed, not measured on a GPU
_MOST_TRACES = 3  # of a search for the largest size
_MOST_TOKENS = 2**24  # of a micro-batch
_MOST_TRACED = 2**15  # tokens; they are real, so that more would take a minute
_MOST_ATTENTIONS = 400  # examples in all traced layers; attention within each takes 5 ms
_NEAR = 0.02  # share of the tokens by which two traces of many tokens must differ
_CHECKPOINTING: dict[str, Any] = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


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
        self._build()

    def _build(self) -> None:
        """Make the model, and what traces it."""
        conf, device = self.conf, self.device
        tracer, self._is_new = Tracer(scratch=None if device.is_gpu else scratch_of), True
        with without_values(tracer):
            head = conf["training"].head
            self.model = planned_model(conf["model"], conf["finetune"], head=head, on_gpu=device.is_gpu, **self._given)
        training = conf["training"]
        if device.is_gpu and not device.here:  # as `training_arguments` would choose on that GPU
            training = replace(
                training, use_cpu=True, bf16=not getattr(training, "fp16", False) if training.bf16 is None else training.bf16
            )
            training = replace(training, fp16=False)
        given = {"tokenizer": self._given["tokenizer"], "smoke": self._given["smoke"]}
        self.traced = Traced(self.model, tracer, training, on_gpu=device.is_gpu, **given)

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
        if not self._is_new:  # a second trace of the same model finds more: 2.7 of 14 MB for LoRA on two layers
            self._build()
        self._is_new = False
        return self.traced.run(rows, **changes)

    @property
    def _least(self) -> int:
        """The fewest examples of a micro-batch: kto compares each with another one."""
        return 2 if self.conf["training"].stage == "kto" else 1

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

    def total(self, trace: Trace) -> int:
        """The memory of each device at the peak, bytes."""
        return sum(self.memory(trace).values())

    def largest(self, rows: Rows, trace: Trace) -> tuple[int, int | None]:
        """The largest micro-batch of the longest examples that fits, and the longest examples that fit with this micro-batch.

        If attention saves its scores, memory is not linear in the length of an example, and that length is None.

        Args:
            rows: a micro-batch, and an evaluation batch, which stays as it is.
            trace: of these rows.
        """
        longest, least = max(rows.train, key=tokens_of), self._least
        small: list[Mapping[str, Any]] = [stretched(longest, max(8, length_of(longest) // 2))] * least
        if _tokens(small) == _tokens(rows.train):
            small = [longest] * (2 * least)
        known = {_tokens(rows.train): trace, _tokens(small): self.trace(replace(rows, train=small))}
        number = self._most(known, rows, lambda n: [longest] * n, limits=(least, _MOST_TOKENS // tokens_of(longest)), step=1)
        text = base_model(self.model).config.get_text_config()
        if text._attn_implementation == "eager":
            return number, None
        positions = getattr(text, "max_position_embeddings", None) or 2**17
        return number, self._most(known, rows, lambda n: [stretched(longest, n)] * len(rows.train), limits=(8, positions))

    def _most(
        self, known: dict[int, Trace], rows: Rows, make: Callable[[int], list[Any]], *, limits: tuple[int, int], step: int = 0
    ) -> int:
        """The largest number within limits for which the rows of `make` fit; 0 if not even those of the lower limit do.

        The memory of each phase of a run is nearly linear in the tokens of a micro-batch: two traces give that of all others. What is found
        is traced too, since logits come in tiles, and a CPU's heap has holes.

        Args:
            known: tokens -> trace, for two micro-batches at least; what is traced here is added.
            rows: whose evaluation batch is a part of each trace.
            make: number -> the rows of a micro-batch.
            limits: of the number.
            step: how much further is traced as well.
        """
        numbers, found = range(limits[0], limits[1] + 1), 0
        for _ in range(_MOST_TRACES):
            points = sorted(known.items())[-2:]

            def too_large(number: int, points: Sequence[tuple[int, Trace]] = points) -> bool:
                return self.total(extrapolated(points, _tokens(make(number)))) > self.device.bytes

            found = numbers[0] + bisect_left(numbers, True, key=too_large) - 1
            if found < numbers[0]:
                return 0
            before = len(known)
            for made in (self._of_fewer(make(number)) for number in (found, found + step)):
                tokens = _tokens(made)
                apart = tokens * _NEAR if tokens > _MOST_TRACED // 16 else 0.5
                if tokens <= _MOST_TRACED and all(abs(tokens - other) > apart for other in known):
                    known[tokens] = self.trace(replace(rows, train=made))
            if len(known) == before:
                break
        return found

    def _of_fewer(self, rows: list[Any]) -> list[Any]:
        """A micro-batch with as many tokens in fewer, longer examples, if a trace of so many would take long."""
        text, most = base_model(self.model).config.get_text_config(), max(1, _MOST_ATTENTIONS // sum(self.traced.depths))
        if len(rows) <= most or text._attn_implementation == "eager":  # then memory depends on the length, and the time does not
            return rows
        return [stretched(rows[0], _tokens(rows) * length_of(rows[0]) // (tokens_of(rows[0]) * most))] * most

    def advice(self, rows_for: Callable[[Any], Rows], *, most: int) -> list[str]:
        """Overrides to paste, each of which makes the training fit, the one with the lowest cost first.

        Args:
            rows_for: `training.*` -> the rows that a plan of it traces, so that a plan with the overrides finds the same.
            most: how many are enough; each takes some traces.
        """
        return list(islice(self._fitting(rows_for), most))

    def _fitting(self, rows_for: Callable[[Any], Rows]) -> Iterator[str]:
        line = self._smaller(rows_for)
        if line is None and not self.conf["training"].gradient_checkpointing:
            line = self._smaller(rows_for, "model.gradient_checkpointing=true", **_CHECKPOINTING)
        if line is not None:
            yield line
        for words, changed in self._other_ways():
            line = changed._smaller(rows_for, words)
            line = line or changed._smaller(rows_for, f"{words} model.gradient_checkpointing=true", **_CHECKPOINTING)
            if line is not None:
                yield line
        if self.way in ("none", "ddp") and self.device.is_gpu and self._by_rows:  # ppo and grpo sample with the whole model
            for times in (1, 2, 4, 8, 16):
                if (processes := times * self.processes) > 1:
                    words = f"distributed=fsdp distributed.processes={processes}"
                    line = self._shared(processes)._smaller(rows_for, words, processes=times)
                    if line is not None:
                        yield line
                        break

    def _smaller(self, rows_for: Callable[[Any], Rows], words: str = "", *, processes: int = 1, **changes: Any) -> str | None:
        """Overrides with the largest micro-batch that fits and as many examples in a step; None if the smallest doesn't fit.

        Args:
            rows_for: as for `advice`.
            words: overrides that are decided.
            processes: how many do the work of one process of the training as it is.
            changes: what `words` change of `training.*`.
        """
        conf = self.conf["training"]
        size, examples = conf.per_device_train_batch_size, conf.per_device_train_batch_size * conf.gradient_accumulation_steps
        examples = examples if examples % processes else examples // processes  # if they can't be divided, a step has more
        sizes = [n for n in range(min(size, examples), 0, -1) if examples % n == 0 and (n >= self._least or n == size)]

        def fitting(number: int) -> str | None:
            given = {"per_device_train_batch_size": number, "gradient_accumulation_steps": examples // number}
            return self._with_evaluation(rows_for, words, {**given, **changes})

        smallest = fitting(sizes[-1]) if sizes else None
        if smallest is None:
            return None
        return next((line for number in sizes[:-1] if (line := fitting(number)) is not None), smallest)

    def _with_evaluation(self, rows_for: Callable[[Any], Rows], words: str, changes: Mapping[str, Any]) -> str | None:
        """The overrides of these changes if the training fits, with a smaller evaluation batch if they are the larger ones; else None."""
        conf = replace(self.conf["training"], **changes)
        while True:
            try:
                trace = self.trace(rows_for(conf), **changes)
            except ConfigError:  # the trainer refuses the combination
                return None
            if self.total(trace) <= self.device.bytes:
                break
            training = replace(trace, peaks={name: peak for name, peak in trace.peaks.items() if not name.startswith(EVALUATION)})
            if conf.per_device_eval_batch_size == 1 or self.total(training) > self.device.bytes:
                return None
            conf = replace(conf, per_device_eval_batch_size=conf.per_device_eval_batch_size // 2)
        names = ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size")
        own = [f"training.{n}={getattr(conf, n)}" for n in names if getattr(conf, n) != getattr(self.conf["training"], n)]
        return " ".join([words, *own]).strip() or None

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


def _tokens(rows: Sequence[Mapping[str, Any]]) -> int:
    counts, each = Counter(map(id, rows)), {id(row): row for row in rows}  # many are the same one
    return sum(tokens_of(each[key]) * count for key, count in counts.items())


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
