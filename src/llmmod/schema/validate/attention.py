"""Implementations of attention that aren't installed, or don't take the type of the weights; known before torch is imported."""

from __future__ import annotations

from collections.abc import Iterator

from llmmod.errors import Problem
from llmmod.modules import find_module
from llmmod.schema.validate.context import Context

# Implementation -> the package that brings it. transformers takes either from the hub instead where `kernels` is installed.
_PACKAGES = {"flash_attention_2": ("flash_attn", "flash-attn"), "flash_attention_3": ("flash_attn_interface", "flash-attn-3")}


def check_attention(context: Context) -> Iterator[Problem]:
    """A problem for each `attn_implementation` that can't work here, whatever model it is for."""
    for place in context.places("model"):
        chosen, dtype = context.get(f"{place}.attn_implementation"), context.get(f"{place}.dtype")
        if chosen not in _PACKAGES:
            continue
        module, package = _PACKAGES[chosen]
        if find_module(module) is None and find_module("kernels") is None:
            do = f"Install it: pip install {package} --no-build-isolation, or leave {place}.attn_implementation null"
            yield Problem(f"{place}.attn_implementation", f"{chosen} needs {package}, which isn't installed", do=do)
        elif dtype == "float32":
            found = f"{chosen} with {place}.dtype=float32, and its kernels compute in 16 bits alone"
            yield Problem(f"{place}.attn_implementation", found, do=f"Use {place}.dtype=bfloat16, or sdpa")
