"""Runs of llmmod, each in a fork of a process with everything imported, and their results."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import importlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from forks import import_everything, without_times
from of_effects.trials import STAGES, Trial, baseline_of, usual, values_of

LIMIT_S = 300
# Times in printed lines, which are left out; and the entries of trainer_state.json that are compared.
_TIMES = re.compile(r"[\d,.]+ tokens/s|\d+:\d\d(:\d\d)? left|\d+(\.\d+)? ?(ms|s|it/s|s/it)\b|0x[0-9a-f]+")
_OF_STATE = ("log_history", "global_step", "epoch", "best_metric", "best_global_step", "best_model_checkpoint", "num_input_tokens_seen")
UNSTEADY = "differs between two runs of the same"


@dataclass
class Seen:
    """How a run ended: refused, failed, or its results by part."""

    refused: list[list[str]] = field(default_factory=list)  # key, what was found, what is allowed
    failed: str = ""
    parts: dict[str, str] = field(default_factory=dict)


class Runs:
    """Runs a configuration in a fork of this process, always in the same directory; each baseline once.

    Args:
        directory: for the checkpoint, the cache and the runs.
    """

    def __init__(self, directory: Path) -> None:
        self._run, self._model, self._kept = directory / "run", directory / "model", directory / "kept"
        self._baselines: dict[tuple[str, tuple[str, ...]], Seen] = {}
        os.environ["LLMMOD_CACHE"] = str(directory / "cache")
        write_checkpoint(self._model)
        _import_all()

    def baseline(self, trial: Trial) -> Seen:
        """The results of the run that a trial is compared with; parts that differ between two such runs are marked.

        Raises:
            RuntimeError: the run fails.
        """
        key = (trial.stage, trial.given, trial.without)
        if key not in self._baselines:
            first, second = (self.run(trial.stage, baseline_of(trial)) for _ in range(2))
            if first.refused or first.failed:
                raise RuntimeError(f"{' '.join(trial.given)}: {first.refused or first.failed}")
            for name in differences(first, second):
                first.parts[name] = UNSTEADY
            self._baselines[key] = first
        return self._baselines[key]

    def run(self, stage: str, overrides: Sequence[str]) -> Seen:
        """How a run of a stage ended; `{checkpoint}` in its overrides stands for the stage's checkpoint after its first step."""
        if any("{checkpoint}" in override for override in overrides):
            overrides = [override.replace("{checkpoint}", str(self._checkpoint(stage))) for override in overrides]
        shutil.rmtree(self._run, ignore_errors=True)
        model = [f"model.pretrained_model_name_or_path={self._model}", f"output_dir={self._run}"]
        with tempfile.TemporaryDirectory() as place:
            child = os.fork()
            if child == 0:
                _in_child([*overrides, *model], self._run, Path(place))
            return _awaited(child, Path(place))

    def _checkpoint(self, stage: str) -> Path:
        kept = self._kept / stage
        if not kept.exists():
            saving = ["training.save_strategy=steps", "training.save_steps=1", "training.save_total_limit=null"]
            self.run(stage, [*usual(stage), *saving])
            shutil.copytree(self._run / "train", kept)
        return kept / "checkpoint-1"


def _awaited(child: int, place: Path) -> Seen:
    until = time.monotonic() + LIMIT_S
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Seen(failed=f"it took more than {LIMIT_S} s")
        time.sleep(0.005)
    try:
        return Seen(**json.loads((place / "seen.json").read_text(encoding="utf-8")))
    except OSError:
        return Seen(failed=f"it ended by itself: {(place / 'printed').read_text(errors='replace')[-400:]}")


def _in_child(overrides: Sequence[str], run: Path, place: Path) -> None:
    """Run, write how it ended to a file, and end the process."""
    os.setpgid(0, 0)
    printed = os.open(place / "printed", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(printed, stream)
    seen = Seen()
    try:
        seen = _run(overrides, run, place / "printed")
    except BaseException as error:
        seen.failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        traceback.print_exc()
    (place / "seen.json").write_text(json.dumps(dataclasses.asdict(seen)), encoding="utf-8")
    os._exit(0)


def _run(overrides: Sequence[str], run: Path, printed: Path) -> Seen:
    import llmmod
    from llmmod.errors import ConfigError
    from llmmod.trainers.callbacks import progress as curve

    curve._draw = lambda state, path, draw: None  # curves show the log again, and take half of a run's time
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        config = llmmod.compose(overrides)
        with _counted() as calls:
            metrics = llmmod.run(config)
    except ConfigError as error:
        return Seen(refused=[[p.key, p.found, p.allowed] for p in error.problems])
    sys.stdout.flush()
    sys.stderr.flush()
    parts = {str(path.relative_to(run)): _of_file(path) for path in sorted(run.rglob("*")) if path.is_file() and _tells(path)}
    parts["metrics"] = json.dumps(without_times(metrics))
    parts["printed"] = _TIMES.sub("", printed.read_text(encoding="utf-8", errors="replace"))
    parts["computation"] = json.dumps(dict(sorted(calls.items())))
    return Seen(parts=parts)


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """A context that counts the calls of modules by class and shapes, the calls of torch.compile, and the processes started."""
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    calls: Counter[str] = Counter()
    compiled = torch.compile

    def compiling(model: Any = None, **how: Any) -> Any:
        calls.update([f"torch.compile {how}"])
        return compiled(model, **how)

    os.register_at_fork(before=lambda: calls.update(["process"]))
    handle = register_module_forward_pre_hook(lambda module, inputs: calls.update([_call(module, inputs)]))
    try:
        with mock.patch.object(torch, "compile", compiling):
            yield calls
    finally:
        handle.remove()


def _call(module: Any, inputs: tuple[Any, ...]) -> str:
    return f"{type(module).__name__} {[list(part.shape) for part in inputs if hasattr(part, 'shape')]}"


def _tells(path: Path) -> bool:
    """Whether a file is compared: not if it has only times or the configuration again. The metrics are compared separately."""
    return ".hydra" not in path.parts and path.name not in ("run.json", "metrics.json", "training_args.bin")


def _of_file(path: Path) -> str:
    if path.name == "trainer_state.json":
        state = json.loads(path.read_text(encoding="utf-8"))
        return json.dumps(without_times({name: state[name] for name in _OF_STATE if name in state}))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(one: Seen, other: Seen) -> list[str]:
    """The parts in which two runs differ, except those that differ between equal runs."""
    names = {name for name in {*one.parts, *other.parts} if one.parts.get(name) != other.parts.get(name)}
    return sorted(name for name in names if UNSTEADY not in (one.parts.get(name), other.parts.get(name)))


def write_checkpoint(directory: Path) -> None:
    """A Llama of two layers and random weights, with the tokenizer of rehearsals."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmmod.models.loading.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer([])
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, max_position_embeddings=256, **sizes, **special)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _import_all() -> None:
    """Import everything that a run imports, with the stages' own classes, and compose once, so that forks don't do it again."""
    import llmmod

    import_everything()
    for stage in STAGES:
        for target in (values_of(stage)["_target_"], values_of(stage)["trainer"]["_target_"]):
            importlib.import_module(target.rpartition(".")[0])
    llmmod.compose([])
    gc.collect()
    gc.freeze()
