"""What the step `predict` does for pre-training: held-out documents are begun, and the model writes them on.

There is no measure of how close it comes, since a text goes on in many ways; the step evaluate has the perplexity.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from transformers import set_seed

from llmmod.config.schema.steps import PredictConf
from llmmod.data.examples.types import Ids
from llmmod.distributed import rank
from llmmod.models.generation.generate import answers
from llmmod.models.generation.settings import answer_text
from llmmod.protocols import StepReport
from llmmod.render.segments import own_beginning
from llmmod.steps.predict.answers import settings
from llmmod.steps.predict.step import OrderedLines, held_out
from llmmod.trainers.build import prepare_for_inference
from llmmod.trainers.callbacks.progress import counting

_FILE = "generated_predictions.jsonl"
_BEGINNING = 32  # tokens of a document that are given; of a shorter one, half of it


class PredictDocuments:
    """`training.predict` of stages that learn from documents.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of the directory in the run's.
    """

    def __init__(self, conf: PredictConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Write `<run>/<name>/generated_predictions.jsonl`, a line a held-out document: `prompt`, its beginning, `label`, `predict`.

        Raises:
            ConfigError: there are no held-out documents.
        """
        rows = held_out(session, self.name)
        if rank() != 0:
            return StepReport()
        tokenizer, set_up = session.tokenizer(self.name), session.conf(self.name, "training")
        model = prepare_for_inference(session.model(self.name).model, use_cpu=set_up.use_cpu)
        config = settings(session, self.name, model)
        config.eos_token_id = tokenizer.eos_token_id  # what documents end with, whatever ends an answer
        first = own_beginning(tokenizer)
        read = (row["input_ids"] for row in rows)
        documents = islice(whole_documents(read, eos=tokenizer.eos_token_id, bos=first), self.conf.max_samples)
        parts = [np.split(document, [max(1, min(_BEGINNING, len(document) // 2))]) for document in documents]
        set_seed(session.root.seed)
        path = session.step_dir(self.name) / _FILE
        with OrderedLines(path) as lines, counting(self.name, len(parts)) as count:
            prompts = [[*([] if first is None else [first]), *beginning.tolist()] for beginning, _ in parts]
            for batch in answers(model, prompts, config=config, batch_size=self.conf.batch_size, tokenizer=tokenizer):
                for number, ids in batch:
                    prompt, label = (tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in parts[number])
                    written = {"prompt": prompt, "label": label, "predict": answer_text(ids, tokenizer, stop_ids=[config.eos_token_id])}
                    lines.write(number, json.dumps(written, ensure_ascii=False))
                count(len(batch))
        told = f"{len(parts)} documents written on; they are in {path}"
        return StepReport(artifacts={"predictions": f"{self.name}/{_FILE}"}, summary=[f"{self.name}: {told}"])


def whole_documents(rows: Iterable[Sequence[int]], *, eos: int, bos: int | None = None) -> Iterator[Ids]:
    """The documents that rows were made of (`data.examples.types.Documents`), each without the tokens that begin and end it.

    Args:
        rows: ids, of blocks that go over from one document to the next, or of a document's pieces, in their order.
        eos: what ends a document.
        bos: what begins one; None: nothing does.
    """
    kept: list[Ids] = []
    for row in rows:
        *ended, rest = np.split(np.asarray(row, np.int32), np.flatnonzero(np.asarray(row) == eos) + 1)
        for part in ended:
            document = np.concatenate([*kept, part])[bos is not None : -1]
            kept = []
            if len(document):
                yield document
        kept.append(rest)
    last = np.concatenate([*kept, np.empty(0, np.int32)])[bos is not None :]
    if len(last):  # what ends it would have been a row of one token, and there are none
        yield last
