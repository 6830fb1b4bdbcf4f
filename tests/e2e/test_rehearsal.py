"""`llmmod smoke=true`, typed as a user types it: the files of CONTRACT section 4, and what can be done with them."""

import json
import subprocess
import sys

import pytest


def llmmod(*arguments, cwd, stdin=None, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-m", "llmmod", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def rehearsal(work):
    done = llmmod("smoke=true", "output_dir=run", cwd=work)
    assert done.returncode == 0, done.stderr
    return done


def test_the_run_directory_holds_what_the_contract_says(rehearsal, work):
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


def test_the_export_loads_without_llmmod(rehearsal, work):
    script = """
import sys
sys.modules["llmmod"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("run/export"), AutoTokenizer.from_pretrained("run/export")
ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(model.generate(**ids, max_new_tokens=3).shape)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=work, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "what",
    [
        ["finetune.adapters=[run/train]", "smoke=true"],
        ["model.pretrained_model_name_or_path=run/export", "model.gguf_file=null", "render=chatml"],
    ],
    ids=["adapter", "export"],
)
def test_chat_reads_piped_input(rehearsal, work, what):
    name = what[0].split("/")[-1].strip("]")
    typed = "hello\nclear\n你好\nexit\n"
    done = llmmod("pipeline=[chat]", *what, "generation.max_new_tokens=4", f"output_dir=chat-{name}", cwd=work, stdin=typed)
    assert done.returncode == 0, done.stderr
    assert json.loads((work / f"chat-{name}" / "run.json").read_text())["status"] == "completed"


def test_a_second_run_into_the_same_directory_is_refused(rehearsal, work):
    before = (work / "run" / "run.json").read_text()
    done = llmmod("smoke=true", "output_dir=run", cwd=work)
    assert done.returncode == 2
    assert "output_dir" in done.stderr
    assert (work / "run" / "run.json").read_text() == before


def test_a_sweep_ends_with_a_table(work):
    done = llmmod(
        "-m", "training.learning_rate=1e-5,1e-4", "finetune.r=4,8", "smoke=true", "pipeline=[train]", "hydra.sweep.dir=sweep", cwd=work
    )
    assert done.returncode == 0, done.stderr
    rows = (work / "sweep" / "leaderboard.csv").read_text().splitlines()
    assert rows[0].startswith("job,training.learning_rate,finetune.r,status,")
    assert [row.split(",")[:4] for row in rows[1:]] == [
        ["0", "1e-05", "4", "completed"],
        ["1", "1e-05", "8", "completed"],
        ["2", "0.0001", "4", "completed"],
        ["3", "0.0001", "8", "completed"],
    ]
    assert "leaderboard.csv" in done.stdout
    for job in "0123":
        assert json.loads((work / "sweep" / job / "run.json").read_text())["status"] == "completed"


def test_a_failing_job_does_not_end_the_sweep(work):
    done = llmmod(
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
        cwd=work,
    )
    assert done.returncode == 2, done.stderr
    assert "1 of 3 jobs can't be run; the others are." in done.stderr
    assert "Job 1 failed" in done.stderr
    assert "training.learning_rate: found -1. Allowed: above 0." in done.stderr.split("Job 1 failed")[1]
    assert not (work / "failing" / "2").exists()
    statuses = [json.loads((work / "failing" / job / "run.json").read_text())["status"] for job in "01"]
    assert statuses == ["completed", "failed"]


def test_a_model_that_only_a_hub_has_is_answered_with_what_to_do(work):
    done = llmmod("stage=sft", "model=chatglm2", "finetune=lora", "output_dir=nohub", cwd=work)
    assert done.returncode == 2
    said = "model.pretrained_model_name_or_path: 'zai-org/chatglm2-6b' is not a local directory"
    assert said in done.stderr
    assert "To use files that you have: model.pretrained_model_name_or_path=/path/to/directory." in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((work / "nohub" / "run.json").read_text())["status"] == "failed"
