"""`replay=…`: the overrides of the new run, recorded values of options, and a real repetition of a run."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from llmmod.errors import ConfigError
from llmmod.runs.compare import open_run
from llmmod.runs.replay import changed_since, replayed_overrides


@pytest.fixture
def run(tmp_path):
    """A run's directory with a configuration and overrides."""

    def make(config, overrides):
        (tmp_path / ".hydra").mkdir(exist_ok=True)
        (tmp_path / "run.json").write_text("{}")
        (tmp_path / ".hydra/config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
        (tmp_path / ".hydra/overrides.yaml").write_text(json.dumps(overrides))
        return open_run(str(tmp_path), "replay")

    return make


def test_overrides_are_those_of_the_run_without_its_directory_and_launch_options(run):
    recorded = [
        "model=qwen3", "seed=7", "output_dir=there", "auto_resume=true", "training.resume_from_checkpoint=true", "hydra/launcher=joblib",
        "hydra.searchpath=[x]", "sweep.metric=eval_loss", "reuse=true",
    ]  # fmt: skip
    made = run({"seed": 7}, recorded)
    assert replayed_overrides(made, ["replay=x", "output_dir=here"]) == ["model=qwen3", "seed=7", "reuse=false", "output_dir=here"]


def test_a_value_beside_it_is_refused(run):
    with pytest.raises(ConfigError, match=r"seed: typed with replay.*llmmod seed=7"):
        replayed_overrides(run({"seed": 7}, ["seed=7"]), ["replay=x", "seed=8"])


def test_trusted_code_is_not_taken_from_a_file(run):
    made = run({"model": {"trust_remote_code": True}}, ["model.trust_remote_code=true"])
    with pytest.raises(ConfigError, match=r"add model\.trust_remote_code=true"):
        replayed_overrides(made, ["replay=x"])
    typed = ["replay=x", "model.trust_remote_code=true"]
    assert replayed_overrides(made, typed) == ["reuse=false", "model.trust_remote_code=true"]
    assert changed_since(made, OmegaConf.create({"model": {"trust_remote_code": False}})) == []


def test_a_node_of_that_time_is_set_leaf_by_leaf(run):
    made = run({"node": {"_target_": "a.b", "inner": {"x": None, "y": []}}}, [])
    assert changed_since(made, OmegaConf.create({})) == ["++node._target_='a.b'", "++node.inner.x=null", "++node.inner.y=[]"]


VALUES = {
    "text": "it's a \\ and a \\' and {{query}}, [x]: ü渲染\n",
    "ends in a backslash": "C:\\",
    "empty": "",
    "looks like a number": "1e-3",
    "numbers": [1, 2.5, -1e-7, True, None],
    "nodes in a list": [{"token": "eos_token", "a key": 1}, "{{x}}", {}],
    "names with dots": {"1.7b": "it's", "_target_": "a.b"},
    "an interpolation": "${seed}",
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_of_that_time_is_set_as_it_was(run, name):
    made = run({"seed": 1, "node": {"a": VALUES[name], "same": 1}}, [])
    (override,) = changed_since(made, OmegaConf.create({"seed": 1, "node": {"same": 1}, "new": "a key of today"}))
    parsed = OverridesParser.create().parse_override(override)
    assert (parsed.key_or_group, parsed.is_force_add()) == ("node.a", True)
    assert parsed.value() == VALUES[name]


SCRIPT = """
import json, pathlib, sys
from llmmod.app import run_command
one, two, three = (pathlib.Path(sys.argv[1]) / name for name in ("one", "two", "three"))
print("code", run_command(["llmmod", "smoke=true", "pipeline=[train]", "training.predict_steps=2", f"output_dir={one}"]))
print("code", run_command(["llmmod", f"replay={one}", f"output_dir={two}"]))
config = one / ".hydra" / "config.yaml"
config.write_text(config.read_text().replace("weight_decay: 0.0", "weight_decay: 0.125"))
adapter = one / "train" / "adapter_model.safetensors"
adapter.write_bytes(adapter.read_bytes()[:-1] + b"x")
record = json.loads((one / "run.json").read_text())
record["data"][0]["content"]["llmmod_qa"], record["versions"]["torch"], record["code"] = "other rows", "1.0", "other files"
(one / "run.json").write_text(json.dumps(record))
print("code", run_command(["llmmod", f"replay={one}", f"output_dir={three}"]))
"""


def test_a_replayed_run_gives_the_same_bytes_or_reports_what_differs(tmp_path, warm_python):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*warm_python, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, cwd=tmp_path, env=environment)
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == ["code 0", "code 0", "code 1"], done.stderr[-2000:]
    assert "replay: the same bytes: train/adapter_model.safetensors" in done.stdout
    same, changed = (json.loads((tmp_path / name / "replay.json").read_text()) for name in ("two", "three"))
    assert (same["same"], same["first_difference"]) == (True, None)
    assert (changed["same"], changed["of"]) == (False, str(tmp_path / "one"))
    assert "++training.weight_decay=0.125" in done.stderr
    read = json.loads((tmp_path / "one" / "run.json").read_text())["data"]
    assert [(account["step"], account["name"]) for account in read] == [("train", "llmmod_qa")], "the data is read once and told once"
    assert "configuration: the same" in done.stdout
    # Differences are reported before the training and at the end. The replay without differences doesn't report any.
    for line in ("versions: torch 1.0 -> ", "code: llmmod's files other files -> "):
        assert done.stderr.count(f"replay: differs from the recorded run: {line}") == 1
    log = (tmp_path / "three" / "run.log").read_text()
    assert log.index("replay: differs from the recorded run: data: rows of llmmod_qa other rows -> ") < log.index("parameters are trained")
    assert "differs from the recorded" not in (tmp_path / "two" / "run.log").read_text()
    assert (tmp_path / "three" / "compare.html").is_file()
