"""`transformers.Seq2SeqTrainingArguments` (transformers 5.23.0) as a schema, with that class's own defaults.

Written by `python -m devtools.generate`, not by hand. 107 of 119 fields take just what the class takes, by their
annotation or with `CHOICES`; the rest are looser, and `ACCEPTED` says what the class itself takes.
What isn't here is as in `training_arguments`.
"""

from dataclasses import dataclass, field
from typing import Any

from llmmod.config.schema.generated.training_arguments import TrainingArguments


@dataclass(init=False, repr=False, eq=False)  # only extended, never made: without them it is defined four times as fast
class Seq2SeqTrainingArguments(TrainingArguments):
    """Every argument of `transformers.Seq2SeqTrainingArguments`."""

    _target_: str = "transformers.Seq2SeqTrainingArguments"
    # Whether to use SortishSampler or not
    sortish_sampler: bool = False
    # Whether to use generate to calculate generative metrics (ROUGE, BLEU)
    predict_with_generate: bool = False
    # The `max_length` to use on each evaluation loop when `predict_with_generate=True`
    generation_max_length: int | None = None
    # The `num_beams` to use on each evaluation loop when `predict_with_generate=True`
    generation_num_beams: int | None = None
    # Model id, file path or url pointing to a GenerationConfig json file, to use during prediction
    generation_config: Any = None


# field -> the strings it allows, each item of a list too; a part in [brackets] stands for any text
CHOICES: dict[str, tuple[str, ...]] = {}

# field -> the types that the class takes; a dotted path: a dict of that class's fields
ACCEPTED: dict[str, tuple[str, ...]] = {
    "generation_config": ("str", "transformers.generation.configuration_utils.GenerationConfig", "None"),
}
