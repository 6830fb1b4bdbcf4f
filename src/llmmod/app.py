"""The command line: compose, validate, run; `-m` starts a sweep, and Hydra's own flags work.

All jobs of a sweep are composed and validated first, without torch, so that all mistakes are reported at once, before downloads and
writes. Then Hydra runs the jobs as usual.
"""

from __future__ import annotations

import gc
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmmod import distributed
from llmmod.errors import EXIT_CONFIG, EXIT_FAILED, ConfigError, Problem
from llmmod.upstream import UpstreamError, report, require_upstream

if TYPE_CHECKING:
    from llmmod.config.compose import Composed
    from llmmod.runs.read import Run


def main() -> None:
    """The entry point of `llmmod`; ends the process with an exit code: 0 done, 1 failed while running, 2 configuration wrong."""
    try:
        code = run_command(sys.argv)
    except UpstreamError as error:
        print(error, file=sys.stderr)
        code = EXIT_FAILED
    sys.exit(code)


def run_command(argv: Sequence[str]) -> int:
    """Run a command line, and return its exit code."""
    if "--version" in argv[1:]:
        print(report())
        return 0
    gc.disable()  # importing and composing create many objects and little garbage; this saves 7 % of the CPU time of a refusal
    try:
        require_upstream(__name__)
        from hydra._internal.utils import get_args_parser

        from llmmod.config.register import register_schemas

        register_schemas()
        allow, arguments = _allowed_modules(argv[1:])
        if allow:
            os.environ["LLMMOD_ALLOW"] = ",".join(filter(None, [os.environ.get("LLMMOD_ALLOW"), *allow]))
        args = get_args_parser().parse_args(arguments)
        sys.argv = [argv[0], *arguments, *_quiet_overrides(args)]
        if _asks_for_text(args):
            return _hydra(lambda config: None, args)
        if args.multirun or any(text.startswith("sweep.resume=") for text in args.overrides):
            return _sweep(args, allow)
        replayed = _replay(args)
        composed = _compose(args, args.overrides)
        if replayed is not None:
            composed = _as_recorded(replayed, composed, args)
    except ConfigError as error:
        return _refused(error)
    finally:
        gc.enable()
    from llmmod.pipeline.jobs import Jobs

    jobs = Jobs(multirun=False, replayed=replayed)
    try:
        with _own_directory(composed, args):
            code = _hydra(jobs.run, args)
    except ConfigError as error:
        return _refused(error)
    return max(code, jobs.finish(), jobs.conclude_replay())


def _replay(args: Namespace) -> Run | None:
    """The run that `replay=…` names, whose overrides replace those of the command line; None without `replay`.

    Raises:
        ConfigError: the run doesn't exist, or the command has other arguments, which would change it.
    """
    if not any(text.startswith("replay=") for text in args.overrides):
        return None
    from llmmod.runs.compare import open_run
    from llmmod.runs.replay import asked_for, replayed_overrides

    run = open_run(asked_for(args.overrides) or "", "replay")
    _replace_overrides(args, replayed_overrides(run, args.overrides))
    return run


def _as_recorded(run: Run, composed: Composed, args: Namespace) -> Composed:
    """The configuration of a repeated run, with its recorded values; prints other differences."""
    from llmmod.runs.replay import changed_since, otherwise_now

    changed = changed_since(run, composed.config)
    if changed:
        print(f"replay: set to the recorded values: {' '.join(changed)}", file=sys.stderr)
        _replace_overrides(args, [*args.overrides, *changed])
        composed = _compose(args, args.overrides)
    for line in otherwise_now(run) if distributed.rank() == 0 else ():
        print(f"replay: differs from the recorded run: {line}", file=sys.stderr)
    return composed


def _replace_overrides(args: Namespace, overrides: list[str]) -> None:
    """Replace the overrides of the command line."""
    rest = [text for text in sys.argv[1:] if text not in args.overrides]
    args.overrides = overrides
    sys.argv = [sys.argv[0], *rest, *overrides]


def _sweep(args: Namespace, allow: list[str]) -> int:
    """Run a sweep: compose and validate every job that is known before, then let Hydra launch them.

    Raises:
        ConfigError: none of the jobs can run.
    """
    if distributed.world_size() > 1:
        raise ConfigError(Problem("-m", "a sweep under torchrun would start every job on every rank", do="Start one torchrun a job"))
    from llmmod.pipeline.jobs import Jobs
    from llmmod.sweep.launch import sweepers
    from llmmod.sweep.plan import plan_sweep, resumed_arguments

    resumed = resumed_arguments(args.overrides)
    if resumed is not None:
        args.overrides = resumed
        args.multirun = True
    flags = _flags(args)
    sys.argv = [sys.argv[0], *flags, "-m", *args.overrides]
    sweep = plan_sweep(args.overrides, partial(_compose, args), resumed=resumed is not None)
    gc.enable()
    jobs = Jobs(multirun=True, sweep=sweep, flags=[*flags, *(f"--allow={module}" for module in allow)])
    with sweepers(sweep):
        try:
            code = _hydra(jobs.run, args)
        except ConfigError as error:
            if sweep.directory is None:
                raise
            print(error, file=sys.stderr)  # from a search that could not continue; the results of its jobs are shown anyway
            code = error.exit_code
    return max(code, jobs.finish())


def _hydra(task: Callable[..., object], args: Namespace) -> int:
    """Run Hydra's part; its errors become exit codes instead of tracebacks."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from llmmod.config.wording import conf_directory

    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, instead of printing a traceback and exiting with 1
    try:
        hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        from llmmod.config.validate import compose_validated

        # Our own composing has better messages, with all mistakes at once; if it finds none, Hydra's message is shown.
        if not args.multirun:
            compose_validated(args.overrides, config_dir=args.config_dir, config_name=args.config_name or "config")
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    except OSError as error:
        # Errors of steps don't come here: this is Hydra, which creates the run's directory and writes the configuration.
        print(Problem("output_dir", f"can't be written: {error.strerror or error}: {error.filename}", do="Choose another"), file=sys.stderr)
        return EXIT_CONFIG
    except KeyboardInterrupt:
        return EXIT_FAILED
    finally:
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR")
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
    return 0


@contextmanager
def _own_directory(composed: Composed, args: Namespace) -> Iterator[None]:
    """A context in which only this process writes to the run's directory; Hydra writes to it before the first step.

    With `auto_resume` it may be an earlier run's directory. If two runs start in the same second, which is the directory's name, one of
    them uses the next second. Of several machines, the first one holds it.

    Raises:
        ConfigError: another process holds the directory, or `auto_resume` finds a run of another configuration.
    """
    from omegaconf import OmegaConf

    from llmmod.files.lock import DirectoryInUseError, holding
    from llmmod.pipeline.record import directory_override, directory_to_go_on_in

    config = composed.config
    by_time = "${started" in str(OmegaConf.to_container(config)["output_dir"])  # type: ignore[call-overload,index]
    if config.auto_resume and (found := directory_to_go_on_in(config, given=not by_time)) is not None and by_time:
        args.overrides.append(directory_override(found))
        sys.argv.append(args.overrides[-1])
        config.output_dir, by_time = str(found), False
    if distributed.rank() != 0 or config.distributed.rank != 0:
        yield
        return
    with ExitStack() as held:
        while True:
            try:
                directory = Path(config.output_dir).expanduser()
                held.enter_context(holding(directory, command=sys.argv, wait=config.auto_resume and not by_time))
                break
            except DirectoryInUseError:
                if not by_time or distributed.world_size() > 1:
                    raise
                distributed.wait_for_next_second()
        yield


def _compose(args: Namespace, overrides: Sequence[str], *, job_num: int | None = None) -> Composed:
    """Compose and check a run's configuration.

    Args:
        args: Hydra's own flags.
        overrides: the run's.
        job_num: its number in a sweep.

    Raises:
        ConfigError: with all problems.
    """
    from llmmod.config.validate import compose_validated

    if args.experimental_rerun:
        do = "Use the run's .hydra/overrides.yaml"
        raise ConfigError(Problem("--experimental-rerun", "runs a pickle, which llmmod doesn't allow", do=do))
    name = args.config_name or "config"
    return compose_validated(overrides, config_dir=args.config_dir, config_name=name, with_hydra=True, job_num=job_num)


def _flags(args: Namespace) -> list[str]:
    """Hydra's own flags about the place of the configuration, as each run's command needs them."""
    given = {"--config-dir": args.config_dir, "--config-name": args.config_name}
    return [f"{flag}={value}" for flag, value in given.items() if value is not None]


def _refused(error: ConfigError) -> int:
    print(error, file=sys.stderr)
    print("Nothing was run. `llmmod --cfg job` shows every key and its value; README.md, 'Configuration', explains them.", file=sys.stderr)
    if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
        raise error
    return error.exit_code


def _asks_for_text(args: Namespace) -> bool:
    """Whether the flags are for one of Hydra's texts instead of a run."""
    return bool(args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)


def _allowed_modules(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Module prefixes of `--allow`, and the other arguments, which are Hydra's."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--allow", action="append", default=[])
    known, rest = parser.parse_known_args(list(arguments))
    return known.allow, rest


def _quiet_overrides(args: Namespace) -> list[str]:
    """Overrides so that only the first process of all machines writes `.hydra/` and a log."""
    node = next((text.partition("=")[2] for text in args.overrides if text.startswith("distributed.rank=")), "0")
    return ["hydra.output_subdir=null", "hydra/job_logging=stdout"] if distributed.rank() or node != "0" else []
