"""`llmmod stage=sft model=chatglm2 finetune=lora`, from a directory in ChatGLM2's own layout: trained, evaluated, exported both ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typed import typed

TESTS = Path(__file__).parents[1]
ORIGINAL = TESTS / "models" / "legacy_checkpoints" / "chatglm2"
SENTENCEPIECE = TESTS / "render" / "sentencepiece" / "chatglm2_tiny.model"
VOCABULARY = 3072  # 3,000 pieces and five more tokens, rounded up as in the original
CODE = ("configuration_chatglm.py", "modeling_chatglm.py", "tokenization_chatglm.py")


@pytest.fixture(scope="module")
def chatglm2(tmp_path_factory):
    """A directory as on the hub: weights with the original names, a SentencePiece model, and remote code, which must not run."""
    import torch
    from safetensors.torch import load_file, save_file

    directory = tmp_path_factory.mktemp("hub") / "chatglm2-6b"
    directory.mkdir()
    state, random = load_file(ORIGINAL / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in ("transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"):
        state[name] = 0.3 * torch.randn(VOCABULARY, state[name].shape[1], generator=random)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((ORIGINAL / "config.json").read_text()) | {"padded_vocab_size": VOCABULARY}
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copy(SENTENCEPIECE, directory / "tokenizer.model")
    tokenizer = {"tokenizer_class": "ChatGLMTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name in CODE:
        (directory / name).write_text("raise RuntimeError('code of the checkpoint was run')\n")
    return directory


@pytest.fixture(scope="module")
def run(chatglm2):
    """The run directory of the command as a user types it; the export has the original layout."""
    directory = chatglm2.parent / "run"
    command = [
        "stage=sft", "model=chatglm2", "finetune=lora", f"model.pretrained_model_name_or_path={chatglm2}", f"output_dir={directory}",
        "pipeline=[train,evaluate,export]", "steps.export.layout=original", "training.max_steps=8", "training.learning_rate=1e-2",
    ]  # fmt: skip
    done = typed(*command)
    assert done.code == 0, done.said
    return directory


def exported(chatglm2, directory, *overrides):
    """The export of a run that only exports."""
    import llmmod

    config = [f"model.pretrained_model_name_or_path={chatglm2}", f"output_dir={directory}", "pipeline=[export]", *overrides]
    llmmod.run(llmmod.compose(["model=chatglm2", *config]))
    return directory / "export"


def logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(5, 45).reshape(2, 20)).logits


def test_it_trains(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["eval_loss"] < metrics["eval_loss_before"] - 0.5  # it starts at 11.1, with random weights
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    # Rank 8: 8 * (in + out) parameters for each matrix of a layer, 4 bytes each, and a header; embeddings would be 1.5 MB more.
    per_layer = 8 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + (64 + 272) + (136 + 64))
    assert (run / "train" / "adapter_model.safetensors").stat().st_size < 2 * per_layer * 4 + 5000


def test_old_code_can_serve_the_original_layout(chatglm2, run):
    import torch
    from safetensors.torch import load_file

    export = run / "export"
    assert json.loads((export / "config.json").read_text()) == json.loads((chatglm2 / "config.json").read_text())
    for name in ("tokenizer.model", "tokenizer_config.json", *CODE):
        assert (export / name).read_bytes() == (chatglm2 / name).read_bytes()
    before, after = load_file(chatglm2 / "model.safetensors"), load_file(export / "model.safetensors")
    read = before.keys() - {"transformer.rotary_pos_emb.inv_freq"}  # it follows from config.json
    assert after.keys() == read
    adapted = {name for name in read if "self_attention" in name or "mlp" in name}
    adapted = {name for name in adapted if name.endswith(".weight")}
    assert {name for name in read if not torch.equal(before[name], after[name])} == adapted


def test_both_layouts_compute_the_same_as_base_and_adapter(chatglm2, run, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import llmmod

    native = exported(chatglm2, tmp_path / "native", f"finetune.adapters=[{run / 'train'}]")
    expected = logits(PeftModel.from_pretrained(llmmod.load_model(str(chatglm2)), run / "train"))
    assert (expected - logits(llmmod.load_model(str(chatglm2)))).abs().max() > 0.1, "training changed something"
    for model in (AutoModelForCausalLM.from_pretrained(native), llmmod.load_model(str(run / "export"))):
        assert (logits(model) - expected).abs().max() < 1e-4


def test_an_untrained_model_is_written_back_bit_for_bit(chatglm2, tmp_path):
    import torch
    from safetensors.torch import load_file

    export = exported(chatglm2, tmp_path / "run", "steps.export.layout=original")
    before, after = load_file(chatglm2 / "model.safetensors"), load_file(export / "model.safetensors")
    assert {name for name in before if name not in after} <= {"transformer.rotary_pos_emb.inv_freq"}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
