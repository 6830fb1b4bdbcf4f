"""`llmmod smoke=true`, as a user types it: the files of a run, and their use.

The rehearsal runs in a process of its own. The other commands run in the test's process, since a new process takes 5 s of CPU to start.
"""

import io
import json
import shutil
import subprocess
import sys

import pytest
from typed import typed


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def in_process(*arguments, cwd):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "llmmod", *arguments]
    return subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def rehearsal(directory):
    done = in_process("smoke=true", "output_dir=run", cwd=directory)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def work(directory, monkeypatch):
    """The working directory of the commands; the hub is offline."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return directory


def test_the_files_of_a_run_directory(rehearsal, work):
    run = work / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "completed"
    assert [s["name"] for s in record["steps"]] == ["train", "evaluate", "predict", "export"]
    assert all(s["status"] == "completed" and s["seconds"] > 0 and s["peak_rss_bytes"] > 0 for s in record["steps"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"train_loss", "eval_loss", "eval_perplexity"} <= set(metrics)
    assert {"predict_rouge-1", "predict_rouge-2", "predict_rouge-l", "predict_bleu-4"} <= set(metrics)
    assert (run / ".hydra" / "config.yaml").is_file()
    assert (run / ".hydra" / "overrides.yaml").read_text().split() == ["-", "smoke=true", "-", "output_dir=run"]
    assert (run / "run.log").stat().st_size > 0
    assert (run / "train" / "adapter_model.safetensors").is_file()
    assert (run / "train" / "trainer_state.json").is_file()
    assert (run / "train" / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "export" / "config.json").is_file()
    lines = (run / "predict" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    assert all(set(json.loads(line)) == {"prompt", "label", "predict"} for line in lines)
    assert not list(run.rglob("*.bin")), "weights are safetensors"


def test_the_export_loads_without_llmmod(rehearsal, work, elsewhere):
    ((prompt, answer),) = elsewhere(work / "run" / "export", ["hi"])
    assert prompt
    assert answer


@pytest.mark.parametrize(
    "what",
    [
        ["finetune.adapters=[run/train]", "smoke=true"],
        ["model.pretrained_model_name_or_path=run/export", "model.gguf_file=null", "render=chatml"],
    ],
    ids=["adapter", "export"],
)
def test_chat_reads_piped_input(rehearsal, work, what, monkeypatch):
    name = what[0].split("/")[-1].strip("]")
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nclear\n你好\nexit\n"))
    done = typed("pipeline=[chat]", *what, "generation.max_new_tokens=4", f"output_dir=chat-{name}")
    assert done.code == 0, done.said
    assert "chat: 2 questions answered" in done.said
    assert json.loads((work / f"chat-{name}" / "run.json").read_text())["status"] == "completed"


def test_a_second_run_into_the_same_directory_is_refused(rehearsal, work):
    before = (work / "run" / "run.json").read_text()
    done = typed("smoke=true", "output_dir=run")
    assert done.code == 2
    assert "output_dir" in done.said
    assert (work / "run" / "run.json").read_text() == before


def test_a_sweep_ends_with_a_table(work):
    done = typed("-m", "training.learning_rate=1e-5,1e-4", "finetune.r=4,8", "smoke=true", "pipeline=[train]", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.said
    rows = (work / "sweep" / "leaderboard.csv").read_text().splitlines()
    assert rows[0].startswith("job,training.learning_rate,finetune.r,status,")
    assert [row.split(",")[:4] for row in rows[1:]] == [
        ["0", "1e-05", "4", "completed"],
        ["1", "1e-05", "8", "completed"],
        ["2", "0.0001", "4", "completed"],
        ["3", "0.0001", "8", "completed"],
    ]
    assert "leaderboard.csv" in done.said
    for job in "0123":
        assert json.loads((work / "sweep" / job / "run.json").read_text())["status"] == "completed"
    assert "The best: job " in done.said
    assert (work / "sweep" / "sweep.html").is_file()
    before = (work / "sweep" / "0" / "run.json").read_bytes()
    shutil.rmtree(work / "sweep" / "2")
    killed = json.loads((work / "sweep" / "3" / "run.json").read_text()) | {"status": "running"}
    (work / "sweep" / "3" / "run.json").write_text(json.dumps(killed))
    resumed = typed("sweep.resume=sweep")
    assert resumed.code == 0, resumed.said
    assert [line.split(",")[:4] for line in (work / "sweep" / "leaderboard.csv").read_text().splitlines()[1:]] == [
        row.split(",")[:4] for row in rows[1:]
    ]
    assert "Launching 2 jobs" in resumed.said
    assert (work / "sweep" / "0" / "run.json").read_bytes() == before
    assert json.loads((work / "sweep" / "3" / "run.json").read_text())["status"] == "completed"
    assert not (work / "sweep" / "earlier").exists()  # a killed job resumes in its own directory


def test_a_failing_job_does_not_end_the_sweep(work):
    done = typed(
        "-m",
        "training.learning_rate=1e-4,1e30,-1",
        "training.optim=sgd",
        "training.max_grad_norm=0",
        "finetune=full",
        "smoke=true",
        "pipeline=[train,evaluate]",
        "hydra.sweep.dir=failing",
        "training.lr_scheduler_type=constant",
        "training.warmup_steps=0",
    )
    assert done.code == 2, done.said
    assert "1 of 3 jobs can't be run; the others are." in done.said
    assert "Job 1 failed" in done.said
    assert "Its log: failing/1/run.log" in done.said
    assert "training.learning_rate: found -1. Allowed: above 0." in done.said.split("Job 1 failed")[1]
    assert not (work / "failing" / "2").exists()
    statuses = [json.loads((work / "failing" / job / "run.json").read_text())["status"] for job in "01"]
    assert statuses == ["completed", "failed"]


def test_a_model_that_is_only_on_the_hub_is_refused_with_what_to_do(work):
    done = typed("stage=sft", "model=chatglm2", "finetune=lora", "output_dir=nohub")
    assert done.code == 2
    said = "model.pretrained_model_name_or_path: 'zai-org/chatglm2-6b' is not a local directory"
    assert said in done.said
    assert "To use files that you have: model.pretrained_model_name_or_path=/path/to/directory." in done.said
    assert json.loads((work / "nohub" / "run.json").read_text())["status"] == "failed"
