"""llmmod.models.adapters.reward_models and shared_base_reward: models load from disk bit for bit, and never without their head."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmmod.config.schema.model import FreezeConf, FullConf, LoraConf, QuantizationConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.load import load_adapter, merge_adapters
from llmmod.models.adapters.merge import merged_copy
from llmmod.models.adapters.precision import to_stored_dtype
from llmmod.models.adapters.reward_models import load_reward_model, shared_base_reward
from llmmod.models.adapters.setup import setup_freeze, setup_full, setup_inference, setup_lora
from llmmod.models.loading.load import load_model
from llmmod.models.loading.quantization import quantization_config
from llmmod.models.loading.stage_file import StageFile, write_stage_file
from llmmod.models.loading.structure import rebuild_model
from llmmod.models.reward import mark_trained, require_head, score, with_reward_head

IDS = torch.arange(5, 23).reshape(2, 9)


def lora(**changes):
    return LoraConf(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes})


def trained(model, seed=5):
    """The model with every trained weight changed a little."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.empty(parameter.shape).normal_(generator=draw).to(parameter.dtype)
    mark_trained(model)
    return model.eval()


@pytest.fixture
def adapter(llama_directory, tmp_path):
    """A trained reward adapter's directory, and its scores of IDS."""
    model = trained(setup_lora(with_reward_head(load_model(str(llama_directory))), lora()))
    model.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm", score(model, IDS)


@pytest.fixture
def full(tiny_llama, tmp_path):
    """A trained reward model's directory, and its scores of IDS."""
    model = trained(setup_full(with_reward_head(tiny_llama), FullConf()))
    model.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm", score(model, IDS)


def without_head(path):
    file = next(path.glob("*.safetensors"))
    save_file({name: tensor for name, tensor in load_file(file).items() if "score" not in name}, file, {"format": "pt"})


def test_a_full_model_comes_back_bit_for_bit(full):
    path, scores = full
    assert torch.equal(score(load_reward_model(str(path)), IDS), scores)


def test_a_bfloat16_model_comes_back_with_a_float32_head(llama_directory, tmp_path):
    model = trained(setup_full(with_reward_head(load_model(str(llama_directory), dtype="bfloat16")), FullConf()))
    to_stored_dtype(model)  # as the train step does before saving
    model.save_pretrained(tmp_path)
    loaded = load_reward_model(str(tmp_path))
    assert (loaded.dtype, loaded.score.weight.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(score(loaded, IDS), score(model, IDS))


def test_an_adapter_comes_back_bit_for_bit_with_its_head(adapter):
    path, scores = adapter
    assert json.loads((path / "adapter_config.json").read_text())["modules_to_save"] == ["score"]
    assert torch.equal(score(load_reward_model(str(path)), IDS), scores)


def test_an_adapter_goes_on_training_from_where_it_was(adapter, llama_directory):
    path, scores = adapter
    model = setup_lora(with_reward_head(load_model(str(llama_directory)), seed=9), lora(adapters=[str(path)], resume_adapter=True))
    require_head(model)
    assert torch.equal(score(model.eval(), IDS), scores)
    assert [name for name, p in model.named_parameters() if p.requires_grad and "score" in name]


def test_an_adapter_of_a_language_model_is_merged_under_a_new_head(llama_directory, tiny_lora, tmp_path):
    tiny_lora.save_pretrained(tmp_path / "sft")
    expected = tiny_lora.merge_and_unload().model(IDS)[0]
    model = setup_full(with_reward_head(load_model(str(llama_directory))), FullConf(adapters=[str(tmp_path / "sft")]))
    torch.testing.assert_close(model.model(IDS)[0], expected)


def test_an_adapter_comes_back_on_what_was_merged_under_it(llama_directory, tiny_lora, tmp_path):
    """Tolerance: 1e-6, since the merged weights are the same sums."""
    tiny_lora.save_pretrained(tmp_path / "sft")
    under = merge_adapters(load_model(str(llama_directory)), [str(tmp_path / "sft")])
    model = trained(setup_lora(with_reward_head(under), lora()))
    model.save_pretrained(tmp_path / "rm")
    without = score(load_reward_model(str(tmp_path / "rm")), IDS)
    write_stage_file(tmp_path / "rm", StageFile("rm", "adapter", "reward", base=str(llama_directory), render="chatml", merged=["../sft"]))
    found = score(load_reward_model(str(tmp_path / "rm")), IDS)
    torch.testing.assert_close(found, score(model, IDS), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, without, atol=1e-3)


def test_an_adapter_comes_back_on_a_gguf_file(gguf_directory, tmp_path):
    model = trained(setup_lora(with_reward_head(load_model(str(gguf_directory), gguf_file="tiny.gguf")), lora()))
    model.save_pretrained(tmp_path / "rm")
    left = StageFile("rm", "adapter", "reward", base=str(gguf_directory), render="chatml", gguf_file="tiny.gguf")
    write_stage_file(tmp_path / "rm", left)
    assert torch.equal(score(load_reward_model(str(tmp_path / "rm")), IDS), score(model, IDS))


def test_a_model_without_its_head_is_refused(full):
    path, _ = full
    without_head(path)
    with pytest.raises(ConfigError, match=r"lacks its reward head, among them score\.weight; with random values"):
        load_reward_model(str(path))


def test_an_adapter_without_its_head_is_refused(adapter):
    path, _ = adapter
    without_head(path)
    with pytest.raises(ConfigError, match="doesn't have a reward head, and a random one would give random scores"):
        load_reward_model(str(path))


def test_an_adapter_of_a_language_model_is_no_reward_model(llama_directory, tiny_lora, tmp_path):
    tiny_lora.save_pretrained(tmp_path / "sft")
    with pytest.raises(ConfigError, match="doesn't say which model it was trained on"):
        load_reward_model(str(tmp_path / "sft"))
    write_stage_file(tmp_path / "sft", StageFile("sft", "adapter", "language", base=str(llama_directory), render="chatml"))
    with pytest.raises(ConfigError, match="doesn't have a reward head"):
        load_reward_model(str(tmp_path / "sft"))
    used = setup_inference(with_reward_head(load_model(str(llama_directory))), lora(adapters=[str(tmp_path / "sft")]))
    with pytest.raises(ConfigError, match="doesn't have a reward head"):
        require_head(used)


def test_a_language_model_is_no_reward_model(llama_directory):
    with pytest.raises(ConfigError, match="is not a reward model: it doesn't have a reward head"):
        load_reward_model(str(llama_directory))


def test_a_classifier_is_no_reward_model(full):
    path, _ = full
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}))
    with pytest.raises(ConfigError, match="classifies into 2 classes, but a reward is one number"):
        load_reward_model(str(path))


def test_a_reward_model_is_no_language_model(full, adapter, tiny_llama):
    with pytest.raises(ConfigError, match="is a reward model, which gives scores and doesn't generate text"):
        load_model(str(full[0]))
    with pytest.raises(ConfigError, match="is a reward model's, which gives scores and doesn't generate text"):
        load_adapter(tiny_llama, str(adapter[0]))


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_adapter_and_head_are_merged_into_a_plain_model(tiny_llama, bits):
    base = tiny_llama if bits is None else rebuild_model(tiny_llama, quantization_config=quantization_config(QuantizationConf(bits=bits)))
    model = trained(setup_lora(with_reward_head(base), lora()))
    plain = merged_copy(model)
    assert type(plain).__name__ == "LlamaForSequenceClassification"
    # An 8-bit layer also rounds activations; the merged model doesn't.
    torch.testing.assert_close(score(plain, IDS), score(model, IDS), rtol=0, atol={None: 1e-5, 4: 1e-4, 8: 0.05}[bits])
    assert torch.equal(plain.score.weight, model.base_model.model.score.modules_to_save["default"].weight)


def test_frozen_layers_leave_the_head_trained(tiny_llama):
    model = setup_freeze(with_reward_head(tiny_llama), FreezeConf(num_layers_trainable=1))
    names = {name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"model.layers", "score.weight"}


def test_lora_trains_the_head_whole_and_gives_it_no_adapter(tiny_llama):
    model = setup_lora(with_reward_head(tiny_llama), lora())
    head = [name for name, p in model.named_parameters() if p.requires_grad and "score" in name]
    assert head == ["base_model.model.score.modules_to_save.default.weight"]


def test_an_original_checkpoint_of_baichuan_comes_back_bit_for_bit(tmp_path):
    from tests.models.families.conftest import CHECKPOINTS

    model = trained(setup_full(with_reward_head(load_model(str(CHECKPOINTS / "baichuan_13b"), dtype="float32")), FullConf()))
    model.save_pretrained(tmp_path)
    assert torch.equal(score(load_reward_model(str(tmp_path)), IDS), score(model, IDS))


class TestBeside:
    """One base in memory, with the reward adapter and the trained one."""

    @pytest.fixture
    def policy(self, llama_directory):
        return trained(setup_lora(load_model(str(llama_directory)), lora(r=2)), seed=8)

    def test_scores_are_those_of_the_reward_model_alone(self, adapter, policy):
        path, scores = adapter
        assert torch.equal(score(shared_base_reward(policy, str(path)), IDS), scores)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_policy_notices_nothing(self, adapter, policy, training):
        policy.train(training)
        before = policy(input_ids=IDS).logits
        flags = {name: p.requires_grad for name, p in policy.named_parameters()}
        weights = copy.deepcopy(policy.state_dict())
        beside = shared_base_reward(policy, str(adapter[0]))
        score(beside, IDS)
        assert torch.equal(policy(input_ids=IDS).logits, before)
        after = {name: p.requires_grad for name, p in policy.named_parameters()}
        assert {name: flag for name, flag in after.items() if ".reward." not in name} == flags
        assert not any(flag for name, flag in after.items() if ".reward." in name)
        assert all(torch.equal(policy.state_dict()[name], tensor) for name, tensor in weights.items())
        assert policy.training is training
        assert policy.active_adapter == "default"

    def test_no_weight_of_the_base_is_there_twice(self, adapter, policy):
        before = sum(p.numel() for p in policy.parameters())
        beside = shared_base_reward(policy, str(adapter[0]))
        added = sum(p.numel() for name, p in policy.named_parameters() if ".reward." in name)
        assert sum(p.numel() for p in policy.parameters()) == before + added
        assert beside.head.weight.shape == (1, 32)

    def test_a_language_models_adapter_is_refused(self, policy, tmp_path):
        policy.save_pretrained(tmp_path / "sft")
        with pytest.raises(ConfigError, match="doesn't have a reward head"):
            shared_base_reward(policy, str(tmp_path / "sft"))
