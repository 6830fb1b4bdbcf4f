"""KTO: trl's losses on our ids, the reference without a second model, exact evaluation, and resuming to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from trl import KTOConfig, KTOTrainer
from ways import adapted, moved

from llmmod.errors import ConfigError

LOSSES = {"kto": {"desirable_weight": 1.3}, "apo_zero_unpaired": {"undesirable_weight": 0.6}}
WRAPS = pytest.mark.parametrize("wrap", [lambda model: model, adapted], ids=["full", "lora"])


class Theirs(KTOTrainer):
    """trl's trainer on unchanged ids, with mismatched pairs as in `KTOTrainer._prepare_dataset`."""

    def _prepare_dataset(self, dataset, processing_class, args, name):
        def mismatch(examples):
            answers = examples["completion_ids"]
            return {"KL_completion_ids": [answers[-1], *answers[:-1]]}

        return dataset.map(mismatch, batched=True, batch_size=args.per_device_train_batch_size)


def loss_of(trainer, examples):
    """Loss and gradient of one batch."""
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(examples))
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@WRAPS
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradient_are_those_of_trl(kto_trainer, tiny_llama, tiny_tokenizer, toy_judged, tmp_path, loss_type, wrap):
    changes = {"loss_type": loss_type, "per_device_train_batch_size": 5, **LOSSES[loss_type]}
    given = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "remove_unused_columns": False, "max_length": None}
    other, model = wrap(copy.deepcopy(tiny_llama)), wrap(copy.deepcopy(tiny_llama))
    args = KTOConfig(str(tmp_path), report_to="none", **given, **changes)
    theirs = Theirs(other, ref_model=tiny_llama, args=args, train_dataset=toy_judged.train, processing_class=tiny_tokenizer)
    moved(other)
    loss, gradient = loss_of(theirs, theirs.train_dataset.select(range(5)).to_list())
    trainer = kto_trainer(model, **changes)
    assert (trainer.ref_model is None) is hasattr(model, "peft_config")
    assert list(getattr(model, "peft_config", ["default"])) == ["default"]
    moved(model)
    found, mine = loss_of(trainer, toy_judged.train.select(range(5)).to_list())
    assert found == pytest.approx(loss, abs=1e-5)
    assert mine.keys() == gradient.keys()
    for name, tensor in gradient.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    measured = {name: value for name, (value, *_) in theirs._metrics["train"].items() if name != "num_tokens"}
    told = trainer._means["train"].take()
    assert {name: told[name] for name in measured} == pytest.approx(measured, abs=1e-4)


def log_p(model, example):
    ids = torch.tensor([example["prompt_ids"] + example["completion_ids"]])
    with torch.no_grad():
        found = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), -1)
    return found.gather(1, ids[0, 1:, None])[len(example["prompt_ids"]) - 1 :].sum()


@WRAPS
@pytest.mark.parametrize("batch", [1, 7])
def test_evaluation_is_exact_over_all_answers_and_keeps_nothing(kto_trainer, tiny_llama, toy_judged, batch, wrap):
    reference, model = copy.deepcopy(tiny_llama), wrap(tiny_llama)
    trainer = kto_trainer(model, per_device_eval_batch_size=batch, loss_type="apo_zero_unpaired")
    moved(model, by=0.1)
    rewards = [0.1 * (log_p(model, e) - log_p(reference, e)) for e in toy_judged.eval]
    good, bad = torch.stack(rewards[::2]), torch.stack(rewards[1::2])
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation", prediction_loss_only=False)
    assert (output.predictions, output.label_ids) == (None, None)
    expected = torch.cat([1 - good.sigmoid(), bad.sigmoid()]).mean().item()
    assert output.metrics["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert output.metrics["eval_rewards/margins"] == pytest.approx((good.mean() - bad.mean()).item(), abs=1e-5)
    assert not trainer._metrics["eval"]


def test_the_kl_of_an_evaluation_is_that_of_its_batches(kto_trainer, tiny_llama, toy_judged):
    """With all examples in one batch, the KL is one number, and the loss follows from it by hand."""
    reference = copy.deepcopy(tiny_llama)
    trainer = kto_trainer(per_device_eval_batch_size=60, beta=0.2)
    moved(tiny_llama, by=0.1)
    examples = list(toy_judged.eval)
    answers = [examples[-1], *examples[:-1]]
    mismatched = [example | {"completion_ids": other["completion_ids"]} for example, other in zip(examples, answers, strict=True)]
    kl, ratios = (torch.stack([log_p(tiny_llama, e) - log_p(reference, e) for e in chosen]) for chosen in (mismatched, examples))
    kl = kl.mean().clamp(min=0)
    signs = torch.tensor([1.0 if example["label"] else -1.0 for example in examples])
    metrics = trainer.evaluate()
    assert metrics["eval_kl"] == pytest.approx(kl.item(), abs=1e-4)
    assert metrics["eval_loss"] == pytest.approx((1 - (0.2 * signs * (ratios - kl)).sigmoid()).mean().item(), abs=1e-5)


def test_what_cannot_be_known_beforehand_is_refused(kto_trainer, tiny_llama):
    with pytest.raises(ConfigError, match=r"precompute_ref_log_probs: true, and the mismatched pairs"):
        kto_trainer(copy.deepcopy(tiny_llama), precompute_ref_log_probs=True)
    with pytest.raises(ConfigError, match="an adapter that changes the model from the start"):
        kto_trainer(adapted(copy.deepcopy(tiny_llama), init_lora_weights=False))


def losses(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@WRAPS
def test_precomputed_reference_logps_give_the_same_losses(kto_trainer, tiny_llama, wrap):
    def run(**changes):
        trainer = kto_trainer(wrap(copy.deepcopy(tiny_llama)), loss_type="apo_zero_unpaired", max_steps=6, **changes)
        trainer.train()
        return losses(trainer)

    assert run(precompute_ref_log_probs=True) == pytest.approx(run(), abs=1e-5)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_resumed_to_the_same_bits(kto_trainer, tiny_llama, tmp_path, loss_type):
    changes = {"loss_type": loss_type, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "eval_on_start": False}

    def run(name, resume=None):
        trainer = kto_trainer(adapted(copy.deepcopy(tiny_llama), lora_dropout=0.1), output_dir=tmp_path / name, **changes)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole")
    resumed = run("resumed", str(tmp_path / "whole" / "checkpoint-3"))
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert losses(resumed) == losses(whole)


def test_adapters_of_a_quantized_model_stay_in_float32(kto_trainer, tiny_llama):
    """trl would round them to bfloat16 permanently."""
    from ways import prepared

    model = moved(prepared(tiny_llama, "qlora"))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    kto_trainer(model, loss_type="apo_zero_unpaired")
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in before.items())
    assert {tensor.dtype for tensor in before.values()} == {torch.float32}


def test_noise_changes_only_the_trained_rows(kto_trainer, tiny_llama):
    """Mismatched pairs have other lengths than the rows that the noise is for."""
    plain, noisy = (kto_trainer(copy.deepcopy(tiny_llama), max_steps=1, neftune_noise_alpha=alpha) for alpha in (None, 5.0))
    losses = [trainer.train().training_loss for trainer in (plain, noisy)]
    assert losses[0] != losses[1]
