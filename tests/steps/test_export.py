"""Export: with transformers alone, the exported model gives the same answers as the run's model, token for token."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from llmmod.config.schema.generation import GenerationConf
from llmmod.config.schema.steps import ExportConf
from llmmod.errors import ConfigError
from llmmod.instantiate import build
from llmmod.models.generation.settings import generation_config
from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import encode_prompt
from llmmod.steps.export import Export, written_whole

QUESTIONS = ["What is a render?", "你好,世界!什么是渲染?", "The lazy dog"]


def answered_here(session, model, questions=QUESTIONS):
    """The answers of the model in memory, prompted by the render."""
    render, tokenizer = session.render("export"), session.tokenizer("export")
    config = generation_config(build(session.root.generation), model, stop_ids=render.stop_ids, pad_id=tokenizer.pad_token_id)
    answers = []
    for question in questions:
        prompt = encode_prompt(render.prompt(Conversation([Message("user", question)])), tokenizer)
        ids = torch.tensor([prompt])
        generated = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        answers.append([prompt, generated[0, len(prompt) :].tolist()])
    return answers


def test_an_adapter_answers_elsewhere_as_it_does_here(make_session, tiny_lora, elsewhere):
    session = make_session(tiny_lora, kind="adapter")
    here = answered_here(session, tiny_lora)
    with tiny_lora.disable_adapter():
        assert answered_here(session, tiny_lora) != here, "the adapter must matter for this test to say anything"
    Export(session.root.steps["export"], "export").run(session)
    assert elsewhere(session.run_dir / "export", QUESTIONS) == here
    assert answered_here(session, tiny_lora) == here, "the session's model is still the one that it was"
    assert [name for name, _ in tiny_lora.named_parameters() if "lora_A" in name], "and still has its adapter"


def test_the_base_model_can_be_exported_too(make_session, tiny_llama, elsewhere):
    session = make_session(tiny_llama)
    here = answered_here(session, tiny_llama)
    Export(session.root.steps["export"], "export").run(session)
    assert elsewhere(session.run_dir / "export", QUESTIONS) == here


def test_generation_settings_and_template_travel(make_session, tiny_llama, tiny_tokenizer, monkeypatch):
    for name in ("is_local", "local_files_only"):
        monkeypatch.setitem(tiny_tokenizer.init_kwargs, name, True)  # as from_pretrained sets it
    session = make_session(tiny_llama, generation=GenerationConf(do_sample=True, temperature=0.7, max_new_tokens=9))
    report = Export(session.root.steps["export"], "export").run(session)
    settings = json.loads((session.run_dir / "export" / "generation_config.json").read_text())
    expected = {"do_sample": True, "temperature": 0.7, "max_new_tokens": 9, "eos_token_id": [2, 0], "pad_token_id": 4, "bos_token_id": 3}
    assert {name: settings[name] for name in expected} == expected
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(session.run_dir / "export")
    assert loaded.chat_template == session.render("export").chat_template()
    assert loaded.model_max_length == 512
    assert tiny_tokenizer.chat_template is None, "the session's tokenizer stays as it was"
    assert not {"is_local", "local_files_only"} & json.loads((session.run_dir / "export" / "tokenizer_config.json").read_text()).keys()
    assert report.artifacts == {"model": "export"}
    assert str(session.run_dir / "export") in report.summary[0]


def test_what_a_checkpoint_brings_along_does_not_stop_the_export(make_session, tiny_llama):
    # Like Llama-2's, it has a temperature with do_sample=false, which transformers refuses to save after any change.
    tiny_llama.generation_config.temperature = 0.6
    tiny_llama.config.use_cache = False  # as gradient checkpointing leaves it
    session = make_session(tiny_llama)
    Export(session.root.steps["export"], "export").run(session)
    assert json.loads((session.run_dir / "export" / "config.json").read_text())["use_cache"] is True
    assert tiny_llama.generation_config.temperature == 0.6
    assert tiny_llama.config.use_cache is False


@pytest.mark.parametrize(("size", "shards"), [("5GB", 1), ("100KB", 2)])
def test_shards_are_safetensors_of_the_size_asked_for(make_session, tiny_llama, size, shards):
    session = make_session(tiny_llama)
    Export(ExportConf(max_shard_size=size), "export").run(session)
    files = {file.name: file.stat().st_size for file in (session.run_dir / "export").iterdir()}
    weights = [name for name in files if name.endswith(".safetensors")]
    # 2 * 400 * 32 float32 numbers of embeddings are 102,400 bytes; with two layers and norms the model has about 160 KB.
    assert (len(weights) > 1) == (shards > 1)
    assert not [name for name in files if name.endswith((".bin", ".pt"))]
    assert len({file.stat().st_mode for file in (session.run_dir / "export").iterdir()}) == 1, "weights as readable as the rest"
    assert ("model.safetensors.index.json" in files) == (shards > 1)


def test_the_card_has_the_runs_metrics(make_session, tiny_llama):
    session = make_session(tiny_llama)
    (session.run_dir / "metrics.json").write_text('{"eval_loss": 1.25}')
    (session.run_dir / ".hydra").mkdir()
    (session.run_dir / ".hydra" / "overrides.yaml").write_text("- seed=7\n")
    Export(session.root.steps["export"], "export").run(session)
    card = (session.run_dir / "export" / "README.md").read_text()
    assert "| eval_loss | 1.25 |" in card
    assert "llmmod seed=7" in card


def test_no_card_where_none_is_wanted(make_session, tiny_llama):
    session = make_session(tiny_llama)
    Export(ExportConf(model_card=False), "export").run(session)
    assert not (session.run_dir / "export" / "README.md").exists()


def test_the_export_of_a_quantized_model_reports_the_difference(make_session, tiny_llama):
    from llmmod.config.schema.model import QuantizationConf
    from llmmod.models.loading.quantization import quantization_config
    from llmmod.models.loading.structure import rebuild_model

    session = make_session(rebuild_model(tiny_llama, quantization_config=quantization_config(QuantizationConf(bits=8))))
    summary = Export(session.root.steps["export"], "export").run(session).summary
    (apart,) = re.findall(r"unpacked and merged in full precision.* probabilities are ([0-9.e-]+) nats apart", summary[1])
    assert 0 < float(apart) < 0.02  # 8 bit rounds activations; the exported model doesn't


def test_an_unknown_layout_is_refused_before_anything_is_loaded(make_session, tiny_llama):
    session = make_session(tiny_llama)
    with pytest.raises(ConfigError) as raised:
        Export(ExportConf(layout="nativ"), "export").run(session)
    assert str(raised.value) == "steps.export.layout: 'nativ' is not a layout. Allowed: native, original."
    assert session.asked == []


def test_an_error_leaves_no_half_written_export(make_session, tiny_llama, monkeypatch):
    session = make_session(tiny_llama)
    monkeypatch.setattr("llmmod.steps.export.model_card", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Export(session.root.steps["export"], "export").run(session)
    assert list(session.run_dir.iterdir()) == []


def test_an_error_leaves_the_export_that_was_there(tmp_path):
    directory = tmp_path / "export"
    with written_whole(directory) as partial:
        (partial / "a").write_text("first")
    with pytest.raises(UnicodeEncodeError), written_whole(directory) as partial:
        (partial / "a").write_text("second \ud800", encoding="utf-8")
    assert [(path.name, path.read_text()) for path in directory.iterdir()] == [("a", "first")]
    with written_whole(directory) as partial:
        (partial / "b").write_text("third")
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("export"), Path("export/b")]


def test_a_killed_export_is_no_obstacle(tmp_path):
    (tmp_path / ".export.partial").mkdir()
    (tmp_path / ".export.partial" / "stale").touch()
    with written_whole(tmp_path / "export") as partial:
        assert list(partial.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
