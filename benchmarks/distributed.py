"""Two processes compared with one: training, metrics, saving and resuming, as a table, on a CPU with gloo.

    python benchmarks/distributed.py                          all runs; those of DeepSpeed where it is installed
    python benchmarks/distributed.py --only fsdp 'sft lora'   runs whose name has all of these words

Every run is a rehearsal: a tiny Llama with random weights on the demonstration data. ZeRO 3 draws other random weights than one process
does; to compare the two, start both from a checkpoint. All runs with two processes share one pair of processes, and all others share one
process. `gradients` is the norm of the difference of the first step's gradients, divided by their norm; `weights` the largest difference of
a weight after two steps of SGD. A step has two micro-batches of two examples; `uneven` has three examples, so that in each second
micro-batch one process does not have one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

STAGES = {
    "pt": [],
    "sft": [],
    "rm": [],
    "dpo": [],
    "kto": ["training.loss_type=apo_zero_unpaired"],
    "ppo": ["training.num_mini_batches=1", "training.num_ppo_epochs=1", "+training.reward.varied._target_=distributed.varied"],
    "grpo": ["training.num_generations=2", "+training.reward.varied._target_=distributed.varied"],
}
ONLINE = ("ppo", "grpo")
UNEVEN = ["dataset.val_files=null", "dataset.val_size=1", "dataset.max_samples=4"]
HELD_OUT = ["dataset.val_files=null", "dataset.val_size=3", "dataset.max_samples=7"]  # three can't be divided evenly by two processes
SGD = [
    "training.optim=sgd", "training.learning_rate=0.1", "training.lr_scheduler_type=constant", "training.warmup_steps=0",
    "training.max_grad_norm=0", "training.train_sampling_strategy=sequential", "training.save_strategy=no",
    "+training.callbacks.gradients._target_=gradients.Gradients",
]  # fmt: skip
SAVED = ["training.save_strategy=steps", "training.save_steps=1", "training.lr_scheduler_type=constant", "training.warmup_steps=0"]
NOT_COMPARED = ("train_", "eval_kl")  # times; trl's estimate of the KL depends on the batches


def trained(stage: str, finetune: str, processes: int, *more: str) -> list[str]:
    """The overrides of a training of two steps, each of two micro-batches of two examples."""
    sizes = [f"training.per_device_train_batch_size={2 // processes}", f"training.per_device_eval_batch_size={4 // processes}"]
    sizes += ["training.gradient_accumulation_steps=2"]
    return ["smoke=true", "pipeline=[train,export]", f"stage={stage}", f"finetune={finetune}", *STAGES[stage], *sizes, *more]


def runs() -> Iterator[tuple[str, int, list[str]]]:
    """(name, processes, overrides) of each run; a run that resumes comes after the run that it resumes from."""
    for stage in STAGES:
        for data, more in (("even", []), ("uneven", UNEVEN)):
            if data == "even" or stage not in (*ONLINE, "pt"):
                for processes in (1, 2):
                    yield f"{stage} {data} {processes}", processes, trained(stage, "full", processes, *SGD, *more)
    cells = [(stage, finetune, "fsdp") for stage in ("pt", "sft", "rm", "dpo", "kto") for finetune in ("full", "lora")]
    cells += [("sft", finetune, engine) for engine in deepspeed() for finetune in ("full", "lora")]
    for stage, finetune, engine in cells:
        more = HELD_OUT if stage in ("dpo", "kto") else []
        for processes, by in ((1, "none"), (2, engine)):
            name = f"{stage} {finetune} {engine} {processes}"
            yield name, processes, trained(stage, finetune, processes, *SGD, *more, f"distributed={by}")
    for engine, stage, finetune, own in resumed():
        for before, after in ((2, 2), (2, 1), (1, 2)):
            name = f"{engine} {stage} {finetune} {before} to {after}"
            by = {1: [], 2: own}  # one process does not use an engine
            yield f"{name} whole", before, trained(stage, finetune, before, *SAVED, *by[before])
            on = f"training.resume_from_checkpoint=<{name} whole>"
            yield f"{name} resumed", after, trained(stage, finetune, after, *SAVED, *by[after], on)


def resumed() -> Iterator[tuple[str, str, str, list[str]]]:
    """(name of the engine, stage, way to fine-tune, the engine's overrides) of the runs that resume from a checkpoint."""
    yield "ddp", "sft", "full", []
    yield "ddp", "grpo", "full", []
    for finetune in ("full", "lora"):
        for stage in ("pt", "sft", "dpo"):
            yield "fsdp", stage, finetune, ["distributed=fsdp"]
        yield "fsdp sharded", "sft", finetune, ["distributed=fsdp", "distributed.fsdp.state_dict_type=SHARDED_STATE_DICT"]
        for engine in deepspeed():
            yield engine, "sft", finetune, [f"distributed={engine}"]


def deepspeed() -> Sequence[str]:
    """The engines of DeepSpeed, if it is installed."""
    return ("deepspeed_zero2", "deepspeed_zero3") if importlib.util.find_spec("deepspeed") else ()


def varied(completion_ids: Sequence[Sequence[int]], **columns: object) -> list[float]:
    """A reward that differs from completion to completion, also for an untrained model."""
    return [sum(ids) % 17 / 7 for ids in completion_ids]


def work(where: Path, todo: Sequence[tuple[str, list[str]]]) -> None:
    """Do the runs one after the other; the error of a run that fails is written to a file."""
    import llmmod
    from llmmod.distributed import rank

    os.environ["LLMMOD_ALLOW"] = "distributed,gradients"  # this file, for its reward, and the callback
    for name, overrides in todo:
        given = [text.replace("<", f"{where}/").replace(" whole>", " whole/train/checkpoint-1") for text in overrides]
        try:
            llmmod.run(llmmod.compose([*given, f"output_dir='{where / name}'"]))
        except Exception as error:  # the next runs may still work
            if rank() == 0:
                (where / f"{name}.error").write_text(str(error) or repr(error))


def started(where: Path, processes: int, todo: Sequence[tuple[str, list[str]]]) -> None:
    """Start processes that do the runs."""
    from llmmod.config.schema.distributed import DistributedConf
    from llmmod.trainers.distributed import run_processes

    (where / "todo.json").write_text(json.dumps(todo))
    ended = run_processes([__file__, str(where)], conf=DistributedConf(name="ddp"), count=processes, directory=str(where / "launcher"))
    if ended.failures:
        print(f"processes failed: {ended.failures}")


def apart(one: Path, two: Path) -> tuple[float | None, float, float]:
    """The differences of the gradients, of the exported weights, and of the metrics; relative for metrics above 1.

    DeepSpeed's and a resumed run's gradients are not compared.
    """
    import torch
    from safetensors.torch import load_file

    files = [run / "train" / "gradients.pt" for run in (one, two)]
    gradients = None
    if all(file.exists() for file in files):
        first, second = (torch.load(file) for file in files)
        changes = torch.cat([(second[name] - first[name]).flatten() for name in first])
        gradients = float(changes.norm() / torch.cat([value.flatten() for value in first.values()]).norm())
    models = [load_file(run / "export" / "model.safetensors") for run in (one, two)]
    weights = max(float((models[0][name].float() - models[1][name].float()).abs().max()) for name in models[0].keys() | models[1].keys())
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    compared = [name for name in metrics[0] if not name.startswith(NOT_COMPARED)]
    return gradients, weights, max(abs(metrics[0][name] - metrics[1][name]) / max(1.0, abs(metrics[0][name])) for name in compared)


def main(wanted: Sequence[str]) -> None:
    """Do the runs whose names have all of these words, and print the table."""
    with tempfile.TemporaryDirectory() as directory:
        where, all_runs = Path(directory), [made for made in runs() if all(word in made[0] for word in wanted)]
        # Resumed runs come last: some resume from a run with another number of processes.
        for last in (False, True):
            for processes in (1, 2):
                todo = [(name, overrides) for name, count, overrides in all_runs if count == processes and name.endswith("resumed") == last]
                if todo:
                    started(where, processes, todo)
        print(f"{'run':40s}  {'compared with':28s}  gradients  weights    metrics")
        names = [name for name, _, _ in all_runs]
        for one, two in zip(names[::2], names[1::2], strict=True):
            try:
                gradients, *others = apart(where / one, where / two)
            except OSError as error:
                said = [path.read_text().splitlines()[0] for name in (one, two) if (path := where / f"{name}.error").exists()]
                print(f"{two:40s}  {one:28s}  {said or error}")
                continue
            shown = ["" if value is None else f"{value:.1e}" for value in (gradients, *others)]
            print(f"{two:40s}  {one:28s}  {'  '.join(f'{text:9s}' for text in shown)}")


if __name__ == "__main__":
    if len(sys.argv) == 2 and Path(sys.argv[1]).is_dir():
        work(Path(sys.argv[1]), json.loads((Path(sys.argv[1]) / "todo.json").read_text()))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="runs whose name has all of these")
        main(parser.parse_args().only)
