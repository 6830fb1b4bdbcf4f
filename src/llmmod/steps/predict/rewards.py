"""What the step `predict` does with a reward model: the scores of both answers of each held-out pair, written as they are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmmod.config.schema.steps import PredictConf
from llmmod.distributed import rank
from llmmod.models.generation.settings import Reader
from llmmod.protocols import StepReport
from llmmod.steps.predict.step import OrderedLines, held_out
from llmmod.trainers.build import prepare_for_inference
from llmmod.trainers.callbacks.progress import counting
from llmmod.trainers.collation import choose_collator
from llmmod.trainers.rm import pair_rewards

_FILE = "scores.jsonl"


class PredictRewards:
    """What the step `predict` does for `stage=rm`: `training.predict`.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of the directory in the run's.
    """

    def __init__(self, conf: PredictConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Write `<run>/<name>/scores.jsonl`, a line a pair: `prompt`, `chosen`, `rejected`, `chosen_score`, `rejected_score`.

        Raises:
            ConfigError: there are no held-out examples.
        """
        pairs = held_out(session, self.name)
        if rank() != 0:
            return StepReport()
        pairs = pairs.select(range(min(len(pairs), self.conf.max_samples or len(pairs))))
        training, tokenizer = session.conf(self.name, "training"), session.tokenizer(self.name)
        reader = Reader.of(session.render(self.name), tokenizer)
        model = prepare_for_inference(session.model(self.name).model, use_cpu=training.use_cpu)
        collator = choose_collator(training.collator, model=model, tokenizer=tokenizer, train=pairs)
        path, right = session.step_dir(self.name) / _FILE, 0
        with OrderedLines(path) as lines, counting(self.name, len(pairs)) as count:
            for batch in pair_rewards(model, pairs, collator=collator, batch_size=self.conf.batch_size):
                for number, chosen, rejected in batch:
                    written = _texts(pairs[number], reader) | {"chosen_score": chosen, "rejected_score": rejected}
                    lines.write(number, json.dumps(written, ensure_ascii=False))
                    right += chosen > rejected
                count(len(batch))
        told = f"the chosen answer scores higher in {right} of {len(pairs)} held-out pairs; they are in {path}"
        return StepReport(artifacts={"scores": f"{self.name}/{_FILE}"}, summary=[f"{self.name}: {told}"])


def _texts(pair: Mapping[str, Any], reader: Reader) -> dict[str, str]:
    """The prompt as the model sees it, and both answers as completions are read."""
    prompt = reader.tokenizer.decode(pair["prompt_ids"], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return {"prompt": prompt, **{name: reader(pair[f"{name}_ids"]) for name in ("chosen", "rejected")}}
