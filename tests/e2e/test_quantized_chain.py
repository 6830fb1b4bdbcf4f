"""Chains of training steps on 4-bit and 8-bit weights: each step starts from the previous one's result, in memory or from the disk."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint import checkpoint, overrides_of, rows
from transformers import AutoModelForCausalLM

import llmmod
from llmmod.models.adapters.reward_models import load_reward_model
from llmmod.models.reward import score
from llmmod.trainers.online.rewards import ModelScorer

__all__ = ["checkpoint", "rows"]

NEAR = 1e-3  # losses are around 6, and training changes them by more than 0.1
MOVES = ["max_steps=8", "learning_rate=1e-2", "lr_scheduler_type=constant"]
STAYS = ["max_steps=1", "learning_rate=1e-12"]


def of(step, *fields):
    return [f"steps.{step}.training.{field}" for field in ("use_cpu=true", "save_strategy=no", *fields)]


@pytest.fixture
def run(checkpoint, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path / "cache"))

    def run(name, bits, *more, own_data=False):
        """The metrics of a run; with `own_data` each step has its own dataset."""
        given = [text for text in overrides_of(checkpoint, rows) if text != "finetune.r=2"]  # steps that don't train refuse it
        given = [text for text in given if not own_data or "dataset" not in text]
        given += ["finetune=qlora", f"model.quantization.bits={bits}", f"output_dir={tmp_path / name}"]
        return llmmod.run(llmmod.compose([*given, *more]))

    return run


@pytest.mark.parametrize("bits", [4, 8])
def test_sft_after_sft(run, bits, tmp_path):
    chain = ["experiment=stages", "steps.second.model={from_step: first}", *of("first", *MOVES)]
    metrics = run("one", bits, *chain, *of("second", *MOVES), "pipeline=[first,second,evaluate,export]")
    assert metrics["first/eval_loss"] < metrics["first/eval_loss_before"] - 0.1
    assert metrics["second/eval_loss_before"] == pytest.approx(metrics["first/eval_loss"], abs=NEAR)
    assert metrics["second/eval_loss"] != pytest.approx(metrics["first/eval_loss"], abs=10 * NEAR)
    assert metrics["eval_loss"] == pytest.approx(metrics["second/eval_loss"], abs=NEAR)
    # The first step is reused from an earlier run, so it is read from the disk.
    again = run("two", bits, *chain, *of("second", *STAYS), "pipeline=[first,second]")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["steps"][0]["reused_from"] == str(tmp_path / "one" / "first")
    assert again["second/eval_loss_before"] == pytest.approx(metrics["first/eval_loss"], abs=NEAR)
    # Both adapters, given by their paths.
    both = run("both", bits, f"finetune.adapters=[{tmp_path}/one/first,{tmp_path}/one/second]", "pipeline=[evaluate,predict]")
    assert both["eval_loss"] == pytest.approx(metrics["second/eval_loss"], abs=NEAR)
    exported = run("exported", "null", f"model.pretrained_model_name_or_path={tmp_path}/one/export", "finetune=lora", "pipeline=[evaluate]")
    # The 8-bit model rounds activations, which the export doesn't.
    assert exported["eval_loss"] == pytest.approx(metrics["second/eval_loss"], abs=NEAR if bits == 4 else 0.05)
    tensors = AutoModelForCausalLM.from_pretrained(tmp_path / "one" / "export").state_dict().values()
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.parametrize("bits", [4, 8])
def test_sft_rm_ppo(run, rows, bits, tmp_path, monkeypatch):
    """The policy starts from sft's result, and the reward model scores as after its own training, though both share one base."""
    scored, scorers, own = [], [], ModelScorer.__call__

    def call(scorer, answers):
        found = own(scorer, answers)
        scorers.append(scorer.shares_base)
        scored.extend(zip([[*p, *a] for p, a in zip(answers.prompts, answers.ids, strict=True)], found, strict=True))
        return found

    monkeypatch.setattr(ModelScorer, "__call__", call)
    short = ["per_device_train_batch_size=1", "max_completion_length=4", "eval_on_start=false", "eval_strategy=no"]
    ppo = of("ppo", *STAYS, *short)
    chain = [*of("sft", *MOVES), *of("rm", *MOVES), *ppo, "pipeline=[sft,rm,ppo]"]
    for step in ("sft", "rm", "ppo"):
        chain += [f"dataset@steps.{step}.dataset=json", f"steps.{step}.dataset.data_files={rows}", f"steps.{step}.dataset.val_size=2"]
    chain += ["steps.sft.dataset.columns={prompt: prompt, response: response}", "steps.ppo.dataset.columns={prompt: prompt}"]
    metrics = run("one", bits, "experiment=rlhf", *chain, own_data=True)
    assert metrics["sft/eval_loss"] < metrics["sft/eval_loss_before"] - 0.1
    assert all(scorers)
    reward = load_reward_model(str(tmp_path / "one" / "rm")).eval()
    expected = torch.stack([score(reward, torch.tensor([text]))[0] for text, _ in scored])
    torch.testing.assert_close(torch.stack([value for _, value in scored]), expected, rtol=NEAR, atol=NEAR)
    policy = f"finetune.adapters=[{tmp_path}/one/sft,{tmp_path}/one/ppo]"
    # ppo has hardly changed the policy.
    assert run("after", bits, policy, "pipeline=[evaluate]")["eval_loss"] == pytest.approx(metrics["sft/eval_loss"], abs=NEAR)
