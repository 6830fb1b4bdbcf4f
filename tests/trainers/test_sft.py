"""llmmod.trainers.sft: the positions that reach the head, and evaluation against a naive loop in double precision."""

from __future__ import annotations

import socket

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from llmmod.trainers import efficient


def naive_sums(model, examples):
    """The sum of the losses, their number, and how many labels are the likeliest token: one example at a time, in float64."""
    loss = tokens = correct = 0.0
    for example in examples:
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])[1:]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        kept = labels != -100
        log_p = torch.log_softmax(logits[kept], dim=-1)
        loss -= log_p.gather(1, labels[kept, None]).sum().item()
        correct += (log_p.argmax(-1) == labels[kept]).sum().item()
        tokens += kept.sum().item()
    return loss, tokens, correct


@pytest.fixture
def head_rows(monkeypatch):
    """The number of rows of each matrix that the head multiplies."""
    rows = []
    real = efficient.LogProbFunction.apply

    def counted(self, hidden, *rest):
        rows.append(hidden.shape[0])
        return real(self, hidden, *rest)

    monkeypatch.setattr(efficient.LogProbFunction, "apply", counted)
    return rows


def test_only_labelled_positions_reach_the_head_in_training(toy_trainer, toy_splits, head_rows):
    toy_trainer(num_train_epochs=1.0, eval_strategy="no", eval_on_start=False).train()
    labelled = sum(label != -100 for labels in toy_splits.train["labels"] for label in labels[1:])
    assert sum(head_rows) == labelled


def test_only_labelled_positions_reach_the_head_in_evaluation(toy_trainer, toy_splits, head_rows):
    toy_trainer().evaluate()
    assert sum(head_rows) == sum(label != -100 for labels in toy_splits.eval["labels"] for label in labels[1:])


def test_the_gradient_is_that_of_the_mean_over_all_labelled_tokens(toy_trainer, toy_splits, tiny_llama):
    """Two micro-batches of unequal length: the mean is over the tokens of both (TRL 2604; LLaMA-Factory had the same bug)."""
    trainer = toy_trainer(
        per_device_train_batch_size=2, gradient_accumulation_steps=9, max_steps=1, learning_rate=0.0, max_grad_norm=0.0, eval_strategy="no"
    )
    seen = {}

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *args, model, **kwargs):
            seen.update({name: p.grad.clone() for name, p in model.named_parameters()})

    trainer.add_callback(Gradients())
    trainer.train()
    tiny_llama.zero_grad()
    total = torch.zeros(())
    for example in toy_splits.train:
        logits = tiny_llama(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(example["labels"])[1:], reduction="sum")
    (total / naive_sums(tiny_llama, toy_splits.train)[1]).backward()
    for name, parameter in tiny_llama.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("collator", ["PaddingCollator", "FlatteningCollator"])
@pytest.mark.parametrize("batch", [1, 4, 5, 6])
def test_evaluation_is_exact_to_the_token_whatever_the_batch(toy_trainer, toy_splits, tiny_llama, batch, collator):
    metrics = toy_trainer(per_device_eval_batch_size=batch, collator={"_target_": f"llmmod.data.collators.{collator}"}).evaluate()
    loss, tokens, correct = naive_sums(tiny_llama, toy_splits.eval)
    assert metrics["eval_loss"] == pytest.approx(loss / tokens, abs=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(torch.tensor(loss / tokens).exp().item(), rel=1e-5)
    assert metrics["eval_token_accuracy"] == correct / tokens


def test_a_long_answer_counts_as_many_times_as_it_has_tokens(toy_trainer, tiny_llama):
    """The mean of the batches' means would differ: here two batches have 1 and 40 tokens."""
    examples = [{"input_ids": [5, 9], "labels": [-100, 9]}, {"input_ids": list(range(20, 61)), "labels": [-100, *range(21, 61)]}]
    metrics = toy_trainer(evaluation=Dataset.from_list(examples), per_device_eval_batch_size=1).evaluate()
    sums = [naive_sums(tiny_llama, [example]) for example in examples]
    exact, of_means = (sums[0][0] + sums[1][0]) / 41, (sums[0][0] + sums[1][0] / 40) / 2
    assert abs(exact - of_means) > 0.05
    assert metrics["eval_loss"] == pytest.approx(exact, abs=1e-5)


def test_no_logits_are_kept(toy_trainer, toy_splits):
    """An evaluation keeps three sums, so its memory doesn't grow with the number of examples."""
    trainer = toy_trainer(per_device_eval_batch_size=3)
    kept = []
    step = trainer.prediction_step

    def watched(*args, **kwargs):
        kept.append(step(*args, **kwargs))
        return kept[-1]

    trainer.prediction_step = watched
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation", prediction_loss_only=True)
    assert kept == [(None, None, None)] * 2
    assert (output.predictions, output.label_ids) == (None, None)


def test_a_user_s_own_metric_still_gets_logits(toy_trainer, tiny_tokenizer):
    trainer = toy_trainer()
    trainer.compute_metrics = lambda prediction: {"vocabulary": prediction.predictions.shape[-1]}
    with pytest.warns(FutureWarning):
        assert trainer.evaluate()["eval_vocabulary"] == len(tiny_tokenizer)


def test_training_does_not_open_a_connection(monkeypatch, toy_trainer):
    told = []

    def refuse(*args):
        told.append(args)
        raise AssertionError("a connection")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse)
    trainer = toy_trainer(max_steps=1, eval_strategy="no")
    trainer.train()
    assert told == []
    assert trainer.state.global_step == 1


def test_a_checkpoint_holds_what_is_needed_and_nothing_else(toy_trainer, tmp_path, tiny_lora):
    toy_trainer(model=tiny_lora, max_steps=1, save_strategy="steps", eval_strategy="no").train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    needed = {"adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}
    needed |= {"training_state_0.pt", "manifest.json"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "checkpoint-1").iterdir()} == needed | tokenizer
