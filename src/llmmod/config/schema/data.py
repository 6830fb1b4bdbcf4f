"""`dataset.*` and `render.*`: the source of rows, and how a conversation becomes tokens."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llmmod.config.schema.base import Bos, CutoffPolicy, MixStopping, OnBadRow, Ranked, TrainOn


@dataclass
class ColumnsConf:
    """`dataset.columns.*`: the data's own name for each part; None: llmmod recognises it, or the format doesn't have this part."""

    prompt: str | None = None  # the column with the question or instruction
    query: str | None = None  # the column with further input to the instruction; it follows the prompt on a new line
    response: str | None = None  # the column with the answer
    history: str | None = None  # the column with earlier rounds, a list of [question, answer]
    system: str | None = None  # the column with the system text
    text: str | None = None  # the column with a whole document
    messages: str | None = None  # the column with a list of messages, each with its role and content
    chosen: str | None = None  # the column with the better answer, or with the ranked ones
    rejected: str | None = None  # the column with the worse answer
    label: str | None = None  # the column that says whether the answer is a good one, true or false
    tools: str | None = None  # the column with the definitions of tools


@dataclass
class MixedConf:
    """`dataset.mix.<name>.*`: one of several datasets. A key that is None is taken from `dataset`."""

    weight: float = 1.0  # the number of this dataset's conversations relative to those of the others
    path: str | None = None  # a file, a directory, a hub id, or a builder's name with data_files
    data_files: Any = None  # a path, a glob, or a list of them
    subset: str | None = None  # a hub dataset's configuration name
    split: str = "train"  # the split to read, slices such as train[:10%] too
    format: Any = None  # a format's name; None: that of `dataset`
    columns: ColumnsConf = field(default_factory=ColumnsConf)  # the names of its columns
    system: str | None = None  # the system text of rows without one; None: that of `dataset`
    max_samples: int | None = None  # how many rows to take from the start; None: as in `dataset`
    val_size: float | None = None  # how much is held out: a fraction below 1, or a number of examples; None: as in `dataset`
    val_files: Any = None  # held-out examples from files of their own, instead of val_size
    val_split: str | None = None  # held-out examples from a split of their own, instead of val_size


@dataclass
class DatasetConf:
    """`dataset.*`."""

    _target_: str = "llmmod.data.dataset.load.load_splits"
    name: str = MISSING  # the option's name, used in reports
    path: str | None = None  # a file, a directory, a hub id, or a builder's name (json, csv, …) with data_files
    data_files: Any = None  # a path, a glob, or a list of them; `pkg://llmmod.demo/x.jsonl` for a file in an installed package
    subset: str | None = None  # a hub dataset's configuration name
    split: str = "train"  # the split to read, slices such as train[:10%] too
    format: Any = "auto"  # how a row is written: the name of a format, auto, or {_target_: my.function}
    columns: ColumnsConf = field(default_factory=ColumnsConf)  # the names of its columns
    system: str | None = None  # the system text of rows without one; None: the render's
    cutoff_len: int = 1024  # the maximum length of an example, in tokens
    # What is cut from an example that is too long: prompt and answer in proportion, the right or the left end; drop: leave it out
    cutoff_policy: CutoffPolicy = CutoffPolicy.proportional
    # put several examples into a row, which don't see each other; without it only documents (pt) share rows, and see each other
    packing: bool = False
    drop_last_block: bool = False  # leave out the last block of joined documents if it isn't full
    mask_prompt: bool = True  # train the answers only; false: train the prompt too
    ranked: Ranked = Ranked.all  # which pairs are made of a row with more than two ranked answers
    # the effect of a row that can't be read: stop the run and name it (error), or count it and leave it out (skip)
    on_bad_row: OnBadRow = OnBadRow.error
    streaming: bool = False  # read rows during training, instead of reading all of them before
    buffer_size: int = 16384  # the examples in the shuffle buffer of a streamed dataset
    max_samples: int | None = None  # how many rows to take from the start; None: all
    val_size: float = 0.0  # how much is held out: a fraction below 1, or a number of examples
    val_files: Any = None  # held-out examples from files of their own, instead of val_size
    val_split: str | None = None  # held-out examples from a split of their own (hub, saved to disk, a directory), instead of val_size
    seed: int | None = None  # the seed of the validation split; None: the run's seed
    num_proc: int | None = None  # processes that render and tokenize; None: only this one
    cache: bool = True  # keep the tokenized examples for later runs, in ~/.cache/llmmod, hub.cache_dir or $LLMMOD_CACHE
    # the maximum size of all cached examples together, in GB; above it, the least recently used are removed; None: unlimited
    cache_max_gb: float | None = 20.0
    mix: dict[str, Any] = field(default_factory=dict)  # several datasets instead of `path` and `data_files`: name -> a MixedConf
    # the end of a mix: at the end of the first dataset, or once all have been read
    mix_stopping: MixStopping = MixStopping.first_exhausted


@dataclass
class RenderConf:
    """`render.*`: a conversation's written form, as data.

    The first turn is bos, prefix, sep, prompt, response; each later one sep, bos, prompt, response. The parts are lists of texts and
    `{token: …}` items; texts may hold `{{system}}`, `{{query}}`, `{{response}}` and `{{idx}}` (the round), each substituted once and never
    inside a user's text. A token is spelt as the vocabulary spells it, or named: `eos_token`, `bos_token`, ….
    Spaces that end `prompt` are written with the answer instead, where tokenizers put them: `": "` before `Yes` is `:`, ` Yes`.
    """

    _target_: str = "llmmod.render.template.Template"
    name: str = MISSING  # the option's name, used in reports
    prefix: list[Any] = field(default_factory=list)  # the parts before the first turn; if they are empty, `sep` is left out too
    empty_prefix: list[Any] | None = None  # the parts for an empty system text, instead of `prefix` and `sep`; None: those two
    prompt: list[Any] = field(default_factory=list)  # a user turn, up to the start of the answer
    # an answer and its terminator, which are trained
    response: list[Any] = field(default_factory=lambda: ["{{response}}", {"token": "eos_token"}])
    sep: list[Any] = field(default_factory=list)  # the parts after the prefix and between two turns
    system: str = ""  # the system text of conversations without one
    system_in_query: bool = False  # put the prefix at the beginning of the first query instead of before the turn (LLaMA-2)
    strip: bool = False  # strip white space from queries and answers before rendering (LLaMA-2)
    bos: Bos = Bos.auto  # the place of the beginning token; auto: once, if the tokenizer itself starts a text with one
    first_round: int = 1  # the `{{idx}}` of the first turn
    stop_words: list[str] = field(default_factory=list)  # tokens that end an answer, in addition to its terminator and eos
    efficient_eos: bool = False  # leave out the terminator between rounds; it is trained as the label before the next turn's first token
    use_history: bool = True  # train a conversation as one example; false: each turn is a separate example, without the earlier ones
    train_on: TrainOn = TrainOn.all  # which answers of a conversation are trained: all of them, or only the last
    verify: bool = True  # check before training that training and inference use the same tokens
    template: str | None = None  # the chat template of render=auto, a Jinja text or a .jinja file; None: the tokenizer's own
