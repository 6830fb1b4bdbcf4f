"""How the steps of a run share models: which model each step gets, and how often a checkpoint is loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llmmod.config.schema.model import LoraConf, ModelConf
from llmmod.config.schema.steps import EvaluateConf, Root, TrainConf
from llmmod.config.schema.training import SftConf
from llmmod.config.step_parts import StepConfigs
from llmmod.pipeline.model_pool import ModelPool
from llmmod.protocols import LoadedModel, ModelLineage

IDS = torch.arange(1, 9)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def run(tiny_llama, tmp_path):
    """A run of training steps, given as name -> (from_step, head), followed by `evaluate`; its checkpoint is the tiny Llama."""
    before = copy.deepcopy(tiny_llama)

    class Run:
        def __init__(self, *, evaluated=None, **steps):
            root = Root(model=ModelConf(name="tiny"), finetune=LoraConf(name="lora"), training=SftConf(stage="sft"))
            for name, (from_step, head) in steps.items():
                model = None if from_step is None else ModelConf(from_step=from_step)
                root.steps[name] = TrainConf(model=model, training=SftConf(stage=name, head=head))
            root.steps["evaluate"] = EvaluateConf(model=None if evaluated is None else ModelConf(from_step=evaluated))
            root.pipeline = list(root.steps)
            self.read, self.released = [], 0
            self.models = ModelPool(StepConfigs(root), load=self._load, on_release=self._count)

        def _load(self, step, conf, *, saved):
            from transformers import AutoModelForCausalLM

            self.read.append(conf.pretrained_model_name_or_path if saved else conf.name)
            return AutoModelForCausalLM.from_pretrained(conf.pretrained_model_name_or_path) if saved else copy.deepcopy(before)

        def _count(self):
            self.released += 1

        def adapter(self, step, *, intact=True):
            """Stands for the training of an adapter: saves a random one; returns the logits with it."""
            torch.manual_seed(len(step))
            adapted = get_peft_model(self.models.base(step), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
            adapted.save_pretrained(tmp_path / step, save_embedding_layers=False)
            self.models.register_trained(step, LoadedModel(adapted, "adapter", trained=True, path=tmp_path / step), base_intact=intact)
            return logits(adapted)

        def full(self, step):
            """Stands for the training of all weights: changes and saves them; returns the logits."""
            model = self.models.base(step)
            with torch.no_grad():
                model.lm_head.weight.mul_(1 + len(step))
            model.save_pretrained(tmp_path / step)
            self.models.register_trained(step, LoadedModel(model, "full", trained=True, path=tmp_path / step), base_intact=False)
            return logits(model)

    return Run


ALONE, AFTER = (None, "language"), ("sft", "language")


def test_a_step_without_from_step_begins_with_the_checkpoint(run, tiny_llama):
    made = run(sft=ALONE, again=ALONE)
    made.adapter("sft")
    assert torch.equal(logits(made.models.base("again")), logits(tiny_llama))
    assert made.read == ["tiny"]  # the adapter was unloaded, and nothing was loaded again


@pytest.mark.parametrize("train", ["full", "adapter"])
def test_a_checkpoint_is_read_anew_where_its_weights_were_changed(run, tiny_llama, train):
    made = run(sft=ALONE, again=ALONE)
    made.full("sft") if train == "full" else made.adapter("sft", intact=False)
    assert torch.equal(logits(made.models.base("again")), logits(tiny_llama))
    assert made.read == ["tiny", "tiny"]


def test_from_step_begins_with_the_adapter_merged(run):
    made = run(sft=ALONE, ppo=AFTER)
    left = made.adapter("sft")
    base = made.models.base("ppo")
    torch.testing.assert_close(logits(base), left, rtol=1e-4, atol=1e-5)
    assert not hasattr(base, "peft_config")
    assert made.read == ["tiny"]
    assert made.models.result("sft").model is None  # its layers are now the base's


def test_from_step_begins_with_the_weights_that_were_left(run, tmp_path):
    made = run(sft=ALONE, ppo=AFTER)
    left = made.full("sft")
    base = made.models.base("ppo")
    assert torch.equal(logits(base), left)
    assert base.name_or_path == str(tmp_path / "sft")  # not the checkpoint any more, which a new adapter wouldn't fit
    assert made.read == ["tiny"]


def test_sft_rm_ppo_share_one_model(run):
    made = run(sft=ALONE, rm=("sft", "reward"), ppo=AFTER)
    left = made.adapter("sft")
    made.adapter("rm")
    base = logits(made.models.base("ppo"))
    torch.testing.assert_close(base, left, rtol=1e-4, atol=1e-5)
    left = made.adapter("ppo")
    assert not torch.allclose(base, left)
    assert torch.equal(logits(made.models.model("evaluate").model), left)
    assert made.read == ["tiny"]


def test_a_reward_model_is_taken_only_by_its_name(run):
    made = run(sft=ALONE, rm=("sft", "reward"))
    left = made.adapter("sft")
    made.adapter("rm")
    found = made.models.model("evaluate")
    torch.testing.assert_close(logits(found.model), left, rtol=1e-4, atol=1e-5)
    assert (found.kind, found.head, made.read) == ("full", "language", ["tiny"])  # its adapter was merged for rm
    named = run(sft=ALONE, rm=("sft", "reward"), evaluated="rm")
    named.adapter("sft")
    named.adapter("rm")
    assert named.models.model("evaluate") is named.models.result("rm")


def test_a_model_that_is_not_in_memory_any_more_is_loaded_from_its_directory(run, tmp_path):
    made = run(sft=ALONE, other=ALONE, evaluated="sft")
    left = made.adapter("sft")
    made.full("other")
    found = made.models.model("evaluate")
    torch.testing.assert_close(logits(found.model), left, rtol=1e-5, atol=1e-6)
    assert (found.kind, made.read) == ("adapter", ["tiny", "tiny"])
    assert made.models.model("evaluate").model is found.model  # and it is kept

    made = run(first=ALONE, other=ALONE, evaluated="first")
    left = made.full("first")
    made.adapter("other")
    assert torch.equal(logits(made.models.model("evaluate").model), left)
    assert made.read == ["tiny", "tiny", str(tmp_path / "first")]


def test_from_step_of_what_an_earlier_run_left(run, tmp_path):
    before = run(sft=ALONE)
    left = before.adapter("sft")
    made = run(sft=ALONE, ppo=AFTER)
    made.models.register_reused("sft", LoadedModel(None, "adapter", trained=True, path=tmp_path / "sft"))
    torch.testing.assert_close(logits(made.models.base("ppo")), left, rtol=1e-4, atol=1e-5)
    assert made.read == ["tiny"]


def test_the_lineage_of_a_steps_initial_model(run):
    made = run(sft=ALONE, dpo=AFTER, ppo=("dpo", "language"))
    made.adapter("sft")
    made.adapter("dpo")
    assert made.models.training_lineage("ppo") == ModelLineage(None, ["../sft", "../dpo"])
    made = run(sft=ALONE, ppo=AFTER)
    made.full("sft")
    assert made.models.training_lineage("ppo") == ModelLineage("../sft", [])


def test_the_lineage_of_the_base_of_an_evaluated_adapter(run):
    made = run(sft=ALONE, ppo=AFTER)
    made.adapter("sft")
    made.adapter("ppo")
    assert made.models.base_lineage("evaluate") == ModelLineage(None, ["../sft"])
    made = run()
    made.models._parts.of("evaluate", "finetune").adapters.extend(["first", "second"])
    assert made.models.base_lineage("evaluate") == ModelLineage(None, ["first"])


def test_other_references_are_released_before_a_model_is_dropped(run):
    made = run(sft=ALONE, again=ALONE)
    made.full("sft")
    assert made.released == 0
    made.models.base("again")
    assert made.released >= 1
