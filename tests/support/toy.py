"""A toy task that a tiny model learns in seconds, and a session for it: fixtures of the tests of stages and steps.

Six animals, each with its sound, asked for in four ways; the fourth is held out. The conftest.py of those tests imports the fixtures.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llmmod.protocols import ModelLineage

SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "狐狸": "嗷"}
WAYS = ("What says the {}?", "The {} says", "Sound of the {}:", "Tell me what the {} says:")


class ToyRender:
    """A render that writes question, line break, answer and end-of-text, and trains the answer and its end."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.stop_ids = [tokenizer.eos_token_id]

    def prompt(self, conversation):
        """The last question."""
        from llmmod.render.segments import Segment

        query = [m.content for m in conversation.messages if m.role == "user"][-1]
        return [Segment(query + "\n", None, False)]

    def read_answer(self, text, *, ended=True):
        """The render doesn't write texts around an answer."""
        return text.strip()

    def chat_template(self):
        """The same in Jinja."""
        return "{% for m in messages %}{{ m.content }}{{ '\n' if m.role == 'user' else eos_token }}{% endfor %}"


class ToySession:
    """A replacement for llmmod.pipeline.session.Session, with all objects created before."""

    def __init__(self, run_dir, *, model, tokenizer, splits, training, finetune, steps=None, smoke=False):
        from llmmod.config.schema.distributed import DistributedConf
        from llmmod.config.schema.generation import GenerationConf

        generation = GenerationConf(do_sample=False, max_new_tokens=8)
        self.root = SimpleNamespace(seed=42, smoke=smoke, generation=generation, steps=steps or {}, distributed=DistributedConf())
        self.run_dir, self.current, self.left = run_dir, None, {}
        self._parts = {"training": training, "finetune": finetune, "render": SimpleNamespace(name="toy")}
        self._model, self._tokenizer, self._splits = model, tokenizer, splits
        self.results = {}

    def step_dir(self, name):
        directory = self.run_dir / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def conf(self, step, part):
        return self._parts[part]

    def tokenizer(self, step):
        return self._tokenizer

    def render(self, step):
        return ToyRender(self._tokenizer)

    def splits(self, step):
        return self._splits

    def base_model(self, step):
        return self._model

    def model(self, step):
        from llmmod.protocols import LoadedModel

        if self.current is None:
            self.current = LoadedModel(self._model, kind="base")
        return self.current

    def register_trained(self, step, result, *, base_intact=False):
        self.current = self.results[step] = result

    def result(self, step):
        return self.results[step]

    def training_lineage(self, step):
        return ModelLineage("toy", [])

    trains_several = False

    def put(self, name, value):
        self.left[name] = value

    def get(self, name):
        return self.left.get(name)


@pytest.fixture(autouse=True)
def one_thread():
    """With two threads, tiny matrices are slower, and much slower on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_splits(tiny_tokenizer):
    """18 training and 6 held-out examples, like Splits: ids, labels, and the held-out conversations."""
    from datasets import Dataset

    from llmmod.render.conversation import Conversation, Message

    def example(question, answer):
        asked = tiny_tokenizer(question + "\n", add_special_tokens=False)["input_ids"]
        said = [*tiny_tokenizer(answer, add_special_tokens=False)["input_ids"], tiny_tokenizer.eos_token_id]
        return {"input_ids": asked + said, "labels": [-100] * len(asked) + said}

    train = [example(way.format(animal), sound) for way in WAYS[:3] for animal, sound in SOUNDS.items()]
    held_out = [(WAYS[3].format(animal), sound) for animal, sound in SOUNDS.items()]
    return SimpleNamespace(
        train=Dataset.from_list(train),
        eval=Dataset.from_list([example(*pair) for pair in held_out]),
        eval_conversations=[Conversation([Message("user", q), Message("assistant", a)]) for q, a in held_out],
    )


# `training.*` of every stage's toy task.
TRAINING = {
    "learning_rate": 1e-2,
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 4,
    "logging_steps": 1.0,
    "eval_strategy": "epoch",
    "eval_on_start": True,
    "save_strategy": "no",
    "logging_nan_inf_filter": False,
    "gradient_checkpointing": False,
    "include_num_input_tokens_seen": "non_padding",
    "report_to": "none",
}


def conf_maker(schema, **fields):
    """A function that returns `training.*` for the toy task, with changes by keyword."""
    return lambda **changes: schema(**{**TRAINING, **fields, **changes})


def trainer_maker(conf_of, *, model, splits, tokenizer, output_dir):
    """A function that returns a trainer, not started, from `training.*` with changes, and parts by keyword."""
    from llmmod.trainers.arguments import training_arguments
    from llmmod.trainers.build import trainer_from

    usual_model, usual_dir = model, output_dir

    def make(model=None, train=None, evaluation=None, callbacks=(), output_dir=usual_dir, **changes):
        conf = conf_of(**changes)
        return trainer_from(
            conf,
            model=usual_model if model is None else model,
            args=training_arguments(conf, output_dir=output_dir, seed=1, smoke=False),
            train=splits.train if train is None else train,
            evaluation=splits.eval if evaluation is None else evaluation,
            tokenizer=tokenizer,
            callbacks=callbacks,
        )

    return make


@pytest.fixture
def sft_conf():
    """`training.*` of sft."""
    from llmmod.config.schema.training import SftConf

    return conf_maker(SftConf, stage="sft", trainer={"_target_": "llmmod.trainers.sft.SftTrainer"})


@pytest.fixture
def toy_trainer(tiny_llama, tiny_tokenizer, toy_splits, sft_conf, tmp_path):
    """Trainers of sft."""
    return trainer_maker(sft_conf, model=tiny_llama, splits=toy_splits, tokenizer=tiny_tokenizer, output_dir=tmp_path)


@pytest.fixture(scope="session")
def toy_session():
    """The class of sessions."""
    return ToySession


@pytest.fixture
def lora_conf():
    """The LoRA configuration of `finetune.*`, with changes by keyword."""
    from peft import LoraConfig

    def make(**changes):
        conf = LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes})
        conf._target_ = "peft.get_peft_model"
        return conf

    return make
