"""Fixtures for tests of online stages: the toy task as prompts, a reward, and a tiny model for each way to fine-tune."""

from __future__ import annotations

import json

import pytest
import torch
import toy
import ways
from transformers import TrainerCallback

from llmmod.metrics import Length, Rouge
from llmmod.models.generation.settings import Reader
from llmmod.steps.evaluate import training_metrics


@pytest.fixture(scope="session")
def toy_prompts(tiny_tokenizer):
    """18 prompts to train on and 6 held out, with the columns that prompts have."""
    from datasets import Dataset

    def prompt(way, animal, sound):
        text = way.format(animal)
        ids = tiny_tokenizer(text + "\n", add_special_tokens=False)["input_ids"]
        return {"prompt_ids": ids, "prompt": [{"role": "user", "content": text}], "answer": sound}

    train = [prompt(way, *pair) for way in toy.WAYS[:3] for pair in toy.SOUNDS.items()]
    held_out = [prompt(toy.WAYS[3], *pair) for pair in toy.SOUNDS.items()]
    return Dataset.from_list(train), Dataset.from_list(held_out)


def even(answers):
    """The share of tokens with an even id."""
    return torch.tensor([sum(token % 2 == 0 for token in ids) / len(ids) for ids in answers.ids])


CLASSES = 16


def share_of(number):
    """A scorer: the share of an answer's tokens of one class, those whose id modulo 16 is `number` modulo 16, about a sixteenth at first.

    Only one class of 16 can have more than half of the tokens, and the rewarded class doesn't depend on the model. So a policy that only
    drifts reaches this for at most one class, however far it drifts and however its tokens depend on each other.
    """
    return lambda answers: torch.tensor([sum(token % CLASSES == number % CLASSES for token in ids) / len(ids) for ids in answers.ids])


@pytest.fixture
def prepared(tiny_llama):
    """The tiny model as set up by each way to fine-tune."""

    def make(way, **lora):
        torch.manual_seed(0)
        return ways.prepared(tiny_llama, way, freeze={"extra_trainable": ["norm"]}, **{"r": 8, "lora_alpha": 16} | lora)

    return make


@pytest.fixture
def learner(prepared, tiny_llama):
    """The same for tests of learning, with adapters for the embeddings too, as in the other stages' tests.

    Adapters don't change the head, and with its random weights no hidden state gives a class much more than 0.7 of the probability; with
    weights twice as large, some give it nearly all.
    """

    def make(way):
        with torch.no_grad():
            tiny_llama.lm_head.weight *= 2
        return prepared(way, target_modules=ways.EMBEDDINGS, lora_alpha=64)

    return make


@pytest.fixture
def answering_trainer(tiny_llama, tiny_tokenizer, toy_prompts, tmp_path):
    """A trainer for the toy's prompts, not started, from `training.*`, with parts by keyword."""
    from llmmod.trainers.arguments import training_arguments
    from llmmod.trainers.build import trainer_from

    def make(conf, *, model=None, train=None, evaluation=None, callbacks=(), output_dir=tmp_path / "train", seed=1):
        return trainer_from(
            conf,
            model=tiny_llama if model is None else model,
            args=training_arguments(conf, output_dir=output_dir, seed=seed, smoke=False),
            train=toy_prompts[0] if train is None else train,
            evaluation=toy_prompts[1] if evaluation is None else evaluation,
            tokenizer=tiny_tokenizer,
            callbacks=callbacks,
        )

    return make


# `training.*` of a short training whose log has every step.
SHORT = {
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 6,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 8,
    "logging_steps": 1.0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_nan_inf_filter": False,
    "gradient_checkpointing": False,
    "report_to": "none",
}


def noted():
    """The scorer `even`, and the scores that it gave, by prompt."""
    by_prompt = {}

    def scored(answers):
        scores = even(answers)
        for prompt, score in zip(answers.prompts, scores.tolist(), strict=True):
            by_prompt.setdefault(tuple(prompt), []).append(score)
        return scores

    return scored, by_prompt


@pytest.fixture
def scored_texts():
    """A scorer, and the answers that it scored, as (ids, text)."""
    seen = []

    def scored(answers):
        seen.extend(zip(answers.ids, answers.texts, strict=True))
        return even(answers)

    return seen, scored


def never_ends(model):
    """Make a model's end token very unlikely, so that every answer is truncated."""
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] = 0.0
        model.lm_head.weight *= 5


class StopAt(TrainerCallback):
    """Ends a training after a step, like a signal."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def logged(trainer):
    """The log without times."""
    timed = ("runtime", "per_second", "step_time")
    return [{n: v for n, v in entry.items() if not any(part in n for part in timed)} for entry in trainer.state.log_history]


@pytest.fixture
def with_dropout(tiny_llama):
    """The tiny model in its initial state, ready for another training, for each way to fine-tune; an adapter has dropout."""
    from peft import LoraConfig, get_peft_model

    start = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    adapted = []

    def make(way):
        if adapted:
            adapted.pop().unload()
        tiny_llama.load_state_dict(start)
        tiny_llama.requires_grad_(way != "freeze")
        if way == "freeze":
            tiny_llama.model.layers[1].requires_grad_(True)
        if way != "lora":
            return tiny_llama
        torch.manual_seed(3)
        config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2, task_type="CAUSAL_LM")
        adapted.append(get_peft_model(tiny_llama, config))
        return adapted[0]

    return make


def check_rewarded_texts(trainer_of, scored, seen, tmp_path):
    """The reward gets the text that a reader sees, without what the render writes around an answer, here its first letter.

    Args:
        trainer_of: makes a trainer, given changes by keyword.
        scored: the keyword that gives it the scorer of `scored_texts`.
        seen: the ids and texts that this scorer got.
        tmp_path: the trainer's directory.
    """
    trainer = trainer_of(**scored, max_steps=2, num_sample_answers=99)
    trainer.reader = Reader(trainer.processing_class, [trainer.processing_class.eos_token_id], lambda text, ended=True: text[1:])
    trainer.train()
    shown = [json.loads(line)["answer"] for line in (tmp_path / "train" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert shown == [text for _, text in seen]
    assert shown == [trainer.processing_class.decode(ids, skip_special_tokens=True)[1:] for ids, _ in seen]
    assert any(shown)


def check_measured_texts(trainer_of, scored, seen, rows):
    """Held-out answers are measured with the rewarded texts against the rows' own; for a row without an answer, only the length."""
    rows = rows.select(range(4)).map(lambda row, at: {"answer": row["answer"] if at else None}, with_indices=True)
    trainer = trainer_of(**scored, num_generations_eval=2, evaluation=rows)
    metrics = trainer.evaluate()
    texts = [text for _, text in seen]
    rouge, length = Rouge(), Length()
    for text, row in zip(texts, [row for row in rows for _ in range(2)], strict=True):
        length.update(text, "")
        if row["answer"]:
            rouge.update(text, row["answer"])
    assert metrics["eval_rouge-l"] == pytest.approx(rouge.compute()["rouge-l"])
    assert metrics["eval_words"] == pytest.approx(length.compute()["words"])
    assert {"eval_exact", "eval_repeated-4-grams"} <= metrics.keys()
    assert trainer.evaluate()["eval_words"] == metrics["eval_words"]  # not the mean over all evaluations


def check_told_of_before_and_after(trainer_of):
    """The metrics of answers are reported before and after the training."""
    only_length = {"n": {"_target_": "llmmod.metrics.Length"}}
    trainer = trainer_of(max_steps=2, eval_strategy="steps", eval_steps=2, eval_on_start=True, metrics=only_length)
    trainer.train()
    metrics = training_metrics(trainer)
    assert {"eval_words_before", "eval_words", "eval_reward_before", "eval_reward"} <= metrics.keys()
    assert "eval_rouge-l" not in metrics
