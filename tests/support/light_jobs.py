"""Sweeps with fast jobs: the whole of Hydra, with a sweeper and a launcher, but jobs that don't train."""

from __future__ import annotations

import sys
from functools import partial

from hydra._internal.utils import get_args_parser

from llmmod.app import _compose, _hydra
from llmmod.config.register import register_schemas
from llmmod.sweep.launch import sweepers
from llmmod.sweep.plan import plan_sweep, resumed_arguments


def sweep_of(job, *overrides, monkeypatch):
    """Run a sweep of `job`, a function of the configuration; returns the sweep and Hydra's exit code."""
    register_schemas()
    given = resumed_arguments(overrides) or list(overrides)
    monkeypatch.setattr(sys, "argv", ["llmmod", "-m", *given])
    args = get_args_parser().parse_args(["-m", *given])
    sweep = plan_sweep(given, partial(_compose, args), resumed=given != list(overrides))
    with sweepers(sweep):
        code = _hydra(job, args)
    return sweep, code


def left(metrics, status="completed", **more):
    """Write a run's files to the job's directory."""
    import json
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    place = Path(HydraConfig.get().runtime.output_dir)
    (place / "metrics.json").write_text(json.dumps(metrics))
    (place / "run.json").write_text(json.dumps({"status": status, "error": None, **more}))
    return place
