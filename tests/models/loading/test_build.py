"""From configuration to model and tokenizer: every option of `model`, and every key that affects them."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmmod.config.compose import compose_config, to_root
from llmmod.config.schema.base import Dtype, Weights
from llmmod.config.schema.model import HubConf, LoraConf, ModelConf, QuantizationConf, TokenizerConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.setup import setup_lora
from llmmod.models.loading import build, tiny
from llmmod.models.loading.build import build_model, build_tokenizer

CONF = Path(__file__).parents[3] / "conf" / "model"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "auto")  # which doesn't have its own architecture
CONTRACT = {
    "smollm2", "llama", "llama2", "bloom", "bloomz", "falcon", "baichuan", "baichuan_13b", "baichuan2", "baichuan2_13b", "internlm",
    "internlm_20b", "qwen", "chatglm2", "phi1_5", "llama3", "qwen2_5", "qwen3", "gemma3", "mistral", "phi4_mini", "glm4",
}  # fmt: skip
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def small_tokenizer(tiny_tokenizer, tmp_path_factory, monkeypatch):
    """The tests' tokenizer replaces the one that the package includes."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save_pretrained(directory)
    monkeypatch.setattr(tiny, "TINY_TOKENIZER", directory)
    return tiny_tokenizer


@functools.cache
def root_of(*overrides):
    return to_root(compose_config(list(overrides)).config)


def test_every_model_of_the_contract_has_an_option():
    assert set(OPTIONS) >= CONTRACT


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds_tiny_and_trains_an_adapter(option, tiny_tokenizer):
    root = root_of(f"model={option}", "finetune=lora", "finetune.r=2")
    model = built_model(root.model, hub=root.hub, smoke=True, tokenizer=tiny_tokenizer)
    assert sum(p.numel() for p in model.parameters()) < 200_000
    adapted = setup_lora(model, root.finetune)
    targets = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert targets == set(root.model.lora_targets)
    input_ids = torch.arange(5, 25).reshape(2, 10)
    loss = adapted.train()(input_ids=input_ids, labels=input_ids).loss
    loss.backward()
    assert 0 < loss.item() < 2 * torch.log(torch.tensor(float(len(tiny_tokenizer)))).item()
    trained = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in trained.values())
    assert any(grad.abs().sum() > 0 for grad in trained.values())


@pytest.mark.parametrize("option", OPTIONS)
def test_every_layer_that_an_adapter_stands_on_is_quantized(option, tiny_tokenizer):
    # transformers 5.23 doesn't quantize any of Falcon's layers.
    root = root_of(f"model={option}", "finetune=lora", "finetune.r=2")
    four_bit = replace(root.model, quantization=QuantizationConf(bits=4))
    model = built_model(four_bit, hub=root.hub, smoke=True, tokenizer=tiny_tokenizer)
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.rpartition(".")[2] in root.model.lora_targets}
    assert kinds == {"Linear4bit"}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_called_as_its_file(option):
    root = root_of(f"model={option}")
    assert root.model.name == option
    assert (CONF / f"{option}.yaml").read_text().startswith(f"# llmmod model={option}")
    default = root.model.pretrained_model_name_or_path
    assert not root.model.sizes or default in root.model.sizes.values()


def conf_of(directory, **fields):
    return replace(ModelConf(name="tiny", pretrained_model_name_or_path=str(directory), architecture=LLAMA), **fields)


def built_model(conf, tokenizer, *, hub=None, smoke=False, seed=42):
    return build_model(conf, hub=hub or HubConf(), smoke=smoke, tokenizer=tokenizer, seed=seed)


def test_the_weights_are_those_of_the_checkpoint(llama_directory, tiny_llama, tiny_tokenizer, ids, logits):
    assert torch.equal(logits(built_model(conf_of(llama_directory), tiny_tokenizer), ids), logits(tiny_llama, ids))


@pytest.mark.parametrize("dtype", [Dtype.bfloat16, Dtype.float16, Dtype.float32])
@pytest.mark.parametrize("smoke", [False, True])
def test_dtype(llama_directory, tiny_tokenizer, dtype, smoke):
    model = built_model(conf_of(llama_directory, dtype=dtype), tiny_tokenizer, smoke=smoke)
    assert model.dtype is getattr(torch, dtype.value)


class Recorder:
    """A user's own `from_pretrained`."""

    def __init__(self, result):
        self.result, self.calls = result, []

    def __call__(self, path, **arguments):
        self.calls.append((path, arguments))
        return self.result


@pytest.fixture
def recorded(monkeypatch, tiny_llama, tiny_tokenizer):
    recorders = {"my.Model": Recorder(tiny_llama), "my.Tokenizer": Recorder(tiny_tokenizer)}
    monkeypatch.setattr(build, "locate", recorders.__getitem__)
    return recorders


HUB = HubConf(proxies={"https": "http://proxy:3128"}, cache_dir="/cache", token="hf_x", offline=True)
HUB_ARGUMENTS = {"proxies": {"https": "http://proxy:3128"}, "cache_dir": "/cache", "token": "hf_x", "local_files_only": True}


def test_a_users_own_class_gets_from_pretraineds_arguments(recorded, tiny_tokenizer, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "")
    conf = ModelConf(
        _target_="my.Model", name="x", pretrained_model_name_or_path="a/b", revision="v2", dtype=Dtype.bfloat16, device_map="cpu",
        attn_implementation="eager", trust_remote_code=True, config={"rope_theta": 5e5}, kwargs={"max_memory": {0: "1GB"}},
    )  # fmt: skip
    built_model(conf, tiny_tokenizer, hub=HUB)
    assert recorded["my.Model"].calls == [
        (
            "a/b",
            {
                "dtype": torch.bfloat16, "device_map": "cpu", "attn_implementation": "eager", "revision": "v2", "trust_remote_code": True,
                "rope_theta": 5e5, "max_memory": {0: "1GB"}, **HUB_ARGUMENTS,
            },
        )
    ]  # fmt: skip


def test_a_users_own_tokenizer_class_gets_them_too(recorded, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "")
    conf = TokenizerConf(_target_="my.Tokenizer", kwargs={"add_prefix_space": False})
    build_tokenizer(conf, ModelConf(name="x", pretrained_model_name_or_path="a/b", revision="v2"), hub=HUB, smoke=False)
    assert recorded["my.Tokenizer"].calls == [("a/b", {"revision": "v2", "add_prefix_space": False, **HUB_ARGUMENTS})]


def test_the_hub_reaches_transformers_itself(monkeypatch, llama_directory, tiny_tokenizer):
    seen = []
    for owner in ("AutoModelForCausalLM", "AutoConfig"):
        real = getattr(__import__("transformers"), owner).from_pretrained

        def spy(path, *args, real=real, owner=owner, **arguments):
            seen.append((owner, {name: arguments.get(name) for name in ("cache_dir", "token", "local_files_only")}))
            return real(path, *args, **arguments)

        monkeypatch.setattr(f"llmmod.models.loading.load.{owner}.from_pretrained", spy)
    built_model(conf_of(llama_directory), tiny_tokenizer, hub=replace(HUB, proxies=None))
    expected = {"cache_dir": "/cache", "token": "hf_x", "local_files_only": True}
    assert ("AutoConfig", expected) in seen
    assert ("AutoModelForCausalLM", expected) in seen


@pytest.mark.parametrize(
    ("bits", "chosen", "expected"),
    [(None, None, None), (4, None, {"": 1}), (4, "auto", "auto"), (None, "auto", "auto")],
)
def test_quantized_weights_go_to_each_processs_own_accelerator(recorded, tiny_tokenizer, monkeypatch, bits, chosen, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    conf = ModelConf(
        _target_="my.Model", name="x", pretrained_model_name_or_path="a/b", device_map=chosen, quantization=QuantizationConf(bits=bits)
    )
    with nullcontext() if bits is None else pytest.raises(ConfigError, match="doesn't have layers that bitsandbytes quantizes"):
        built_model(conf, tiny_tokenizer)  # the recorder returns a model that isn't quantized, which is an error
    assert recorded["my.Model"].calls[0][1].get("device_map") == expected


def test_a_size_gives_the_checkpoint(recorded, tiny_tokenizer):
    conf = ModelConf(_target_="my.Model", name="x", pretrained_model_name_or_path="a/7b", size="13b", sizes={"7b": "a/7b", "13b": "a/13b"})
    model = built_model(conf, tiny_tokenizer)
    assert recorded["my.Model"].calls[0][0] == "a/13b"
    assert model.config._name_or_path == "a/13b"


def test_the_base_keeps_the_path_that_the_user_typed(recorded, tiny_tokenizer, llama_directory, monkeypatch):
    # `pkg://` resolves to a path on this machine; an adapter must name its base in a way that works on another one.
    (llama_directory / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(llama_directory.parent)
    named = llama_directory.rename(llama_directory.parent / "tiny_llama_package")
    model = built_model(ModelConf(_target_="my.Model", name="x", pretrained_model_name_or_path=f"pkg://{named.name}"), tiny_tokenizer)
    assert recorded["my.Model"].calls[0][0] == str(named)
    assert model.config._name_or_path == "pkg://tiny_llama_package"
    adapted = setup_lora(model, LoraConf(name="lora", target_modules="all-linear"))
    assert adapted.peft_config["default"].base_model_name_or_path == "pkg://tiny_llama_package"


def test_no_checkpoint_at_all(tiny_tokenizer):
    with pytest.raises(ConfigError, match=r"model.pretrained_model_name_or_path: not set. Give a hub id or a directory"):
        built_model(ModelConf(name="x"), tiny_tokenizer)


def test_random_weights_of_the_checkpoints_architecture(llama_directory, tiny_tokenizer, tiny_llama):
    conf = conf_of(llama_directory, weights=Weights.random, config={"num_hidden_layers": 1, "intermediate_size": 48})
    model = built_model(conf, tiny_tokenizer)
    assert (len(model.model.layers), model.config.intermediate_size, model.config.hidden_size) == (1, 48, 32)
    assert not torch.equal(model.model.embed_tokens.weight, tiny_llama.model.embed_tokens.weight)


def test_random_weights_need_no_weights_on_disk(llama_directory, tiny_tokenizer):
    (llama_directory / "model.safetensors").unlink()
    assert built_model(conf_of(llama_directory, weights=Weights.random), tiny_tokenizer).dtype is torch.float32


def test_random_weights_of_a_layout_of_2023(tiny_tokenizer):
    """The fields are those of the native class."""
    directory = Path(__file__).parents[1] / "legacy_checkpoints" / "chatglm2"
    conf = conf_of(directory, weights=Weights.random, config={"vocab_size": 600, "num_hidden_layers": 1})
    model = built_model(conf, tiny_tokenizer)
    assert (type(model).__name__, model.lm_head.out_features, len(model.model.layers)) == ("GlmForCausalLM", 600, 1)
    with pytest.raises(ConfigError, match=r"model.config.padded_vocab_size: no such field. Did you mean 'vocab_size'\?"):
        built_model(conf_of(directory, weights=Weights.random, config={"padded_vocab_size": 600}), tiny_tokenizer)


def test_the_seed_decides_random_weights_and_leaves_the_process_alone(llama_directory, tiny_tokenizer):
    conf = conf_of(llama_directory, weights=Weights.random)
    torch.manual_seed(7)
    first, drawn = built_model(conf, tiny_tokenizer, seed=1), torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn)
    same, other = built_model(conf, tiny_tokenizer, seed=1), built_model(conf, tiny_tokenizer, seed=2)
    assert torch.equal(first.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("weights", Weights)
def test_an_unknown_field_of_the_configuration(llama_directory, tiny_tokenizer, weights):
    conf = conf_of(llama_directory, weights=weights, config={"num_hiden_layers": 1})
    with pytest.raises(ConfigError, match=r"model.config.num_hiden_layers: no such field. Did you mean 'num_hidden_layers'\?"):
        built_model(conf, tiny_tokenizer)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        pytest.param({}, "model.architecture: doesn't have a model_type", id="none"),
        pytest.param(
            {"model_type": "lama"}, "model.architecture.model_type: transformers doesn't have 'lama'. Did you mean 'llama'", id="typo"
        ),
        pytest.param({"model_type": "llama", "hidden_size": "big"}, "model.architecture: llama refuses it", id="value"),
    ],
)
def test_a_tiny_model_that_cannot_be_built(tiny_tokenizer, architecture, message):
    with pytest.raises(ConfigError, match=message):
        built_model(ModelConf(name="x", architecture=architecture), tiny_tokenizer, smoke=True)


def test_a_rehearsal_takes_the_tokenizers_vocabulary_and_special_tokens(tiny_tokenizer):
    config = built_model(ModelConf(name="x", architecture=LLAMA), tiny_tokenizer, smoke=True).config
    assert config.vocab_size == len(tiny_tokenizer)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id, tiny_tokenizer.pad_token_id,
    )  # fmt: skip


def test_a_rehearsal_still_looks_at_a_directory(llama_directory, tiny_tokenizer):
    (llama_directory / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"doesn't have weights"):
        built_model(conf_of(llama_directory), tiny_tokenizer, smoke=True)


def test_gradient_checkpointing_with_an_adapter_has_gradients(tiny_tokenizer):
    root = root_of("model=llama", "finetune=lora", "model.gradient_checkpointing=true")
    model = built_model(root.model, hub=root.hub, smoke=True, tokenizer=tiny_tokenizer)
    assert model.is_activation_checkpointing
    adapted = setup_lora(model, root.finetune).train()
    input_ids = torch.arange(5, 25).reshape(2, 10)
    adapted(input_ids=input_ids, labels=input_ids).loss.backward()
    assert all(p.grad.abs().sum() > 0 for name, p in adapted.named_parameters() if "lora_B" in name)


def test_the_structure_is_printed_on_request(tiny_tokenizer, capsys):
    built_model(ModelConf(name="x", architecture=LLAMA, print_structure=True), tiny_tokenizer, smoke=True)
    assert "LlamaForCausalLM(" in capsys.readouterr().out


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings(llama_directory, tiny_tokenizer):
    import copy

    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens(["<new>"])
    with pytest.raises(
        ConfigError, match=rf"the tokenizer has {len(larger)} tokens, but the model has embeddings for {len(tiny_tokenizer)}"
    ):
        built_model(conf_of(llama_directory), larger)


@pytest.mark.parametrize(("length", "expected"), [(128, 512), (1024, 1024)], ids=["shorter", "longer"])
def test_model_max_length(llama_directory, tiny_tokenizer, length, expected, caplog):
    conf = conf_of(llama_directory, model_max_length=length)
    assert built_model(conf, tiny_tokenizer).config.max_position_embeddings == expected
    assert ("beyond the 512 positions" in caplog.text) is (length > 512)
    tokenizer = build_tokenizer(TokenizerConf(), conf, hub=HubConf(), smoke=False)
    assert tokenizer.model_max_length == length


def test_a_model_with_learnt_positions_cannot_be_made_longer(tiny_tokenizer):
    architecture = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    with pytest.raises(ConfigError, match=r"model.model_max_length: 128 tokens, but this model has 64 learned positions"):
        built_model(ModelConf(name="x", architecture=architecture, model_max_length=128), tiny_tokenizer, smoke=True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("smoke", [False, True])
def test_quantization(llama_directory, tiny_tokenizer, bits, smoke):
    model = built_model(conf_of(llama_directory, quantization=QuantizationConf(bits=bits)), tiny_tokenizer, smoke=smoke)
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    assert model.lm_head.weight.dtype is torch.float32


# The tokenizer


def test_the_models_own_tokenizer(llama_directory, tiny_tokenizer):
    tokenizer = build_tokenizer(TokenizerConf(), conf_of(llama_directory), hub=HubConf(), smoke=False)
    assert tokenizer("你好 fox").input_ids == tiny_tokenizer("你好 fox").input_ids


def test_another_tokenizer_by_its_path(llama_directory, tmp_path):
    conf = TokenizerConf(pretrained_model_name_or_path=str(llama_directory))
    tokenizer = build_tokenizer(conf, ModelConf(name="x", pretrained_model_name_or_path="a/b", revision="v2"), hub=HubConf(), smoke=False)
    assert tokenizer.pad_token == "<pad>"


def test_another_tokenizers_errors_name_its_own_key(tmp_path):
    conf = TokenizerConf(pretrained_model_name_or_path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"^tokenizer.pretrained_model_name_or_path: "):
        build_tokenizer(conf, ModelConf(name="x", pretrained_model_name_or_path="a/b"), hub=HubConf(), smoke=False)


@pytest.mark.parametrize("path", ["zai-org/chatglm2-6b", "pkg://no_such_package", None], ids=["hub", "package", "none"])
def test_a_rehearsal_has_a_tokenizer_without_download(path, small_tokenizer, no_network):
    conf = ModelConf(name="x", pretrained_model_name_or_path=path)
    tokenizer = build_tokenizer(TokenizerConf(), conf, hub=HubConf(), smoke=True, extra_tokens=["<reserved_106>", "<|im_end|>"])
    assert len(tokenizer) == len(small_tokenizer) + 1  # <|im_end|> is there already
    assert tokenizer.convert_tokens_to_ids("<reserved_106>") == len(small_tokenizer)
    assert tokenizer("a<reserved_106>b").input_ids.count(len(small_tokenizer)) == 1
    assert no_network == []


def test_a_rehearsal_takes_the_real_tokenizer_where_it_is_at_hand(llama_directory, small_tokenizer):
    tokenizer = build_tokenizer(TokenizerConf(), conf_of(llama_directory), hub=HubConf(), smoke=True, extra_tokens=["<new>"])
    assert len(tokenizer) == len(small_tokenizer)  # a token that the real one lacks is the render's error, and adding it would hide that


def test_a_rehearsal_with_a_directory_that_is_not_there(no_network):
    with pytest.raises(ConfigError, match=r"'/no/such/dir' does not exist"):
        build_tokenizer(TokenizerConf(), ModelConf(name="x", pretrained_model_name_or_path="/no/such/dir"), hub=HubConf(), smoke=True)
