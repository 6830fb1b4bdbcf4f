"""Which models can be fine-tuned in which ways: each pair trained, evaluated, exported and loaded again, as a table in Markdown.

    python benchmarks/matrix.py                     every option of `model` × full, freeze, lora, qlora
    python benchmarks/matrix.py chatglm2 falcon     these alone

Tiny models of the true architectures (`smoke=true`), in one process. A cell is a tick only if the whole run ended well, the loss on
held-out examples is a number, and the exported directory, loaded by transformers alone, computes the logits of the model that was
trained. tests/e2e/test_matrix.py runs a part of it.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

WAYS = ("full", "freeze", "lora", "qlora")
PIPELINE = ("train", "evaluate", "export")
# A 4-bit model computes with weights that it unpacks for each product; the export holds them unpacked.
MOST_APART = {"full": 1e-5, "freeze": 1e-5, "lora": 1e-4, "qlora": 1e-3}
# Models that no class of transformers computes keep their original layout: llmmod loads what it exports.
OWN_CLASS = frozenset({"baichuan_13b", "baichuan2_13b"})


def options() -> list[str]:
    """The names of all model options, as `llmmod --help` lists them."""
    return sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "model").glob("*.yaml"))


def run_cell(model: str, way: str, directory: Path, stage: str = "sft") -> float:
    """Train, evaluate, export and reload one pair.

    Returns:
        How far apart the logits of the trained and the reloaded model are, at most.

    Raises:
        Exception: whatever kept it from working; AssertionError where it ran and the result is wrong.
    """
    import torch

    import llmmod

    run = directory / f"{model}-{way}"
    steps = f"pipeline=[{','.join(PIPELINE)}]"
    chosen = [f"stage={stage}", f"model={model}", f"finetune={way}", "smoke=true"]
    config = llmmod.compose([*chosen, steps, f"output_dir={run}", "training.save_strategy=no"])
    with _session() as sessions:
        metrics = llmmod.run(config)
    assert math.isfinite(metrics["train_loss"]), metrics
    assert math.isfinite(metrics["eval_loss"]), metrics
    trained, exported = sessions[0].current.model.eval(), _reloaded(model, run / "export", scores=stage == "rm")
    ids = torch.arange(10, 34).reshape(2, 12)
    with torch.no_grad():
        apart = (trained(input_ids=ids).logits - exported(input_ids=ids).logits).abs().max().item()
    assert apart <= MOST_APART[way], f"the export's logits are {apart:.1e} from the trained model's"
    return apart


def _reloaded(model: str, directory: Path, *, scores: bool) -> object:
    if model in OWN_CLASS:
        import llmmod
        from llmmod.models.reward_checkpoint import load_reward_model

        return (load_reward_model if scores else llmmod.load_model)(str(directory))
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return (AutoModelForSequenceClassification if scores else AutoModelForCausalLM).from_pretrained(directory)


@contextmanager
def _session() -> Iterator[list]:
    """While it lasts, a list that gets the session of each run, which has the trained model."""
    from llmmod.pipeline import run
    from llmmod.pipeline.session import Session

    kept: list = []

    def keep(*args, **kwargs):
        kept.append(Session(*args, **kwargs))
        return kept[-1]

    with mock.patch.object(run, "Session", keep):
        yield kept


def main(models: list[str]) -> int:
    """Print the table, then what went wrong in the cells that failed; 1 where one did."""
    from measure import machine

    print(machine(), file=sys.stderr)
    print(f"| model | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    failed, began = {}, time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        for model in models or options():
            cells = []
            for way in WAYS:
                try:
                    run_cell(model, way, Path(directory))
                    cells.append("✓")
                except Exception as error:
                    failed[model, way] = " ".join(f"{type(error).__name__}: {error}".split())[:400]
                    cells.append("✗")
            print(f"| `{model}` | {' | '.join(cells)} |", flush=True)
    print(f"\n{time.process_time() - began:.0f} CPU seconds", file=sys.stderr)
    for (model, way), why in failed.items():
        print(f"{model} × {way}: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
