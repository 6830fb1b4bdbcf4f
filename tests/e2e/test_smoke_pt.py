"""stage=pt as a rehearsal, from scratch and by adapters: perplexity, and no answers."""

from __future__ import annotations

import pytest

from llmmod import compose, run


@pytest.mark.parametrize("choices", [["model.weights=random", "finetune=full"], ["model=bloom"]], ids=" ".join)
def test_it_runs(tmp_path, choices):
    metrics = run(compose(["stage=pt", "smoke=true", *choices, f"output_dir={tmp_path}"]))
    assert metrics["eval_perplexity"] > 1
    assert not any(name.startswith("predict_") for name in metrics)
    assert (tmp_path / "export" / "model.safetensors").is_file()
