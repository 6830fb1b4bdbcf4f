"""Models and ways to fine-tune: each pair trained, evaluated, exported, loaded again and resumed, as a table in Markdown.

    python benchmarks/matrix.py                            every option of `model` × full, freeze, lora, qlora, in stage sft
    python benchmarks/matrix.py chatglm2 falcon            only these
    python benchmarks/matrix.py --stage dpo chatglm2       in another stage

All runs are in one process, on tiny models of the real architectures (`smoke=true`). A cell has a tick only if the whole run completes, the
loss on held-out examples is finite, the exported directory, loaded by transformers alone, computes the logits of the trained model, and a
run that resumes from the first step's checkpoint saves the same bytes. Otherwise the cell names the step that failed. Models that are
loaded as the same class of transformers share a row. tests/e2e/test_matrix.py runs a part of it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

STAGES = ("pt", "sft", "rm", "dpo", "kto")  # those whose evaluation has a loss
WAYS = ("full", "freeze", "lora", "qlora")
PIPELINE = ("train", "evaluate", "export")
# A 4-bit model dequantizes its weights for each product; in the export they are dequantized and merged with the adapter.
MAX_LOSS_DIFFERENCE = {"full": 1e-5, "freeze": 1e-5, "lora": 1e-4, "qlora": 1e-4}
# Models that transformers does not have a class for keep their original layout, so llmmod loads their exports.
OWN_CLASS = frozenset({"baichuan_13b", "baichuan2_13b"})


def options() -> list[str]:
    """The names of all options of `model` except `auto`, which architectures.py is for."""
    return sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "model").glob("*.yaml") if path.stem != "auto")


def run_cell(model: str, way: str, directory: Path, stage: str = "sft", overrides: tuple[str, ...] = ()) -> float:
    """Train, evaluate, export, reload and resume one pair; `overrides` as on the command line.

    Returns:
        The largest difference between the logits of the trained and the reloaded model.

    Raises:
        Exception: whatever made it fail; AssertionError if it ran and the result is wrong.
    """
    import torch

    import llmmod

    run = directory / f"{model}-{way}"
    steps = f"pipeline=[{','.join(PIPELINE)}]"
    chosen = [f"stage={stage}", f"model={model}", f"finetune={way}", "smoke=true"]
    saved = ["training.save_strategy=steps", "training.save_steps=1", "training.save_total_limit=null"]
    config = llmmod.compose([*chosen, steps, f"output_dir={run}", *saved, *overrides])
    with _session() as sessions:
        metrics = llmmod.run(config)
    assert math.isfinite(metrics["train_loss"]), metrics
    assert math.isfinite(metrics["eval_loss"]), metrics
    trained, exported = sessions[0].model("export").model.eval(), _reloaded(model, run / "export", scores=stage == "rm")
    ids = torch.arange(10, 34).reshape(2, 12)
    with torch.no_grad():
        apart = (trained(input_ids=ids).logits - exported(input_ids=ids).logits).abs().max().item()
    assert apart <= MAX_LOSS_DIFFERENCE[way], f"the export's logits are {apart:.1e} from the trained model's"
    again = directory / f"{model}-{way}-again"
    resumed = [f"training.resume_from_checkpoint={run}/train/checkpoint-1", "training.save_strategy=no"]
    llmmod.run(llmmod.compose([*chosen, "pipeline=[train]", f"output_dir={again}", *resumed, *overrides]))
    assert _weights(again / "train") == _weights(run / "train"), "a resumed run leaves other bytes"
    return apart


def _weights(directory: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}
    assert found, f"no weights in {directory}"
    return found


def _reloaded(model: str, directory: Path, *, scores: bool) -> object:
    if model in OWN_CLASS:
        import llmmod
        from llmmod.models.adapters.reward_models import load_reward_model

        return (load_reward_model if scores else llmmod.load_model)(str(directory))
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return (AutoModelForSequenceClassification if scores else AutoModelForCausalLM).from_pretrained(directory)


@contextmanager
def _session() -> Iterator[list]:
    """A context with a list of the sessions of the runs in it; a session has the trained model."""
    from llmmod.pipeline import run
    from llmmod.pipeline.session import Session

    kept: list = []

    def keep(*args, **kwargs):
        kept.append(Session(*args, **kwargs))
        return kept[-1]

    with mock.patch.object(run, "Session", keep):
        yield kept


def main(models: list[str], stage: str) -> int:
    """Print the table, the largest differences of logits, and the errors of cells that failed; returns 1 if one failed."""
    from measure import machine

    print(machine(), file=sys.stderr)
    rows: dict[str, list[str]] = {}
    apart, failed = dict.fromkeys(WAYS, 0.0), {}
    began = time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        for model in models:
            cells = []
            for way in WAYS:
                try:
                    apart[way] = max(apart[way], run_cell(model, way, Path(directory), stage))
                    cells.append("✓")
                except Exception as error:
                    failed[model, way] = " ".join(f"{type(error).__name__}: {error}".split())[:400]
                    cells.append(f"✗ {_step_that_failed(Path(directory) / f'{model}-{way}')}")
            print(f"{model}: {' '.join(cells)}", file=sys.stderr, flush=True)
            rows.setdefault(f"{class_name(model)} | {' | '.join(cells)}", []).append(f"`{model}`")
    print(f"| models | loaded as | {' | '.join(WAYS)} |\n|---|---|{'---|' * len(WAYS)}")
    for row, names in rows.items():
        print(f"| {', '.join(names)} | {row} |")
    print(f"\n{len(models) * len(WAYS) - len(failed)} of {len(models) * len(WAYS)} pairs, stage {stage}; the reloaded logits are at most")
    print(", ".join(f"{apart[way]:.0e} ({way})" for way in WAYS) + " from those of the trained model.")
    for (model, way), why in failed.items():
        print(f"- {model} × {way}: {why}")
    print(f"{time.process_time() - began:.0f} CPU seconds", file=sys.stderr)
    return 1 if failed else 0


def class_name(model: str) -> str:
    """The class that a model option is loaded as."""
    import yaml
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file = Path(__file__).parents[1] / "conf" / "model" / f"{model}.yaml"
    model_type = yaml.safe_load(file.read_text(encoding="utf-8"))["architecture"]["model_type"]
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, f"{model_type}, llmmod's own")


def _step_that_failed(run: Path) -> str:
    """The first step of a run that is not completed in run.json; `reload` if all are."""
    try:
        steps = json.loads((run / "run.json").read_text(encoding="utf-8"))["steps"]
    except OSError:
        return "start"
    return next((step["name"] for step in steps if step["status"] != "completed"), "reload")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Which models work with which ways to fine-tune, in Markdown.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="options of `model`; all by default")
    parser.add_argument("--stage", choices=STAGES, default="sft")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _arguments()
    sys.exit(main(chosen.models or options(), chosen.stage))
