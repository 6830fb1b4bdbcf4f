"""experiment=rlhf as a rehearsal: three training steps on one model, each with what the earlier ones left."""

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
    compared = ("sft/eval_loss", "sft/eval_token_accuracy", "rm/eval_loss", "rm/eval_accuracy", "rm/eval_margin", "ppo/eval_reward")
    assert {"sft/train_loss", "predict_rouge-1", *compared, *(f"{name}_before" for name in compared)} <= set(metrics)
    steps = json.loads((tmp_path / "run.json").read_text())["steps"]
    assert [step["name"] for step in steps] == ["sft", "rm", "ppo", "predict", "export"]
    assert (tmp_path / "export" / "model.safetensors").is_file()
