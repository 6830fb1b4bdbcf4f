"""What libraries repeat in each short training, done once in tests: some 4 % of the suite's CPU time, and no result depends on it."""

from __future__ import annotations

import functools
import sys


@functools.cache
def done_once():
    """Change the libraries that are imported by now. In a fork of a process that has called this, it does nothing."""
    if imports := sys.modules.get("accelerate.utils.imports"):  # reads a package's metadata at each optimizer step
        imports._is_package_available = functools.cache(imports._is_package_available)
    if jinja := sys.modules.get("jinja2"):  # peft compiles the same template for each adapter's model card
        jinja.Environment.compile = functools.lru_cache(100)(jinja.Environment.compile)
    torch = sys.modules.get("torch")
    for device in (torch.cuda, torch.xpu, torch.mtia) if torch else ():  # keeps each seed, with a formatted stack, for later
        if not device.is_available():
            getattr(device, "random", device)._lazy_call = lambda *_, **__: None
    if overrides := sys.modules.get("llmmod.config.overrides"):  # forgets a composition after 100 others
        overrides._MOST_COMPOSITIONS = 10_000
    if rendezvous := sys.modules.get("torch.distributed.elastic.rendezvous.dynamic_rendezvous"):
        rendezvous.get_method_name = lambda depth=2: ""  # reads the source of each frame, for a log
