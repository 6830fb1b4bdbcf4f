"""Contradicting arguments of dpo, kto and rm are refused before anything is loaded."""

from __future__ import annotations

import pytest
from trl.trainer import dpo_trainer

from llmmod.config.schema.training import LOSSES, WITH_DIVERGENCE

WRONG = {
    "loss": (
        "training.loss_type=[sigmiod]",
        "training.loss_type: found 'sigmiod'. Did you mean 'sigmoid' or 'sigmoid_norm'?",
    ),
    "none": ("training.loss_type=[]", f"training.loss_type: is empty. Allowed: {', '.join(LOSSES)}."),
    "weights": (
        "training.loss_type=[sigmoid,sft] training.loss_weights=[1]",
        "training.loss_weights: 1 for 2 losses. Give one for each of: sigmoid, sft.",
    ),
    "beta": ("training.beta=0", "training.beta: 0, with which nothing is learned. Allowed: above 0."),
    "exo": (
        "training.loss_type=[exo_pair]",
        "training.label_smoothing: 0, but the loss exo_pair takes its logarithm. Set it; its paper uses 1e-3.",
    ),
    "robust": (
        "training.loss_type=[robust] training.label_smoothing=0.5",
        "training.label_smoothing: found 0.5 with the loss robust. Allowed: 0 or more and below 0.5.",
    ),
    "wpo": (
        "training.loss_type=[sft,aot] training.use_weighting=true",
        "training.use_weighting: true, but the loss sft and aot doesn't have a weight for each pair. "
        "Set it to false, or choose another loss.",
    ),
    "divergence": (
        "training.f_divergence_type=kl",
        "training.f_divergence_type: found 'kl'. Allowed: reverse_kl, forward_kl, js_divergence, alpha_divergence.",
    ),
    "divergence with a loss": (
        "training.loss_type=[bco_pair] training.f_divergence_type=forward_kl",
        "training.f_divergence_type: forward_kl, but the loss bco_pair exists only for reverse_kl. "
        f"Set it to reverse_kl, or choose among {', '.join(WITH_DIVERGENCE)}.",
    ),
    "a stream": (
        "training.precompute_ref_log_probs=true dataset.streaming=true training.max_steps=2",
        "training.precompute_ref_log_probs: true with dataset.streaming=true, but a stream may be endless. Set one of them to false.",
    ),
    "shifted": (
        "training.precompute_ref_log_probs=true model.shift_attn=true",
        "training.precompute_ref_log_probs: true with model.shift_attn=true, which is only used in training. Set one of them to false.",
    ),
    "synced and known": (
        "finetune=full training.sync_ref_model=true training.precompute_ref_log_probs=true",
        "training.sync_ref_model: true with training.precompute_ref_log_probs=true. Set one of them to false.",
    ),
    "synced adapter": (
        "training.sync_ref_model=true",
        "training.sync_ref_model: true with finetune=lora, whose reference is the model without the adapter. "
        "Set it to false, or use finetune=full.",
    ),
    "tau": ("training.discopop_tau=0.1", "training.discopop_tau: only the loss discopop reads it."),
    "smoothing": ("training.label_smoothing=0.1", "training.label_smoothing: only the losses exo_pair, robust and aot read it."),
    "ld": ("training.ld_alpha=2", "training.ld_alpha: found 2. Allowed: from 0 to 1."),
    "sync steps": (
        "finetune=full training.ref_model_sync_steps=8",
        "training.ref_model_sync_steps: not read with sync_ref_model=false.",
    ),
}
RIGHT = (
    "training.loss_type=[sigmoid,bco_pair,sft] training.loss_weights=[0.8,0.2,1]",
    "training.loss_type=[robust] training.label_smoothing=0.1",
    "training.loss_type=[discopop] training.discopop_tau=0.1",
    "finetune=full training.sync_ref_model=true training.ref_model_sync_steps=8",
    "finetune=freeze training.precompute_ref_log_probs=true training.precompute_ref_batch_size=2",
)

_INSTEAD = "or set training.loss_type=apo_zero_unpaired, which doesn't need them."
WRONG_JUDGED = {
    "beta": ("training.beta=0", "training.beta: 0, with which nothing is learned. Allowed: above 0."),
    "weights": (
        "training.desirable_weight=0 training.undesirable_weight=0",
        "training.desirable_weight: 0 like training.undesirable_weight, with which nothing is learned. Set one of them above 0.",
    ),
    "alone": (
        "training.per_device_train_batch_size=1",
        "training.per_device_train_batch_size: 1, but the loss kto needs mismatched pairs, which are made within a batch. "
        f"Set it to 2 or more, {_INSTEAD}",
    ),
    "beforehand": (
        "training.precompute_ref_log_probs=true",
        "training.precompute_ref_log_probs: true, but the loss kto needs mismatched pairs, which are made during training. "
        f"Set it to false, {_INSTEAD}",
    ),
}


@pytest.mark.parametrize(("overrides", "expected"), WRONG.values(), ids=WRONG)
def test_refused(told, overrides, expected):
    found = told("stage=dpo", *overrides.split())
    assert [line for line in found if line.startswith(expected)] == found


@pytest.mark.parametrize("overrides", RIGHT)
def test_right(told, overrides):
    assert told("stage=dpo", *overrides.split()) == []


@pytest.mark.parametrize(("overrides", "expected"), WRONG_JUDGED.values(), ids=WRONG_JUDGED)
def test_refused_in_kto(told, overrides, expected):
    assert told("stage=kto", *overrides.split()) == [expected]


def test_a_loss_without_mismatched_pairs_allows_single_rows(told):
    alone = ("training.per_device_train_batch_size=1", "training.precompute_ref_log_probs=true")
    assert told("stage=kto", "training.loss_type=apo_zero_unpaired", *alone) == []


@pytest.mark.parametrize("stage", ["rm", "dpo", "kto", "ppo"])
def test_dropout_of_an_adapter_needs_a_stage_that_keeps_it(told, stage):
    found = told(f"stage={stage}", "finetune.lora_dropout=0.1")
    assert found == ["finetune.lora_dropout: not read with training.disable_dropout=true. Set training.disable_dropout=false."]
    assert told(f"stage={stage}", "finetune.lora_dropout=0.1", "training.disable_dropout=false") == []
    assert told(f"stage={stage}", "finetune.lora_dropout=0") == []


def test_dropout_is_read_where_one_of_several_stages_has_it(told):
    assert told("experiment=rlhf", "finetune.lora_dropout=0.1") == []


def test_the_coefficient_that_centres_rewards_is_not_negative(told):
    found = told("stage=rm", "training.center_rewards_coefficient=-0.1")
    assert found == ["training.center_rewards_coefficient: found -0.1. Allowed: 0 or more."]


def test_the_losses_are_those_that_trl_s_code_knows():
    with open(dpo_trainer.__file__, encoding="utf-8") as file:
        source = file.read()
    assert {loss for loss in LOSSES if f'loss_type == "{loss}"' in source} == set(LOSSES)
    assert source.count('if loss_type == "') == len(LOSSES)
