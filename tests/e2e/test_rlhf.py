"""experiment=rlhf as a rehearsal: three training steps on one model; each continues from earlier ones."""

from __future__ import annotations

import json

from llmmod import compose, run


def test_it_runs_from_sft_to_export(tmp_path):
    metrics = run(compose(["experiment=rlhf", "smoke=true", f"output_dir={tmp_path}"]))
    left = {name: json.loads((tmp_path / name / "stage.json").read_text()) for name in ("sft", "rm", "ppo")}
    assert {name: (item["stage"], item["kind"], item["head"], item["merged"]) for name, item in left.items()} == {
        "sft": ("sft", "adapter", "language", []),
        "rm": ("rm", "adapter", "reward", ["../sft"]),
        "ppo": ("ppo", "adapter", "language", ["../sft"]),
    }
    of_rm = ("rm/eval_loss", "rm/eval_accuracy", "rm/eval_margin")
    of_answers = (f"ppo/eval_{name}" for name in ("reward", "rouge-l", "exact", "words", "repeated-4-grams"))
    compared = ("sft/eval_loss", "sft/eval_token_accuracy", *of_rm, *of_answers)
    assert {"sft/train_loss", "predict_rouge-1", *compared, *(f"{name}_before" for name in compared)} <= set(metrics)
    steps = json.loads((tmp_path / "run.json").read_text())["steps"]
    assert [step["name"] for step in steps] == ["sft", "rm", "ppo", "predict", "export"]
    assert (tmp_path / "export" / "model.safetensors").is_file()


def test_dpo_in_the_place_of_rm_and_ppo(tmp_path):
    metrics = run(compose(["experiment=rlhf_dpo", "smoke=true", f"output_dir={tmp_path}"]))
    left = json.loads((tmp_path / "dpo" / "stage.json").read_text())
    assert (left["stage"], left["kind"], left["head"], left["merged"]) == ("dpo", "adapter", "language", ["../sft"])
    compared = ("sft/eval_loss", "dpo/eval_loss", "dpo/eval_rewards/accuracies", "dpo/eval_rewards/margins")
    assert {"predict_rouge-1", *compared, *(f"{name}_before" for name in compared)} <= set(metrics)
    assert (tmp_path / "export" / "model.safetensors").is_file()


def test_both_begin_with_the_same_step():
    """So after one experiment, the other can reuse its sft step."""
    assert compose(["experiment=rlhf"]).steps.sft == compose(["experiment=rlhf_dpo"]).steps.sft
