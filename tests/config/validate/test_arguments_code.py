"""A checkpoint's own code, and arguments that run code: refused before any import."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from llmmod.config.compose import compose_config, to_root
from llmmod.config.validate import validated
from llmmod.errors import ConfigError

CALLBACK = "+training.callbacks.x"
TOKENIZER = "_target_: transformers.AutoTokenizer.from_pretrained, pretrained_model_name_or_path: d"
TRUST = "model.trust_remote_code"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    for name in ("LLMMOD_TRUST_REMOTE_CODE", "LLMMOD_TRUSTED_KEYS"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        (f"{CALLBACK}={{{TOKENIZER}, trust_remote_code: true}}", "trust_remote_code"),
        (f"{CALLBACK}={{{TOKENIZER}, trust_remote_code: 'yes'}}", "trust_remote_code"),
        (f"{CALLBACK}={{{TOKENIZER}, trust_remote_code: '${{dataset.mask_prompt}}'}}", "trust_remote_code"),
        (f"{CALLBACK}={{{TOKENIZER}, _partial_: true, trust_remote_code: true}}", "trust_remote_code"),
        (f"{CALLBACK}={{{TOKENIZER}, kwargs: [{{a: {{trust_remote_code: true}}}}]}}", "kwargs.0.a.trust_remote_code"),
        (f"{CALLBACK}={{{TOKENIZER}, weights_only: false}}", "weights_only"),
        (f"{CALLBACK}={{{TOKENIZER}, custom_generate: d}}", "custom_generate"),
        (f"{CALLBACK}={{{TOKENIZER}, code_revision: main}}", "code_revision"),
        (f"{CALLBACK}={{{TOKENIZER}, allow_pickle: true}}", "allow_pickle"),
        (f"{CALLBACK}={{{TOKENIZER}, attn_implementation: someone/kernels}}", "attn_implementation"),
        (f"{CALLBACK}={{{TOKENIZER}, cache_dir: /elsewhere}}", "cache_dir"),
    ],
)
def test_refused_in_a_component(told, override, key):
    (line,) = told(override)
    assert line.startswith(f"training.callbacks.x.{key}: ")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+model.kwargs.weights_only=false", "model.kwargs.weights_only"),
        ("+model.kwargs.code_revision=x", "model.kwargs.code_revision"),
        ("+model.kwargs.a={b: {trust_remote_code: true}}", "model.kwargs.a.b.trust_remote_code"),
        ("+tokenizer.kwargs.custom_generate=d", "tokenizer.kwargs.custom_generate"),
        ("+model.config.auto_map={AutoModelForCausalLM: d--m.Model}", "model.config.auto_map"),
        ("model.attn_implementation=someone/kernels", "model.attn_implementation"),
        ("finetune.megatron_core=os", "finetune.megatron_core"),
    ],
)
def test_refused_elsewhere(told, override, key):
    assert [line.split(": ")[0] for line in told(override)] == [key]


def test_what_is_harmless_passes(told):
    assert told(f"{CALLBACK}={{{TOKENIZER}, trust_remote_code: false, weights_only: true, attn_implementation: sdpa}}") == []
    assert told("+model.kwargs.weights_only=true", "model.attn_implementation=eager", "hub.cache_dir=/elsewhere") == []


def test_each_model_is_trusted_for_itself():
    steps = ["pipeline=[a,b]", "+step@steps.a=train", "+step@steps.b=train", "+model@steps.b.model=smollm2"]
    trusted = "steps.b.model.trust_remote_code=true"
    assert validated(compose_config([*steps, trusted])).steps.b.model.trust_remote_code is True
    composed = compose_config([*steps, trusted])
    composed.config.model.trust_remote_code = True  # as a file would
    with pytest.raises(ConfigError, match=f"^{TRUST}: True, but not on the command line"):
        validated(composed)


def from_file(tmp_path, *overrides):
    (tmp_path / "experiment").mkdir(exist_ok=True)
    (tmp_path / "experiment" / "theirs.yaml").write_text("# @package _global_\nmodel:\n  trust_remote_code: true\n")
    return compose_config(["experiment=theirs", *overrides], config_dir=str(tmp_path))


def test_not_in_a_file(tmp_path, monkeypatch):
    with pytest.raises(ConfigError) as error:
        validated(from_file(tmp_path))
    assert str(error.value) == (
        f"{TRUST}: True, but not on the command line. Allowed in a file: false. If you trust whoever made it, add {TRUST}=true to the "
        "command line, or set LLMMOD_TRUST_REMOTE_CODE=1."
    )
    with pytest.raises(ConfigError, match=TRUST):  # a reference to a file's value is not the user's own value
        validated(from_file(tmp_path, "+dataset.columns={}", f"{TRUST}=${{model.print_structure}}", "model.print_structure=true"))
    with pytest.raises(ConfigError, match="not on the command line"):  # values that Hydra's sweeper adds later are checked here
        to_root(from_file(tmp_path).config)
    assert validated(from_file(tmp_path, f"{TRUST}=false")).model.trust_remote_code is False
    assert validated(from_file(tmp_path, f"{TRUST}=true")).model.trust_remote_code is True
    monkeypatch.setenv("LLMMOD_TRUSTED_KEYS", "")
    monkeypatch.setenv("LLMMOD_TRUST_REMOTE_CODE", "1")
    assert validated(from_file(tmp_path)).model.trust_remote_code is True


def test_the_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("LLMMOD_TRUST_REMOTE_CODE", "1")
    assert validated(compose_config([])).model.trust_remote_code is True
    assert validated(compose_config([f"{TRUST}=false"])).model.trust_remote_code is False


def test_a_program_composes_and_runs_with_what_it_typed():
    composed = compose_config([f"{TRUST}=true"])
    assert OmegaConf.select(composed.config, TRUST) is True
    assert to_root(composed.config).model.trust_remote_code is True
