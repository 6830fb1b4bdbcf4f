"""LoRA+: each matrix has the right learning rate, and its weights change at this rate."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import TrainerCallback

from llmmod.errors import ConfigError
from llmmod.trainers.base import loraplus_optimizer
from llmmod.trainers.build import trainer_from


@pytest.fixture
def adapted(tiny_llama):
    torch.manual_seed(2)
    return get_peft_model(tiny_llama, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"))


def plus(trainer, ratio=16.0):
    trainer.loraplus_lr_ratio = ratio
    return trainer


def rates(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_the_learning_rate_of_b_is_the_ratio_times_that_of_a(toy_trainer, adapted):
    """Hayou et al. 2024, section 4: the same rate for all A, ratio times that for all B."""
    found = rates(adapted, plus(toy_trainer(model=adapted, learning_rate=1e-3)).create_optimizer())
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert found.keys() == trained
    assert found == {name: pytest.approx(16e-3 if "lora_B" in name else 1e-3) for name in trained}
    assert {"lora_A" in name for name in trained} == {True, False}


def test_the_groups_are_pefts(toy_trainer, adapted):
    ours = plus(toy_trainer(model=adapted, learning_rate=1e-3, weight_decay=0.1, adam_beta2=0.98)).create_optimizer()
    theirs = create_loraplus_optimizer(adapted, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1)
    assert [group["weight_decay"] for group in ours.param_groups] == [group["weight_decay"] for group in theirs.param_groups]
    assert rates(adapted, ours) == rates(adapted, theirs)
    assert {group["betas"] for group in ours.param_groups} == {(0.9, 0.98)}


def test_one_step_of_sgd_moves_each_by_its_rate(toy_trainer, adapted):
    """SGD without momentum: parameter minus rate times gradient."""
    seen = {}

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *args, model, **kwargs):
            seen.update({name: (p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters() if p.requires_grad})

    arguments = {"optim": "sgd", "learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0}
    plus(toy_trainer(model=adapted, callbacks=[Gradients()], max_steps=1, eval_strategy="no", **arguments)).train()
    for name, p in adapted.named_parameters():
        if p.requires_grad:
            before, grad = seen[name]
            torch.testing.assert_close(p.detach(), before - (0.16 if "lora_B" in name else 0.01) * grad, rtol=1e-6, atol=1e-7, msg=name)


def test_the_ratio_stays_under_a_schedule_and_a_ratio_of_1_is_plain_lora(toy_trainer, adapted, tiny_llama):
    trainer = plus(toy_trainer(model=adapted, max_steps=4, eval_strategy="no"))
    trainer.train()
    lrs = {group["lr"] for group in trainer.optimizer.param_groups if group["params"]}
    assert max(lrs) == pytest.approx(16 * min(lrs))


def test_resuming_gives_the_bits_of_the_uninterrupted_run(toy_trainer, tiny_llama, tmp_path):
    def run(**resume):
        torch.manual_seed(2)
        for p in tiny_llama.parameters():
            p.requires_grad_(False)
        model = get_peft_model(tiny_llama, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        trainer = plus(toy_trainer(model=model, max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="no", seed=5))
        trainer.train(**resume)
        state = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        model.unload()
        return state

    whole = run()
    resumed = run(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_optimizer_with_groups_of_its_own_is_refused(toy_trainer, adapted):
    """GaLore's, LOMO's and layer-wise optimizers are recognized without their libraries."""
    args = toy_trainer(model=adapted).args
    with pytest.raises(ConfigError, match=r"finetune.loraplus_lr_ratio: 16, but training.optim=\S+ divides the parameters in a way of"):
        loraplus_optimizer(adapted, 16.0, cls=torch.optim.AdamW, arguments={"lr": 1e-3, "optimizer_dict": {}}, args=args)


def test_a_trainer_that_does_not_know_it_is_refused(toy_trainer, toy_splits, sft_conf, adapted, tiny_tokenizer):
    conf = sft_conf(trainer={"_target_": "trl.SFTTrainer"}, collator={"_target_": "llmmod.data.collators.PaddingCollator"})
    args = toy_trainer(model=adapted).args
    parts = {"train": toy_splits.train, "evaluation": toy_splits.eval, "tokenizer": tiny_tokenizer}
    with pytest.raises(ConfigError, match=r"finetune.loraplus_lr_ratio: 4, but SFTTrainer makes its own optimizer"):
        trainer_from(conf, model=adapted, args=args, loraplus_lr_ratio=4.0, **parts)
