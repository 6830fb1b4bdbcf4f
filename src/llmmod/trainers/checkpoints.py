"""`ResumableTrainer`, the base of our trainers: a run resumed from a checkpoint gives the same bits as an uninterrupted run.

transformers (5.23) writes a checkpoint directly to its final place, and omits a part of the state: the loss and the metrics since the last
line of the log, the loss and the time before the checkpoint, random states of further devices. Here a checkpoint is written to a temporary
directory and moved into place, and `training_state_<process>.pt` has the missing state. Weights, optimizer, schedule, scaler, log and the
random states of Python, NumPy and torch are in transformers' own files.

The order of examples doesn't need a state: it depends on the seed and the epoch, and transformers skips the batches already used.
`check_processes` refuses a checkpoint of another engine or number of processes with which the training would not go on as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from llmmod.errors import ConfigError, Problem, RunError
from llmmod.files.paths import why_not_written
from llmmod.signals import init_worker, kill_workers_at_exit
from llmmod.trainers.callbacks.resume import ASIDE, checkpoints, checksums_of_share, damage, put_in_place, rotate
from llmmod.upstream import require_upstream

require_upstream(__name__)

# Engines whose checkpoints differ.
_PLAIN, _GATHERED, _DEEPSPEED = "distributed=none", "distributed=fsdp", "distributed=deepspeed_…"
_SHARDED = "distributed=fsdp distributed.fsdp.state_dict_type=SHARDED_STATE_DICT"

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class ResumableTrainer(_Trainer):  # type: ignore[misc]
    """A mixin for trainers that derive from transformers.Trainer. Those with more state add it to `training_state`."""

    _aside: Path | None = None  # the temporary directory of a checkpoint in progress
    _loaded: dict[str, Any] | None = None  # the state of the checkpoint to resume from, until it is restored
    _began, _earlier_s = 0.0, 0.0  # seconds since 1970; seconds of training before the checkpoint
    _resumes = False
    _evaluation_due = _save_due = False
    _devices: Sequence[torch.Tensor] = ()
    _checkpoint = ""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see the class."""
        self.add_callback(_Begin(self))
        try:
            return super().train(*args, **kwargs)
        finally:
            self.remove_callback(_Begin)

    def training_state(self) -> dict[str, Any]:
        """The state of this process after the current step that transformers' files lack: numbers, tensors, lists and dicts."""
        state = {"loss": self._tr_loss.cpu(), "total_loss": self._total_loss_scalar, "logged": self._globalstep_last_logged}
        state |= {"seconds": self._earlier_s + time.time() - self._began, "devices": _device_states(self.args)}
        # Drop the metrics of an evaluation that a signal ended: the resumed run repeats it.
        state |= {"evaluation_due": self.control.should_evaluate, "save_due": self.control.should_evaluate and self.control.should_save}
        if hasattr(self, "_metrics"):  # trl's, since the last line of the log
            state["metrics"] = {name: list(values) for name, values in self._metrics["train"].items()}
            state["tokens"] = getattr(self, "_total_train_tokens", 0)
        return state

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore a state; called after the library has set its counters and before the first step."""
        self._tr_loss += state["loss"].to(self._tr_loss.device)
        self._total_loss_scalar, self._globalstep_last_logged = state["total_loss"], state["logged"]
        self._earlier_s, self._devices = state["seconds"], state["devices"]
        self._evaluation_due, self._save_due = state["evaluation_due"], state["save_due"]
        if "metrics" in state:
            self._metrics["train"].update({name: list(values) for name, values in state["metrics"].items()})
            self._total_train_tokens = state["tokens"]

    def begin(self) -> None:
        """Restore the state of the checkpoint, if the training resumes from one; called before the first step of every training."""
        self._began, self._earlier_s, self._resumes = time.time(), 0.0, self._loaded is not None
        if self._resumes and self.state.best_model_checkpoint is None:
            self.state.best_model_checkpoint = _best_if_moved(Path(self._checkpoint))
        if self._loaded is not None:
            self.load_training_state(self._loaded)
            directory = Path(self.args.output_dir)
            if self.args.should_save and checkpoints(directory)[-1:] == [Path(self._checkpoint)]:
                self._rotate(directory, Path(self._checkpoint))  # the killed process may not have done it
        self._loaded = None

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        loader = super()._get_dataloader(*args, **kwargs)
        own = getattr(loader, "base_dataloader", loader)  # accelerate's are proxies
        if own.num_workers:
            own.worker_init_fn = partial(init_worker, own.worker_init_fn)
            kill_workers_at_exit()
        return loader

    # Writing

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        directory, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        aside, wait = directory / ASIDE, self.accelerator.wait_for_everyone
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        wait()
        self._aside = aside
        try:
            super()._save_checkpoint(model, trial)
            self._aside = None
            best = self.state.best_model_checkpoint
            if best is not None and Path(best).parent == aside:  # the one in progress
                self.state.best_model_checkpoint = best = str(directory / name)
                if self.args.should_save:
                    self.state.save_to_json(str(aside / name / "trainer_state.json"))
            wait()
            checksums = self._checksums(aside / name)
            if self.args.should_save:
                put_in_place(aside / name, directory / name, checksums=checksums)
                self._rotate(directory, directory / name)
            wait()
            # If machines don't share a disk, the processes of the others have written only their random states.
            if self.args.local_process_index == 0 and (aside / name).is_dir():
                put_in_place(aside / name, directory / name)
        except RuntimeError as error:  # torch.save (2.13) doesn't give the reason of a failure
            if (reason := why_not_written(aside)) is not None:
                raise OSError(reason, os.strerror(reason), str(aside / name)) from error
            raise
        finally:
            self._aside = None
            if self.args.local_process_index == 0:
                shutil.rmtree(aside, ignore_errors=True)  # the partial checkpoint may have filled the disk
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(directory / name))

    def _checksums(self, made: Path) -> dict[str, str]:
        """The checksums of a sharded checkpoint, of which each process reads a share; none where a single process reads all files."""
        if self.args.world_size == 1 or not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return {}
        shares: list[Any] = [None] * self.args.world_size
        own = checksums_of_share(made, process=self.args.process_index, processes=self.args.world_size)
        torch.distributed.all_gather_object(shares, own)
        return {name: checksum for share in shares for name, checksum in share.items()}

    def _rotate(self, directory: Path, newest: Path) -> None:
        best = self.state.best_model_checkpoint
        rotate(directory, self.args.save_total_limit, newest=newest, best=None if best is None else Path(best))

    def _get_output_dir(self, trial: Any) -> str:
        return str(super()._get_output_dir(trial) if self._aside is None else self._aside)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._aside is None:  # the upload runs in the background and needs the final path
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save(self.training_state(), self._state_file(output_dir))

    # Going on

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        found = [damage(best, content=True) if self.args.should_save else ""]
        if self.args.world_size > 1:
            broadcast_object_list(found)
        if found[0]:
            kept = [path for path in checkpoints(Path(self.args.output_dir)) if path != best]
            do = f"To go on from {kept[-1]} without it: " if kept else "To train again without it: "
            do += "training.resume_from_checkpoint=true training.load_best_model_at_end=false"
            raise RunError(str(Problem("training.load_best_model_at_end", f"{best} is damaged: {found[0]}", do=do)))
        super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := self._state_file(checkpoint)).is_file():  # plain transformers doesn't write it
            self._loaded = torch.load(file, map_location="cpu", weights_only=True)
            self._checkpoint = checkpoint

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self._devices and len(self._devices) == torch.accelerator.device_count():
            module = _device_module()
            for number, state in enumerate(self._devices):
                module.set_rng_state(state, *([number] if hasattr(module, "get_rng_state_all") else []))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._evaluate_if_due(kwargs["trial"], kwargs["start_time"])
        # transformers 5.23 would do another step after a checkpoint of the last step or of an early stop.
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        self._evaluate_if_due(trial, start_time)
        if self._resumes:  # report loss, time and speed of the whole training
            self._initial_global_step = 0
            start_time -= self._earlier_s
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _evaluate_if_due(self, trial: Any, start_time: float) -> None:
        if self._evaluation_due:
            self._evaluation_due = False
            self._load_rng_state(self._checkpoint)  # the checkpoint may be written once more
            self.control.should_evaluate, self.control.should_save = True, self._save_due
            self._maybe_log_save_evaluate(self._tr_loss, None, self.model, trial, self.state.epoch, None, start_time)

    def _state_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"training_state_{self.args.process_index}.pt"


class _Begin(TrainerCallback):  # type: ignore[misc]
    """Calls `begin` at the moment after the library has set its counters to 0."""

    def __init__(self, trainer: ResumableTrainer | None = None) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer is not None:
            self._trainer.begin()


def _best_if_moved(checkpoint: Path) -> str | None:
    """The best checkpoint that a checkpoint names, if its run's directory has been moved; transformers (5.23) then forgets it."""
    best = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")).get("best_model_checkpoint")
    moved = checkpoint.parent / Path(best or "none").name
    return str(moved) if moved.is_dir() else None


def check_processes(checkpoint: Path | None, args: Any, *, samples: bool) -> None:
    """Refuse to resume a checkpoint of another engine, or of other processes if the training would continue with other examples.

    Args:
        checkpoint: its directory; None: don't check.
        args: the trainer's arguments.
        samples: whether the training samples completions, which a checkpoint stores for each process.

    Raises:
        ConfigError: the engine can't read its files, a step would use other examples, or the completions belong to other processes.
    """
    if checkpoint is None:
        return
    key, written, here = "training.resume_from_checkpoint", _engine_of(checkpoint), _engine(args)
    if written != here:  # transformers (5.23) finds this out when the model is loaded, and names a file or the engine's class
        found = f"{checkpoint} has weights and optimizer as {written} writes them, and this run has {here}"
        raise ConfigError(Problem(key, found, do=f"Set {written}, or train its weights anew"))
    before, now = max(1, len(list(checkpoint.glob("rng_state_*.pth")))), args.world_size
    if before == now:
        return
    found = f"{checkpoint} is of {before} process{'es' * (before > 1)}, and now there {'is 1' if now == 1 else f'are {now}'}"
    if samples:
        raise ConfigError(Problem(key, f"{found}, each with its own completions", do=f"Start {before}, or train its weights anew"))
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    each = state.get("train_batch_size") or args.train_batch_size
    if before * each != now * args.train_batch_size:
        found += f": {before} times {each} examples, and {now} times {args.train_batch_size}"
        do = f"Set training.per_device_train_batch_size={before * each // now}" if before * each % now == 0 else f"Start {before}"
        raise ConfigError(Problem(key, f"{found}, so it would continue with other examples", do=do))


def _engine(args: Any) -> str:
    """The overrides of the engine of a trainer's arguments, as far as they decide what a checkpoint's files are."""
    if args.fsdp:
        return _SHARDED if "SHARDED" in str(args.fsdp_plugin_args["state_dict_type"]) else _GATHERED
    return _DEEPSPEED if args.deepspeed else _PLAIN


def _engine_of(checkpoint: Path) -> str:
    """The overrides of the engine that wrote a checkpoint, told from the names of its files."""
    names = {"pytorch_model_fsdp.bin": _GATHERED, "pytorch_model_fsdp_0": _SHARDED, "latest": _DEEPSPEED}
    return next((engine for name, engine in names.items() if (checkpoint / name).exists()), _PLAIN)


def _device_states(args: Any) -> list[torch.Tensor]:
    """The random state of each device that a single process uses: transformers saves one device's state, and never Apple's."""
    if not torch.accelerator.is_available() or args.world_size > 1:
        return []
    module = _device_module()
    return list(module.get_rng_state_all()) if hasattr(module, "get_rng_state_all") else [module.get_rng_state()]


def _device_module() -> Any:
    return torch.get_device_module(torch.accelerator.current_accelerator())
