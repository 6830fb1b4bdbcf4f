"""llmmod.trainers.online.rewards: functions are called as in trl's GRPO, and reward models give the same scores however they are loaded."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import dispatch_model
from trl.trainer.utils import add_fused_lm_head
from ways import moved

from llmmod.config.schema.model import LoraConf, QuantizationConf, decides_weights
from llmmod.config.schema.training import DEFAULT, rehearsed, reward_nodes
from llmmod.errors import ConfigError, RunError
from llmmod.models.adapters.base_changing_init import save_for_base
from llmmod.models.adapters.reward_models import load_reward_model
from llmmod.models.adapters.setup import setup_lora
from llmmod.models.loading.load import load_model
from llmmod.models.loading.quantization import quantization_config
from llmmod.models.loading.stage_file import StageFile, write_stage_file
from llmmod.models.loading.structure import rebuild_model
from llmmod.models.reward import mark_trained, score, with_reward_head
from llmmod.protocols import ModelLineage
from llmmod.trainers.online.rewards import LINEAGE_ATTRIBUTE, Completions, FunctionScorer, ModelScorer, rewards_from

COLUMNS = {"prompt_ids": [[11, 12], [21, 22, 23]], "answer": ["a", "b"]}
ANSWERS = Completions([[11, 12], [21, 22, 23]], [[31, 32, 33], [41]], COLUMNS, ["read so", "and so"])

MADE = """
def made(function):
    return function

@made
async def waits(completions, **columns): ...

class Waits:
    __call__ = waits

@made
def logs(completions, log_extra, **columns): ...
"""


def test_the_configured_rewards():
    assert reward_nodes({}) == reward_nodes({"path": None, "step": None}) == DEFAULT
    assert reward_nodes({"path": "x", "step": None}) == {"reward": {"path": "x"}}
    assert reward_nodes({"path": None, "a": {"_target_": "f"}, "b": None}) == {"a": {"_target_": "f"}}
    assert rehearsed({"path": "x"}) == {}
    assert rehearsed({"a": {"path": "x"}, "b": {"step": "rm"}}) == {"b": {"step": "rm"}}


class TestFunctions:
    @pytest.fixture
    def called(self, tiny_tokenizer):
        """A function: return value of a reward function -> the scores of ANSWERS, and the arguments that the function got."""

        def call(given, columns=None, **settings):
            seen = {}

            def function(**arguments):
                seen.update(arguments)
                return given

            answers = replace(ANSWERS, columns={**ANSWERS.columns, **(columns or {})})
            return FunctionScorer("mine", function, tiny_tokenizer, **settings)(answers), seen

        return call

    def test_texts(self, called, tiny_tokenizer):
        scores, seen = called([1, 0.5])
        assert scores.tolist() == [1.0, 0.5]
        assert seen.keys() == {"prompts", "completions", "completion_ids", "answer"}
        assert seen["prompts"] == [tiny_tokenizer.decode(ids).strip() for ids in ANSWERS.prompts]
        assert seen["completions"] == ["read so", "and so"]
        assert seen["completion_ids"] == ANSWERS.ids

    def test_messages(self, called):
        asked = [[{"role": "user", "content": "A?"}], [{"role": "user", "content": "B?"}]]
        _, seen = called([0, 0], {"prompt": asked})
        assert seen["prompts"] == asked
        assert [message["role"] for (message,) in seen["completions"]] == ["assistant"] * 2

    def test_a_score_of_none_counts_as_zero(self, called):
        assert called([None, 2])[0].tolist() == [0.0, 2.0]
        torch.testing.assert_close(called([None, 2], left_out=torch.nan)[0], torch.tensor([torch.nan, 2.0]), equal_nan=True)

    def test_what_is_no_score(self, called):
        with pytest.raises(RunError, match=r"training\.reward\.mine: the function gave 1 numbers for 2 completions"):
            called([1.0])
        with pytest.raises(RunError, match=r"training\.reward\.mine: the function gave nan, which is not a score"):
            called([1.0, float("nan")])

    def test_named_by_their_path(self, tiny_tokenizer, tmp_path):
        conf = {"overlap": {"_target_": "llmmod.rewards.overlap"}}
        rewards = rewards_from(conf, {"overlap": 2.0}, model=None, tokenizer=tiny_tokenizer, run_dir=tmp_path, rows=2)
        scores = rewards(Completions([[1]], [[31, 32, 33]], {"answer": ["so it is"]}, ["So it is."]))
        assert scores.tolist() == [2.0]

    def test_functions_that_cannot_be_called(self, tiny_tokenizer, tmp_path, monkeypatch):
        """Another function created this one, so its source doesn't show the problem, and the error comes late."""
        (tmp_path / "made_rewards.py").write_text(MADE)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("LLMMOD_ALLOW", "made_rewards")
        for name, said in {"waits": "is an async def", "Waits": "is an async def", "logs": "can't do without log_extra, which"}.items():
            conf = {"mine": {"_target_": f"made_rewards.{name}"}}
            with pytest.raises(ConfigError, match=rf"training\.reward: made_rewards\.{name} {said}"):
                rewards_from(conf, {}, model=None, tokenizer=tiny_tokenizer, run_dir=tmp_path, rows=2)


KINDS = [
    pytest.param({}, id="lora"),
    pytest.param({"bias": "all"}, id="biases"),
    pytest.param({"modules_to_save": ["final_layernorm"]}, id="norm"),
    pytest.param({"init_lora_weights": "pissa"}, id="pissa"),
]


class TestModels:
    @pytest.fixture
    def base(self, tiny_llama, tmp_path):
        """The tiny model, loaded from a directory, so that it has a name."""
        tiny_llama.save_pretrained(tmp_path / "base")
        return load_model(str(tmp_path / "base"))

    @pytest.fixture
    def biased(self, tiny_tokenizer, tmp_path):
        """A tiny model whose layers have biases, loaded from a directory."""
        from transformers import PhiConfig, PhiForCausalLM

        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "partial_rotary_factor": 0.5}
        PhiForCausalLM(PhiConfig(vocab_size=len(tiny_tokenizer), initializer_range=0.1, **shape)).save_pretrained(tmp_path / "biased")
        return load_model(str(tmp_path / "biased"))

    @pytest.fixture
    def path(self, base, tmp_path):
        """A reward adapter that was trained on it."""
        model = setup_lora(with_reward_head(copy.deepcopy(base)), lora())
        return saved(model, tmp_path / "rm")

    @pytest.fixture
    def scores(self, path):
        """The reward model's own score of each text alone."""
        model, texts = load_reward_model(str(path)), [p + a for p, a in zip(ANSWERS.prompts, ANSWERS.ids, strict=True)]
        with torch.no_grad():
            return torch.stack([model(input_ids=torch.tensor([text])).logits[0, 0] for text in texts])

    def scorer(self, path, policy):
        return ModelScorer(str(path), policy, name="reward_rm", pad_id=0, rows=1)

    def test_beside_the_policy_s_own_adapter(self, base, path, scores):
        policy = setup_lora(base, lora())
        flags = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
        scorer = self.scorer(path, policy)
        assert scorer.shares_base
        torch.testing.assert_close(scorer(ANSWERS), scores, rtol=1e-5, atol=1e-5)
        assert {name: p.requires_grad for name, p in policy.named_parameters() if "reward_rm" not in name} == flags
        scorer.release()
        assert list(policy.peft_config) == ["default"]

    def test_on_a_copy_where_the_policy_has_no_adapter(self, base, path, scores):
        scorer = self.scorer(path, base)
        with torch.no_grad():
            for parameter in base.parameters():
                parameter.zero_()
        torch.testing.assert_close(scorer(ANSWERS), scores, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("spread", [False, True])
    def test_on_a_policy_with_a_patched_forward(self, base, path, scores, spread):
        """trl patches it to fuse the head into the loss, accelerate for a model that is spread over devices."""
        if spread:
            dispatch_model(base, device_map={"": "cpu"}, force_hooks=True)
            base.hf_device_map = {"model": "cpu", "lm_head": "disk"}
        else:
            add_fused_lm_head(base)
        torch.testing.assert_close(self.scorer(path, base)(ANSWERS), scores, rtol=1e-5, atol=1e-5)

    def test_on_its_own_base_where_the_policy_began_with_another(self, base, path, scores, tmp_path):
        """The bases have the same name, but another adapter was merged, as stage.json says."""
        write_stage_file(path, StageFile("rm", "adapter", "reward", base=str(tmp_path / "base"), render="chatml"))
        policy = setup_lora(base, lora())
        setattr(policy.get_base_model(), LINEAGE_ATTRIBUTE, ModelLineage(str(tmp_path / "base"), ["../sft"]).resolve(tmp_path / "ppo"))
        scorer = self.scorer(path, policy)
        assert not scorer.shares_base
        torch.testing.assert_close(scorer(ANSWERS), scores, rtol=1e-5, atol=1e-5)
        setattr(policy.get_base_model(), LINEAGE_ATTRIBUTE, ModelLineage(str(tmp_path / "base"), []).resolve(tmp_path / "ppo"))
        assert self.scorer(path, policy).shares_base

    @pytest.mark.parametrize("policy_s", KINDS)
    @pytest.mark.parametrize("reward_s", KINDS)
    def test_scores_do_not_use_weights_of_the_base_that_the_policy_trains(self, biased, tmp_path, policy_s, reward_s):
        path = saved(setup_lora(with_reward_head(copy.deepcopy(biased)), lora(**reward_s)), tmp_path / "rm")
        texts = [torch.tensor([prompt + answer]) for prompt, answer in zip(ANSWERS.prompts, ANSWERS.ids, strict=True)]
        expected = torch.cat([score(load_reward_model(str(path)), text) for text in texts])
        policy = setup_lora(biased, lora(**policy_s))
        scorer = self.scorer(path, policy)
        moved(policy, by=0.1)
        left = {name: p.detach().clone() for name, p in policy.named_parameters()}
        torch.testing.assert_close(scorer(ANSWERS), expected, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(p, left[name]) for name, p in policy.named_parameters())
        scorer.release()
        assert list(policy.peft_config) == ["default"]

    @pytest.mark.parametrize("bits", [4, 8])
    def test_a_quantized_base_is_another_than_its_float_original(self, base, path, scores, bits, tmp_path):
        """Each reward model scores with the base weights that it was trained on, whatever the policy's are."""
        conf = QuantizationConf(bits=bits)
        float_base = ModelLineage(str(tmp_path / "base"), [])
        quantized_base = float_base._replace(quantization=decides_weights(conf))
        quantized = rebuild_model(copy.deepcopy(base), quantization_config=quantization_config(conf))
        own = saved(setup_lora(with_reward_head(copy.deepcopy(quantized)), lora()), tmp_path / "rm_quantized")
        left = {"stage": "rm", "kind": "adapter", "head": "reward", "render": "chatml"}
        assert not self.scorer(path, setup_lora(copy.deepcopy(quantized), lora())).shares_base  # the base that it was trained on is unknown
        write_stage_file(path, StageFile(**left, **float_base._asdict()))
        write_stage_file(own, StageFile(**left, **quantized_base._asdict()))
        found = {}
        for name, model, began in (("float", base, float_base), ("quantized", quantized, quantized_base)):
            policy = setup_lora(model, lora())
            setattr(policy.get_base_model(), LINEAGE_ATTRIBUTE, began.resolve(tmp_path / "ppo"))
            scorers = {"float": self.scorer(path, policy), "quantized": self.scorer(own, policy)}
            assert {reward: scorer.shares_base for reward, scorer in scorers.items()} == {reward: reward == name for reward in scorers}
            found[name] = {reward: scorer(ANSWERS) for reward, scorer in scorers.items()}
        torch.testing.assert_close(found["quantized"]["float"], scores, rtol=1e-5, atol=1e-5)
        # 8 bit rounds activations by the batch's largest, which includes padding if answers are scored together. Here each is scored alone.
        torch.testing.assert_close(found["quantized"]["quantized"], found["float"]["quantized"], rtol=1e-5, atol=1e-5)
        assert (found["float"]["quantized"] - found["float"]["float"]).abs().max() > 1e-3

    def test_another_vocabulary_is_refused(self, path):
        other = SimpleNamespace(device=torch.device("cpu"), name_or_path="other", config=SimpleNamespace(), modules=list)
        other.config.get_text_config = lambda: SimpleNamespace(vocab_size=7)
        with pytest.raises(ConfigError, match=r"training\.reward: .* has a vocabulary of 400 tokens, but the trained model has 7"):
            self.scorer(path, other)

    def test_the_policy_alone_is_saved(self, base, path, tmp_path, tiny_tokenizer):
        policy = setup_lora(base, lora())
        rewards = rewards_from({"path": str(path)}, {}, model=policy, tokenizer=tiny_tokenizer, run_dir=tmp_path, rows=1)
        with rewards.left_out(policy):
            policy.save_pretrained(tmp_path / "saved")
        assert not [entry for entry in (tmp_path / "saved").iterdir() if entry.is_dir()]
        assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()


def lora(**fields):
    return LoraConf(**{"name": "lora", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | fields)


def saved(model, directory):
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.empty(parameter.shape).normal_(generator=draw)
    mark_trained(model)
    model.save_pretrained(directory)
    save_for_base(model, directory)
    return directory
