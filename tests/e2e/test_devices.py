"""Each stage on a pretended device (tests/support/stand_in.py): the same results as on the CPU, and operations never mix devices."""

from __future__ import annotations

import json
from contextlib import nullcontext

import observed
import plain_loop as plain
import pytest
import torch
from accelerate import dispatch_model
from comparison import STAGES, of_way, overrides, relative, work
from stand_in import NAME, WAITS, standing_in

import llmmod
from llmmod.data.collators import FlatteningCollator, PrefixSharingRewardCollator
from llmmod.models.loading import build
from llmmod.models.packing import packed_attention
from llmmod.trainers.preference.trainers import by_completion

__all__ = ["work"]

# On a CPU the head computes `log_probs`, elsewhere it uses trl's tiles: the same sums in another order.
NEAR = 1e-4
FIRST, SECOND = f"{NAME}:0", f"{NAME}:1"
PREDICTED = ["pipeline=[train,evaluate,predict]", "steps.predict.max_samples=3"]
SAMPLED = ["generation.max_new_tokens=5"]


@pytest.fixture(scope="module")
def on_cpu():
    """The results on the CPU, by stage and way to fine-tune."""
    return {}


@pytest.fixture
def run(work, tmp_path, monkeypatch, on_cpu):
    """Losses, gradients and evaluation of three steps of a stage, and, with an adapter, what `predict` writes."""
    monkeypatch.setenv("LLMMOD_ALLOW", "observed")

    def found(stage, way, where, *more):
        steps = ["pipeline=[train,evaluate]"] if way == "full" else PREDICTED + SAMPLED * (stage != "rm")
        chosen = [*overrides(work, stage, "float32", *of_way(way), *more), *steps, "training.bf16=false"]
        metrics = llmmod.run(llmmod.compose([*chosen, f"output_dir={tmp_path / where}"]))
        training, timed = observed.TRAININGS[-1], ("_runtime", "_per_second")
        evaluation = {name: value for name, value in metrics.items() if name.startswith("eval_") and not name.endswith(timed)}
        files = sorted((tmp_path / where).glob("predict/*.jsonl"))
        return training.losses, training.gradients, evaluation, [json.loads(line) for file in files for line in file.open()]

    def both(stage, way, *more):
        if (stage, way, more) not in on_cpu:
            on_cpu[stage, way, more] = found(stage, way, "cpu", *more)
        with standing_in():
            return found(stage, way, "elsewhere", *more), on_cpu[stage, way, more]

    return both


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=NEAR, abs=NEAR)
    assert len(found[1]) == plain.STEPS
    assert max(relative(*both) for both in zip(found[1], expected[1], strict=True)) < NEAR
    assert found[2] == pytest.approx(expected[2], rel=NEAR, abs=NEAR)
    assert len(found[3]) == len(expected[3])
    for line, other in zip(found[3], expected[3], strict=True):
        numbers = {name: pytest.approx(value, rel=NEAR, abs=NEAR) for name, value in other.items() if isinstance(value, float)}
        assert line == {**other, **numbers}


@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_one_device(run, stage, way):
    found, expected = run(stage, way)
    assert_same(found, expected)
    assert (len(found[3]) >= 3) == (way == "lora")
    assert WAITS["to the CPU"] > 0  # saving copied the weights, so the model was on the device


@pytest.mark.parametrize("head", [FIRST, SECOND], ids=["head on the first", "head on the second"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_two_devices(run, monkeypatch, stage, head):
    """The layers are spread as by `model.device_map`; the head is untied."""
    way = "full" if head == FIRST and stage != "kto" else "lora"  # kto would copy whole weights as its reference
    more = ["training.precompute_ref_log_probs=true"] if (stage, way) == ("dpo", "full") else []
    real = build._pretrained_model

    def spread(*args, **kwargs):
        model = real(*args, **kwargs)
        if not torch.accelerator.is_available():
            return model
        places = {"model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.layers.0": FIRST, "model.layers.1": SECOND}
        places |= {"model.norm": SECOND, "lm_head": head}
        return dispatch_model(model, places, main_device=FIRST, force_hooks=True)

    monkeypatch.setattr(build, "_pretrained_model", spread)
    assert_same(*run(stage, way, *more))


def test_devices_do_not_mix():
    """The stand-in refuses what a GPU would refuse."""
    with standing_in():
        on_cpu, first, second = torch.ones(3), torch.ones(3, device=FIRST), torch.ones(3, device=SECOND)
        for other in (on_cpu, second):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                first + other
        with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
            on_cpu[torch.zeros(1, dtype=torch.int64, device=FIRST)]
        with pytest.raises(TypeError, match="can't convert"):
            first.numpy()
        with pytest.raises(TypeError, match="float64, which it doesn't support"):
            first.double()
        assert (first + torch.tensor(1.0)).device == first[torch.tensor([0])].device == torch.device(FIRST)
        moved = (first.requires_grad_() * 2).to(SECOND)
        (moved * second).sum().backward()
        assert [str(moved.device), str(first.grad.device), first.grad.tolist()] == [SECOND, FIRST, [2.0, 2.0, 2.0]]
        WAITS.clear()
        assert float(first.detach().sum()) == 3.0
        assert first.detach().cpu()[first.detach().cpu() > 0].tolist() == [1.0, 1.0, 1.0]
        assert (WAITS["aten._local_scalar_dense"], WAITS["to the CPU"]) == (1, 2)


PAIRS = [{"prompt_ids": [5, 6, 7, 8], "chosen_ids": [9, 10], "rejected_ids": [11, 12, 13]}] * 3
EXAMPLES = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]


@pytest.mark.parametrize(("collator", "rows"), [(FlatteningCollator, EXAMPLES), (PrefixSharingRewardCollator, PAIRS)], ids=["row", "pairs"])
def test_a_packed_row_does_not_synchronize(tiny_llama, collator, rows):
    batch = collator()(rows)
    batch.pop("labels", None)
    with standing_in():
        model = tiny_llama.to(FIRST).train()
        inputs = {name: value.to(FIRST) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        WAITS.clear()
        with packed_attention(model, inputs):
            model(**inputs, use_cache=False).logits.square().mean().backward()
        assert +WAITS == {}


def test_values_by_completion_do_not_synchronize():
    """A row of two pairs, with completions of 2, 1, 1 and 3 tokens."""
    labels = [-100, 1, 2, 3, -100, 4, 5, 6, 7]
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]])
    with standing_in():
        values = torch.arange(9.0, device=FIRST)[None].requires_grad_()
        given = torch.tensor([labels]).to(FIRST), mask.to(FIRST)
        WAITS.clear()
        found = by_completion(values, *given)
        found.square().sum().backward()
        assert +WAITS == {}
        assert found.detach().tolist() == [[1, 2, 0], [5, 0, 0], [3, 0, 0], [6, 7, 8]]
        assert values.grad.tolist() == [[0, 2, 4, 6, 0, 10, 12, 14, 16]]


@pytest.mark.parametrize("base", ["shared", "its own"])
def test_a_reward_model_scores_completions_on_the_device(work, tmp_path, monkeypatch, base):
    """ppo's reward model, which stage=rm has trained: an adapter on the policy's weights, or a separate model."""
    monkeypatch.setenv("LLMMOD_ALLOW", "observed")
    short = ["training.max_steps=1", "training.bf16=false", "training.gradient_accumulation_steps=1", "pipeline=[train]"]
    reward = [*overrides(work, "rm", "float32", *of_way("lora" if base == "shared" else "full")), *short, f"output_dir={tmp_path}/rm"]
    llmmod.run(llmmod.compose(reward))
    scores = []
    for where in (nullcontext(), standing_in()):
        chosen = [*overrides(work, "ppo", "float32", *of_way("lora")), *short, f"output_dir={tmp_path}/ppo{len(scores)}"]
        chosen = [f"+training.reward.mine.path={tmp_path}/rm/train" if "reward.mine" in text else text for text in chosen]
        with where:
            scores.append(llmmod.run(llmmod.compose([*chosen, "pipeline=[train,evaluate]"])))
    compared = [name for name in scores[0] if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))]
    assert {name: scores[1][name] for name in compared} == pytest.approx({name: scores[0][name] for name in compared}, rel=NEAR, abs=NEAR)
    assert abs(scores[0]["eval_score"]) > 1e-3
