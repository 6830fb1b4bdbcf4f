"""Models and adapters must be the same after saving and loading; only transformers and peft load them here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from byte_llama import write_byte_llama
from torch.nn.functional import cross_entropy
from typed import lines, trained, write_lines

WORDS = ("zebra ", "quartz ", "jigsaw ", "vortex ")
LEARN = ("training.learning_rate=1e-2", "training.lr_scheduler_type=constant", "training.warmup_steps=0", "training.save_strategy=no")
LEARN += (
    "training.eval_strategy=no",
    "training.eval_on_start=false",
    "training.per_device_train_batch_size=4",
    "training.logging_steps=10",
)


def loss_of(model, preview="run"):
    """The mean loss of the labelled tokens of a run's preview."""
    sums, count = 0.0, 0
    for line in lines(f"{preview}/preview/preview.jsonl"):
        labels = torch.tensor(line["labels"])[1:]
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([line["input_ids"]])).logits[0, :-1]
        sums, count = sums + cross_entropy(logits, labels, reduction="sum").item(), count + int((labels != -100).sum())
    return sums / count


def causal(directory, **given):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, **given)


def evaluated(run):
    return json.loads(Path(run, "metrics.json").read_text())["eval_loss"]


# Users didn't know which adapters to merge after they trained a second one (LLaMA-Factory 5848, peft 2264, trl 4713).
@pytest.fixture
def taught(go):
    """Two adapters, the second trained on the first: runs `one` and `two`."""
    for name, words in (("first", WORDS), ("second", [f"{word.strip().upper()}!" for word in WORDS])):
        write_lines(f"{name}.jsonl", [{"instruction": f"Name word {n}.", "output": word * 2} for n, word in enumerate(words)])
    common = ("finetune=lora", "training.max_steps=20", *LEARN)
    assert go("first.jsonl", "dataset.val_files=first.jsonl", *common, pipeline="preview,train,evaluate", output="one").code == 0
    second = ("dataset.val_files=second.jsonl", "finetune.adapters=[one/train]")
    assert go("second.jsonl", *second, *common, pipeline="preview,train,evaluate,export", output="two").code == 0


def test_neither_of_two_adapters_is_lost(go, taught, monkeypatch):
    from peft import AutoPeftModelForCausalLM

    second = evaluated("two")
    assert loss_of(causal("two/export"), "two") == pytest.approx(second, abs=0.005)
    judged = ("finetune=lora", "dataset.val_files=second.jsonl")
    assert go("second.jsonl", *judged, "finetune.adapters=[one/train,two/train]", pipeline="evaluate", output="both").code == 0
    assert evaluated("both") == pytest.approx(second, abs=0.005)
    alone = go("second.jsonl", *judged, "finetune.adapters=[two/train]", pipeline="evaluate", output="alone")
    if alone.code == 0:
        assert "one/train" in alone.said or evaluated("alone") == pytest.approx(second, abs=0.005)
    else:
        assert alone.code == 2
        assert "one/train" in alone.said
    first = evaluated("one")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")  # peft alone finds the first adapter's base from any directory
    assert loss_of(AutoPeftModelForCausalLM.from_pretrained("../one/train"), "../one") == pytest.approx(first, abs=0.005)


# After QLoRA the adapter answered well and the merged model didn't (peft 1043, 2321, ms-swift 5144).
def test_the_export_of_qlora_is_whole_and_as_good(go, tmp_path):
    from safetensors import safe_open

    model = write_byte_llama(tmp_path / "untied", untied=True)
    write_lines("rows.jsonl", [{"instruction": f"Name word {n}.", "output": word * 2} for n, word in enumerate(WORDS)])
    common = {"model": model, "output": "run"}
    chosen = ("finetune=qlora", "dataset.val_files=rows.jsonl")
    assert go("rows.jsonl", *chosen, "training.max_steps=30", *LEARN, pipeline="preview,train,evaluate,export", **common).code == 0
    told = evaluated("run")
    assert told < loss_of(causal(model)) - 0.5
    assert "quantization_config" not in json.loads(Path("run/export/config.json").read_text())
    with safe_open("run/export/model.safetensors", "np") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} <= {"F32", "F16", "BF16"}  # noqa: SIM118
    assert loss_of(causal("run/export", dtype=torch.float32)) == pytest.approx(told, rel=0.02, abs=0.02)
    assert go("rows.jsonl", *chosen, "finetune.adapters=[run/train]", model=model, pipeline="evaluate", output="again").code == 0
    assert evaluated("again") == pytest.approx(told, abs=0.005)


# The reward model's head wasn't saved (trl 1379), or was newly initialized on loading (peft 577, 876).
PAIRS = [
    ("Thank her for the cake.", "Thank you, it was lovely!", "It was dry."),
    ("Decline politely.", "I am sorry, I cannot come.", "Nope, and do not ask again, ever, please, it is of no use at all."),
    ("Greet the guests.", "Welcome, everybody, and make yourselves at home in the garden!", "Oh."),
    ("Ask for the salt.", "Could you pass the salt?", "Salt. Now."),
]


def test_a_reward_model_scores_the_same_wherever_it_is_loaded(go, base):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    write_lines("pairs.jsonl", [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in PAIRS])
    chosen = ("stage=rm", "finetune=lora", "dataset.val_files=pairs.jsonl")
    assert go("pairs.jsonl", *chosen, "training.max_steps=15", *LEARN, pipeline="preview,train,predict,export").code == 0
    wanted = scores_of("run")
    seen = [(trained(line), line["input_ids"]) for line in lines("run/preview/preview.jsonl")]
    assert {said for said, _ in seen} == wanted.keys()

    exported, info = AutoModelForSequenceClassification.from_pretrained("run/export", output_loading_info=True)
    assert not info["missing_keys"]
    adapted = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), "run/train")
    for model in (exported.eval(), adapted.eval()):
        with torch.no_grad():
            found = {said: model(input_ids=torch.tensor([ids])).logits.item() for said, ids in seen}
        assert found == pytest.approx(wanted, rel=2e-3, abs=2e-3)
    tokenizer = AutoTokenizer.from_pretrained("run/export")
    batch = tokenizer.pad({"input_ids": [ids for _, ids in seen]}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        together = exported(**batch).logits[:, 0].tolist()
    assert dict(zip([said for said, _ in seen], together, strict=True)) == pytest.approx(wanted, rel=2e-3, abs=2e-3)

    assert go("pairs.jsonl", *chosen, "finetune.adapters=[run/train]", pipeline="predict", output="again").code == 0
    assert scores_of("again") == pytest.approx(wanted, rel=2e-3, abs=2e-3)


def scores_of(run):
    """answer -> score, as predict wrote them."""
    found = lines(f"{run}/predict/scores.jsonl")
    return {line[side].strip(): line[f"{side}_score"] for line in found for side in ("chosen", "rejected")}


# Is an already scaled checkpoint scaled again (LLaMA-Factory 1298)? Is the scaling in effect, and is it exported (LongLoRA 181)?
LONG = [{"instruction": f"Count on from {n}, for long.", "output": " ".join(str(n + k) for k in range(80))} for n in range(10, 14)]


def divided(own, scaled):
    """The factor by which scaling divides the rotary frequencies of a model."""
    ratios = own.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    assert torch.allclose(ratios, ratios[:1].expand_as(ratios), rtol=1e-4)
    return ratios[0].item()


def test_positions_are_scaled_by_what_was_asked_for(go, tmp_path):
    from transformers import AutoConfig

    model = write_byte_llama(tmp_path / "short", positions=128)
    write_lines("rows.jsonl", LONG)
    common = ("finetune=full", "dataset.val_files=rows.jsonl", "dataset.cutoff_len=400", *LEARN, "training.learning_rate=5e-3")
    scaled = ("model.rope_scaling.type=linear", "model.rope_scaling.factor=4", "training.max_steps=15")
    assert go("rows.jsonl", *common, *scaled, model=model, pipeline="preview,train,evaluate,export").code == 0
    assert divided(causal(model), causal("run/export")) == pytest.approx(4)
    told = evaluated("run")
    assert loss_of(causal("run/export")) == pytest.approx(told, abs=0.005)
    config = AutoConfig.from_pretrained("run/export")
    config.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}
    assert abs(loss_of(causal("run/export", config=config)) - told) > 0.002

    on = {"model": "run/export", "pipeline": "train,export"}
    assert go("rows.jsonl", *common, "training.max_steps=1", output="kept", **on).code == 0
    assert divided(causal(model), causal("kept/export")) == pytest.approx(4)
    other = ("model.rope_scaling.type=linear", "model.rope_scaling.factor=2", "training.max_steps=1")
    twice = go("rows.jsonl", *common, *other, output="twice", **on)
    if twice.code == 2:
        assert "rope_scaling" in twice.said
    else:
        assert twice.code == 0
        tokens = {2: "256", 8: "1024"}[round(divided(causal(model), causal("twice/export")))]
        assert tokens in twice.said
