"""`training.predict` of `stage=rm`: the reward model's scores of both answers of each held-out pair."""

from __future__ import annotations

import json
from typing import Any

from llmmod.config.schema.steps import PredictConf
from llmmod.distributed import rank
from llmmod.models.generation.settings import Reader
from llmmod.protocols import StepReport
from llmmod.steps.predict.step import OrderedLines, batch_size_of, held_out_examples
from llmmod.trainers.build import prepare_for_inference
from llmmod.trainers.callbacks.progress import counting
from llmmod.trainers.collation import choose_collator
from llmmod.trainers.rm import pair_rewards

_SCORES = "scores.jsonl"
_PAIRS = 8  # scored at once by `batch_size: auto`


class PredictRewards:
    """`training.predict` of `stage=rm`.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of its directory.
    """

    def __init__(self, conf: PredictConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Write `<run>/<name>/scores.jsonl`, a line for each pair: `prompt`, `chosen`, `rejected`, `chosen_score`, `rejected_score`.

        Raises:
            ConfigError: there are no held-out examples.
        """
        pairs = held_out_examples(session, self.name)
        if rank() != 0:
            return StepReport()
        pairs = pairs.select(range(min(len(pairs), self.conf.max_samples or len(pairs))))
        training, tokenizer = session.conf(self.name, "training"), session.tokenizer(self.name)
        reader = Reader.of(session.render(self.name), tokenizer)
        model = prepare_for_inference(session.model(self.name).model, use_cpu=training.use_cpu)
        collator = choose_collator(training.collator, model=model, tokenizer=tokenizer, train=pairs)
        path, right = session.step_dir(self.name) / _SCORES, 0
        with OrderedLines(path) as lines, counting(self.name, len(pairs)) as count:
            for batch in pair_rewards(model, pairs, collator=collator, batch_size=batch_size_of(self.conf) or _PAIRS):
                for number, chosen, rejected in batch:
                    pair = pairs[number]
                    prompt = tokenizer.decode(pair["prompt_ids"], skip_special_tokens=False, clean_up_tokenization_spaces=False)
                    written = {"prompt": prompt, **{name: reader(pair[f"{name}_ids"]) for name in ("chosen", "rejected")}}
                    written |= {"chosen_score": chosen, "rejected_score": rejected}
                    lines.write(number, json.dumps(written, ensure_ascii=False))
                    right += chosen > rejected
                count(len(batch))
        summary = f"{self.name}: the chosen answer scores higher in {right} of {len(pairs)} held-out pairs; they are in {path}"
        return StepReport(artifacts={"scores": f"{self.name}/{_SCORES}"}, summary=[summary])
