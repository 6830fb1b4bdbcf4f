"""llmmod.trainers.preference.trainers: trl's losses from shared rows, the three kinds of reference, and evaluation against a naive loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer
from ways import adapted, moved, prepared, quantized

from llmmod.config.schema.training import LOSSES
from llmmod.errors import ConfigError
from llmmod.models.packing import packed_attention
from llmmod.trainers import efficient
from llmmod.trainers.reference import adapter_is_noop, frozen_copy

COLLATORS = [{"_target_": f"llmmod.data.collators.{name}"} for name in ("PrefixSharingCollator", "PreferenceCollator")]
CHANGES = {
    **{name: {"loss_type": [name], "label_smoothing": 0.1} for name in LOSSES},
    "mpo": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "ld": {"ld_alpha": 0.3},
    "wpo": {"use_weighting": True},
    **{name: {"f_divergence_type": name} for name in ("forward_kl", "js_divergence", "alpha_divergence")},
}


class Theirs(DPOTrainer):
    """trl's trainer on unchanged ids."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def loss_of(trainer, model, examples):
    """Loss, gradient and metrics of one batch."""
    model.zero_grad()
    model.train()
    batch = trainer.data_collator(examples)
    with packed_attention(model, batch):
        loss = trainer.compute_loss(model, batch)
        loss.backward()
    measured = {name: value for name, (value, *_) in trainer._metrics["train"].items()}
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, measured


@pytest.fixture
def theirs(tiny_llama, tiny_tokenizer, toy_pairs, tmp_path):
    """A function: model, reference -> loss, gradient and metrics by trl's own trainer, for the changed model and a batch of pairs."""

    def of(model, reference, **changes):
        given = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "remove_unused_columns": False, "max_length": None}
        args = DPOConfig(str(tmp_path), report_to="none", **given, **changes)
        trainer = Theirs(model, ref_model=reference, args=args, train_dataset=toy_pairs.train, processing_class=tiny_tokenizer)
        return loss_of(trainer, moved(model), toy_pairs.train.select(range(5)).to_list())

    return of


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_loss_and_gradient_are_those_of_trl(dpo_trainer, theirs, tiny_llama, toy_pairs, changes):
    models = [copy.deepcopy(tiny_llama) for _ in range(3)]
    loss, gradient, measured = theirs(models.pop(), tiny_llama, **changes)
    for model, collator in zip(models, COLLATORS, strict=True):
        trainer = dpo_trainer(model, collator=collator, **changes)
        found, mine, _ = loss_of(trainer, moved(model), toy_pairs.train.select(range(5)).to_list())
        assert found == pytest.approx(loss, rel=1e-5, abs=1e-5)
        largest = max(tensor.abs().max().item() for tensor in gradient.values())
        for name, tensor in gradient.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-5, atol=1e-5 * largest, msg=name)
        told = trainer._means["train"].take()
        for name in measured.keys() - {"num_tokens"}:
            assert told[name] == pytest.approx(measured[name], rel=1e-4, abs=1e-5), name


def test_with_the_adapter_off_the_model_is_its_own_reference(dpo_trainer, theirs, tiny_llama, toy_pairs):
    """Against trl's trainer with a second model for the reference."""
    other, reference = adapted(copy.deepcopy(tiny_llama)), copy.deepcopy(tiny_llama)
    loss, gradient, _ = theirs(other, reference)
    model = adapted(tiny_llama)
    trainer = dpo_trainer(model)
    assert trainer.ref_model is None
    found, mine, _ = loss_of(trainer, moved(model), toy_pairs.train.select(range(5)).to_list())
    assert found == pytest.approx(loss, abs=1e-6)
    assert list(model.peft_config) == ["default"]
    assert mine.keys() == gradient.keys()
    for name, tensor in gradient.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_frozen_copy_shares_what_isn_t_trained(tiny_llama):
    tiny_llama.requires_grad_(False)
    tiny_llama.model.layers[1].requires_grad_(True)
    other = frozen_copy(tiny_llama.train())
    assert not other.training
    before = other(torch.tensor([[5, 6, 7]])).logits
    moved(tiny_llama)
    assert torch.equal(other(torch.tensor([[5, 6, 7]])).logits, before)
    for (name, mine), its in zip(tiny_llama.named_parameters(), other.parameters(), strict=True):
        assert (mine.data_ptr() == its.data_ptr()) is not name.startswith("model.layers.1.")
        assert not its.requires_grad
    apart = frozen_copy(tiny_llama, share=False)
    assert not {p.data_ptr() for p in apart.parameters()} & {p.data_ptr() for p in tiny_llama.parameters()}


def test_a_quantized_model_with_its_adapter_off_is_its_own_reference(dpo_trainer, theirs, tiny_llama, toy_pairs):
    """Against trl's trainer with a second quantized model; trl rounds adapters of such a model to bfloat16, so here ours are too."""
    reference = quantized(copy.deepcopy(tiny_llama))
    torch.manual_seed(1)
    other = prepared(copy.deepcopy(tiny_llama), "qlora")
    torch.manual_seed(1)
    model = prepared(tiny_llama, "qlora")
    loss, gradient, _ = theirs(other, reference)
    trainer = dpo_trainer(model)
    assert trainer.ref_model is None
    moved(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = other.get_parameter(name).detach().clone()
    found, mine, _ = loss_of(trainer, model, toy_pairs.train.select(range(5)).to_list())
    assert found == pytest.approx(loss, abs=1e-5)
    assert abs(found - math.log(2)) > 1e-3
    assert mine.keys() == gradient.keys()


def test_the_reference_of_a_chain_is_what_was_merged(dpo_trainer, tiny_llama, toy_pairs, tmp_path):
    """An earlier training's adapter is merged, and a new one is added. Without the new one, it is the earlier model, not the base."""
    from llmmod.config.schema.model import LoraConf
    from llmmod.models.adapters.setup import setup_lora

    base = copy.deepcopy(tiny_llama)
    earlier = moved(adapted(copy.deepcopy(tiny_llama)), by=0.2).eval()
    earlier.save_pretrained(tmp_path / "sft")
    model = setup_lora(tiny_llama, LoraConf(name="lora", r=4, target_modules="all-linear", adapters=[str(tmp_path / "sft")]))
    trainer = dpo_trainer(model)
    moved(model, by=0.1)
    metrics = trainer.evaluate()
    for name, value in naive(model, earlier, toy_pairs.eval).items():
        assert metrics[name] == pytest.approx(value, abs=1e-4), name
    assert abs(naive(model, base, toy_pairs.eval)["eval_loss"] - metrics["eval_loss"]) > 1e-3


@pytest.mark.parametrize(
    ("changes", "nothing"),
    [({}, True), ({"use_dora": True}, True), ({"init_lora_weights": False}, False), ({"init_lora_weights": "pissa"}, False),
     ({"bias": "lora_only"}, False)],
    ids=["new", "dora", "continued", "pissa", "bias"],
)  # fmt: skip
def test_which_adapters_change_the_model_from_the_start(tiny_llama, changes, nothing):
    assert adapter_is_noop(adapted(tiny_llama, **changes)) is nothing


def test_a_new_adapter_of_the_embeddings_is_nothing_at_the_start(tiny_llama):
    """peft initialises their matrices A with zeros, those of linear layers at random."""
    adapted_embeddings = get_peft_model(tiny_llama, LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]))
    ids = torch.arange(5, 17)[None]
    with torch.no_grad(), adapted_embeddings.disable_adapter():
        off = adapted_embeddings(input_ids=ids).logits
    assert torch.equal(adapted_embeddings(input_ids=ids).logits, off)
    assert adapter_is_noop(adapted_embeddings)
    moved(adapted_embeddings)
    assert not adapter_is_noop(adapted_embeddings)


def naive(model, reference, examples, beta=0.1):
    """Loss, margin and accuracy over pairs, one answer at a time, in float64."""

    def log_p(scorer, prompt, answer):
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            found = torch.log_softmax(scorer(input_ids=ids).logits[0, :-1].double(), -1)
        return found.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum().item()

    def reward(example, name):
        return beta * (log_p(model, example["prompt_ids"], example[name]) - log_p(reference, example["prompt_ids"], example[name]))

    rewards = [(reward(example, "chosen_ids"), reward(example, "rejected_ids")) for example in examples]
    margins = [chosen - rejected for chosen, rejected in rewards]
    count = len(margins)
    return {
        "eval_loss": sum(math.log1p(math.exp(-margin)) for margin in margins) / count,
        "eval_rewards/margins": sum(margins) / count,
        "eval_rewards/accuracies": sum(margin > 0 for margin in margins) / count,
        "eval_rewards/chosen": sum(chosen for chosen, _ in rewards) / count,
    }


@pytest.mark.parametrize("collator", COLLATORS, ids=["shared", "padded"])
@pytest.mark.parametrize("batch", [1, 7])
def test_evaluation_is_exact_over_all_pairs_whatever_the_batch(dpo_trainer, toy_pairs, tiny_llama, batch, collator):
    reference = copy.deepcopy(tiny_llama)
    trainer = dpo_trainer(per_device_eval_batch_size=batch, collator=collator)
    moved(tiny_llama, by=0.1)
    metrics = trainer.evaluate()
    for name, value in naive(tiny_llama, reference, toy_pairs.eval).items():
        assert metrics[name] == pytest.approx(value, abs=1e-5), name
    assert "eval_num_tokens" not in metrics
    assert {"eval_logps/chosen", "eval_logps/rejected", "eval_entropy", "eval_rewards/rejected"} <= metrics.keys()


def test_of_the_loss_sft_evaluation_is_the_mean_over_tokens(dpo_trainer, toy_pairs, tiny_llama):
    metrics = dpo_trainer(per_device_eval_batch_size=7, loss_type=["sigmoid", "sft"], loss_weights=[2.0, 0.5]).evaluate()
    tokens = sum(len(e["chosen_ids"]) for e in toy_pairs.eval)
    nothing = naive(tiny_llama, tiny_llama, toy_pairs.eval)["eval_loss"]
    assert nothing == pytest.approx(math.log(2))
    log_p = metrics["eval_logps/chosen"] * len(toy_pairs.eval)
    assert metrics["eval_loss"] == pytest.approx(2 * math.log(2) - 0.5 * log_p / tokens, abs=1e-5)


def test_nothing_is_kept_but_means(dpo_trainer):
    trainer = dpo_trainer(per_device_eval_batch_size=3)
    kept = []
    step = trainer.prediction_step
    trainer.prediction_step = lambda *args, **kwargs: kept.append(step(*args, **kwargs)) or kept[-1]
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation", prediction_loss_only=True)
    assert kept == [(None, None, None)] * 10
    assert (output.predictions, output.label_ids) == (None, None)
    assert not trainer._metrics["eval"]


@pytest.mark.parametrize("collator", COLLATORS, ids=["shared", "padded"])
def test_only_answers_reach_the_head(dpo_trainer, toy_pairs, monkeypatch, collator):
    rows = []
    real = efficient.LogProbFunction.apply

    def counted(self, hidden, *rest):
        rows.append(hidden.shape[0])
        return real(self, hidden, *rest)

    monkeypatch.setattr(efficient.LogProbFunction, "apply", counted)
    dpo_trainer(num_train_epochs=1.0, eval_strategy="no", eval_on_start=False, collator=collator).train()
    answers = sum(len(e["chosen_ids"]) + len(e["rejected_ids"]) for e in toy_pairs.train)
    assert sum(rows) == 2 * answers  # for the model and for its reference


def test_what_shared_rows_save(dpo_trainer, toy_pairs):
    """The tokens that the model computes: a shared row has the prompt once, its last token twice, and not the answers' last tokens."""
    trainers = [dpo_trainer(num_train_epochs=1.0, eval_strategy="no", eval_on_start=False, collator=collator) for collator in COLLATORS]
    for trainer in trainers:
        trainer.train()
    lengths = [[len(e[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")] for e in toy_pairs.train]
    assert trainers[0].state.num_input_tokens_seen == sum(p + c - 1 + r for p, c, r in lengths)
    assert trainers[1].state.num_input_tokens_seen == sum(2 * p + c + r for p, c, r in lengths)


@pytest.fixture
def trained(dpo_trainer, tiny_llama):
    """A function that trains from the same weights each time -> the trainer, and the weights afterwards."""
    start = copy.deepcopy(tiny_llama.state_dict())

    def run(wrap=lambda model: model, resume=None, **changes):
        base = copy.deepcopy(tiny_llama)
        base.load_state_dict(start)
        trainer = dpo_trainer(wrap(base), **{"num_train_epochs": 1.0, **changes})
        trainer.train(resume_from_checkpoint=resume)
        return trainer, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}

    return run


def losses(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("wrap", [lambda model: model, adapted], ids=["full", "lora"])
def test_precomputed_reference_logps_give_the_same_losses(trained, wrap):
    on_the_way, _ = trained(wrap)
    beforehand, _ = trained(wrap, precompute_ref_log_probs=True)
    assert losses(beforehand) == pytest.approx(losses(on_the_way), abs=1e-5)
    assert losses(beforehand, "eval_loss") == pytest.approx(losses(on_the_way, "eval_loss"), abs=1e-5)


def test_the_best_whole_weights_are_compared_with_where_training_began(trained, tiny_llama, toy_pairs, tmp_path):
    """Here the highest loss counts as the best, so that the best checkpoint isn't the last."""
    reference = copy.deepcopy(tiny_llama)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "save_total_limit": 1}
    trainer, _ = trained(learning_rate=0.05, max_steps=9, output_dir=tmp_path, **best, **saving)
    told = losses(trainer, "eval_loss")[1:]
    assert told[-1] < max(told)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(max(told), abs=1e-6)
    for name, value in naive(trainer.model, reference, toy_pairs.eval).items():
        assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name


def test_a_continued_adapter_is_compared_with_its_initial_weights(trained, tiny_llama):
    trainer, _ = trained(lambda model: adapted(model, init_lora_weights=False))
    assert losses(trainer, "eval_loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(trainer, "eval_rewards/margins")[0] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("known", [False, True], ids=["computed in training", "precomputed"])
def test_resumed_to_the_same_bits(trained, tmp_path, caplog, monkeypatch, known):
    caplog.set_level("INFO", "llmmod.train")
    settings = {"save_strategy": "steps", "save_steps": 5, "precompute_ref_log_probs": known, "eval_on_start": False}
    _, whole = trained(adapted, output_dir=tmp_path / "whole", **settings)
    _, again = trained(adapted, output_dir=tmp_path / "again", **settings)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    if known:
        monkeypatch.setattr("llmmod.trainers.preference.base.ReferenceTrainer._computed", None)  # is not called again
    _, resumed = trained(adapted, resume=str(tmp_path / "whole" / "checkpoint-5"), output_dir=tmp_path / "resumed", **settings)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert ("the reference's log-probabilities are those of" in caplog.text) is known


def test_a_reference_that_follows_the_model_is_in_the_checkpoint(trained, tmp_path):
    """Steps 3 and 6 move it half of the way; step 4, between two lines of the log, has the checkpoint."""
    settings = {"sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.5, "num_train_epochs": 2.0}
    settings |= {"save_strategy": "steps", "save_steps": 4, "logging_steps": 3.0, "save_total_limit": None}
    trainer, whole = trained(output_dir=tmp_path, **settings)
    again, resumed = trained(resume=str(tmp_path / "checkpoint-4"), output_dir=tmp_path / "resumed", **settings | {"eval_on_start": False})
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert losses(again) == losses(trainer)
    assert losses(again, "rewards/margins") == losses(trainer, "rewards/margins")
    assert losses(again, "train_loss") == losses(trainer, "train_loss")


def test_stored_logps_of_another_model_are_computed_again(trained, tmp_path):
    settings = {"precompute_ref_log_probs": True, "output_dir": tmp_path, "eval_on_start": True}
    trained(adapted, **settings)
    trainer, _ = trained(lambda model: adapted(moved(model, by=0.2)), **settings)
    assert losses(trainer, "eval_loss")[0] == pytest.approx(math.log(2), abs=1e-6)


def test_a_stream_cannot_be_precomputed(dpo_trainer, toy_pairs):
    stream = toy_pairs.train.to_iterable_dataset()
    with pytest.raises(ConfigError, match=r"training\.precompute_ref_log_probs: true, but the end of a streamed dataset is unknown"):
        dpo_trainer(train=stream, max_steps=2, precompute_ref_log_probs=True, gradient_accumulation_steps=1).train()


def test_whole_weights_alone_have_nothing_to_be_compared_with(dpo_trainer, toy_pairs):
    with pytest.raises(ConfigError, match="whole weights don't come with the reference model"):
        dpo_trainer(train=toy_pairs.eval).evaluate()


def test_an_adapter_alone_is_compared_with_the_model_without_it(dpo_trainer, toy_pairs, tiny_llama):
    reference = copy.deepcopy(tiny_llama)
    model = moved(adapted(tiny_llama), by=0.1).eval()
    metrics = dpo_trainer(model, train=toy_pairs.eval).evaluate()
    for name, value in naive(model, reference, toy_pairs.eval).items():
        assert metrics[name] == pytest.approx(value, abs=1e-5), name


def test_a_stream_is_trained_on(dpo_trainer, toy_pairs):
    trainer = dpo_trainer(train=toy_pairs.train.to_iterable_dataset(), max_steps=2)
    trainer.train()
    assert len(losses(trainer)) == 2
