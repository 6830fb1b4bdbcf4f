"""A step that uses a model, adapter or reward that was trained with other settings gives a warning."""

from __future__ import annotations

import json

import pytest

from llmmod.config.schema.data import RenderConf
from llmmod.config.schema.model import LoraConf, ModelConf, QuantizationConf, decides_weights
from llmmod.config.schema.steps import PredictConf, Root, TrainConf
from llmmod.config.schema.training import PpoConf, SftConf
from llmmod.config.step_parts import StepConfigs
from llmmod.pipeline.session import compatibility_warnings


def run(*, adapters=(), reward=None, **own):
    """The warnings for a run of `sft`, `ppo` and `predict`; `own` has parts of single steps by the step's name."""
    root = Root(
        model=ModelConf(name="tiny", pretrained_model_name_or_path="org/tiny"),
        finetune=LoraConf(name="lora", adapters=list(adapters)),
        training=SftConf(stage="sft"),
        render=RenderConf(name="chatml"),
        pipeline=["sft", "ppo", "predict"],
    )
    ppo = {"model": ModelConf(from_step="sft"), "training": PpoConf(stage="ppo", reward=reward or {})}
    root.steps = {
        "sft": TrainConf(**own.get("sft", {})),
        "ppo": TrainConf(**ppo, **own.get("ppo", {})),
        "predict": PredictConf(**own.get("predict", {})),
    }
    return compatibility_warnings(StepConfigs(root))


@pytest.fixture
def left(tmp_path):
    """The directory of an earlier training's adapter."""
    (tmp_path / "adapter").mkdir()
    said = {"stage": "sft", "kind": "adapter", "head": "language", "base": "org/other", "render": "vicuna"}
    (tmp_path / "adapter" / "stage.json").write_text(json.dumps(said))
    return str(tmp_path / "adapter")


VICUNA = {"render": RenderConf(name="vicuna")}


def test_compatible_parts_do_not_give_warnings(tmp_path):
    assert run() == run(adapters=["org/adapter", str(tmp_path)]) == run(reward={"path": str(tmp_path)}) == []


def test_another_render_than_an_earlier_step(left):
    assert run(sft=VICUNA) == ["sft was trained with render=vicuna, but ppo uses render=chatml"]
    assert run(predict=VICUNA) == ["ppo was trained with render=chatml, but predict uses render=vicuna"]
    assert run(sft=VICUNA, ppo={**VICUNA}) == []  # predict uses ppo's
    assert "sft was trained with render=chatml, but ppo uses render=vicuna" in run(ppo=VICUNA, reward={"step": "sft"})


def test_another_render_or_base_than_a_directory(left):
    render = f"'{left}' was trained with render=vicuna, but sft uses render=chatml"
    assert run(adapters=[left])[:2] == [render, f"'{left}' was trained on org/other, but sft puts it on org/tiny"]
    assert run(reward={"path": left}) == [render.replace("but sft", "but ppo")]


def test_other_bits_than_an_adapter_was_trained_on(tmp_path):
    said = {"stage": "sft", "kind": "adapter", "head": "language", "base": "org/tiny", "render": "chatml"}
    four = QuantizationConf(bits=4)
    (tmp_path / "stage.json").write_text(json.dumps(said | {"quantization": decides_weights(four)}))
    bits = "weights of 4 bits (type=nf4, double_quant=True)"
    (line,) = run(adapters=[str(tmp_path)])
    assert line == f"'{tmp_path}' was trained on {bits}, but sft puts it on weights that aren't quantized"
    model = ModelConf(name="tiny", pretrained_model_name_or_path="org/tiny", quantization=four)
    assert run(adapters=[str(tmp_path)], sft={"model": model}) == []
