"""Jobs of a sweep in one process share loaded objects, and give the same bits as runs that load everything themselves."""

import hashlib
import json
from pathlib import Path

import pytest

import llmmod
from llmmod.config.compose import to_root
from llmmod.pipeline.run import run_pipeline
from llmmod.pipeline.session import Left

FIRST = ["smoke=true", "pipeline=[train,export]", "seed=1", "training.disable_tqdm=true"]


def run(overrides, directory, left=None):
    """Run the overrides; returns the digests of the run's files, and its metrics without times."""
    outcome = run_pipeline(to_root(llmmod.compose([*overrides, f"output_dir={directory}"])), Path(directory), left=left)
    assert outcome.error is None, outcome.error
    files = {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(Path(directory).rglob("*.safetensors"))
    }
    history = json.loads((Path(directory) / "train" / "trainer_state.json").read_text())["log_history"]
    timed = ("runtime", "per_second", "flos")
    kept = {name: value for name, value in outcome.metrics.items() if not any(word in name for word in timed)}
    data = json.loads((Path(directory) / "run.json").read_text())["data"]
    return files, kept, [{n: v for n, v in log.items() if not any(word in n for word in timed)} for log in history], data


@pytest.fixture
def loads(monkeypatch):
    """How often a model is loaded."""
    from llmmod.models.loading import build

    counted, load = [], build.build_model
    monkeypatch.setattr(build, "build_model", lambda *args, **named: counted.append(args) or load(*args, **named))
    return counted


# The next job -> how often it loads a model: 0 if it may share the loaded one.
NEXT = {
    "another rank": (["finetune.r=4", "finetune.learning_rate=1e-2"], 0),
    "all weights": (["finetune=full"], 0),
    "a random model of another seed": (["seed=2"], 1),
}


def test_jobs_come_to_the_same_bits_after_one_another_as_alone(tmp_path, loads):
    left = Left()
    run(FIRST, tmp_path / "first", left)
    for name, (overrides, loaded) in NEXT.items():
        keys = {text.partition("=")[0] for text in overrides}
        job = [*(text for text in FIRST if text.partition("=")[0] not in keys), *overrides]
        loads.clear()
        after = run(job, tmp_path / f"{name} after another", left)
        assert len(loads) == loaded, name
        assert after == run(job, tmp_path / f"{name} alone"), name
        assert after[0], name


def test_after_all_weights_were_trained_the_model_is_loaded_again(tmp_path, loads):
    left = Left()
    run([*FIRST, "finetune=full"], tmp_path / "first", left)
    assert left.model is None
    assert left.loaded


def test_a_job_that_fails_leaves_no_model(tmp_path):
    left = Left()
    run(FIRST, tmp_path / "first", left)
    assert left.model is not None
    root = to_root(llmmod.compose([*FIRST, f"output_dir={tmp_path / 'second'}"]))
    root.training.callbacks = {"mine": {"_target_": "transformers.TrainerCallback", "unknown": 1}}
    assert run_pipeline(root, tmp_path / "second", left=left).status == "failed"
    assert left.model is None
