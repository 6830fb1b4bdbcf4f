"""A directory with harmful code, and a watch over executed code and written files."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

MODULE = "hostile_code"
_AUTO = (
    "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering", "AutoModelForSeq2SeqLM", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor",
    "AutoVideoProcessor",
)  # fmt: skip


class _Harm:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return exec, (f"open({self.marker!r}, 'a').write('pickle\\n')",)


def hostile_directory(directory: Path, marker: Path) -> Path:
    """A directory that looks like a checkpoint, an adapter, a dataset and a package; its code writes to `marker` if it runs."""
    directory.mkdir(parents=True)
    code = f"open({str(marker)!r}, 'a').write(__name__ + '\\n')\nclass Evil:\n    pass\ndef generate(*a, **k): pass\n"
    for name in (f"{MODULE}.py", "__init__.py", "setup.py", "generate.py", f"{directory.name}.py", "custom_generate/generate.py"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(code)
    auto_map = dict.fromkeys(_AUTO, f"{MODULE}.Evil") | {"AutoTokenizer": [f"{MODULE}.Evil", f"{MODULE}.Evil"]}
    config = {"model_type": "hostile", "architectures": ["Evil"], "auto_map": auto_map, "attn_implementation": f"{directory}/kernel"}
    files = {
        "config.json": config,
        "tokenizer_config.json": {"tokenizer_class": "EvilTokenizer", "auto_map": auto_map},
        "preprocessor_config.json": {"processor_class": "Evil", "auto_map": auto_map},
        "processor_config.json": {"processor_class": "Evil", "auto_map": auto_map},
        "video_preprocessor_config.json": {"auto_map": auto_map},
        "generation_config.json": {"custom_generate": str(directory)},
        "adapter_config.json": {
            "peft_type": "LORA", "task_type": None, "base_model_name_or_path": str(directory),
            "auto_mapping": {"base_model_class": "Evil", "parent_library": MODULE}, "megatron_core": MODULE, "megatron_config": {},
            "target_modules": ["q_proj"],
        },
        "state.json": {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "x", "_format_type": None, "_split": "train"},
        "dataset_info.json": {}, "data.json": {"a": 1}, "reference.json": {"version": 1, "templates": {"u": template(marker)}, "refs": {}},
    }  # fmt: skip
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    harm = _Harm(marker)
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "data.pkl", "tokenizer.pkl"):
        (directory / name).write_bytes(pickle.dumps(harm))
    torch.save({"a": harm}, directory / "state.pt")
    save_file({"a": torch.ones(2)}, directory / "other.safetensors")
    (directory / "chat_template.jinja").write_text(template(marker))
    (directory / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data.pkl\n---\n")
    with tarfile.open(directory / "shard.tar", "w") as shard:
        shard.add(directory / "data.pkl", "0.pyd")
    return directory


def template(marker: Path) -> str:
    """A Jinja template that writes to `marker` unless a sandbox prevents it."""
    return "{{ cycler.__init__.__globals__.os.system('echo jinja >> " + str(marker) + "') }}"


class Watch:
    """The events that a watch recorded.

    Args:
        hostile: the directory whose code must not run.
        allowed: directories in which files may be written.
    """

    def __init__(self, hostile: Path, allowed: list[Path]) -> None:
        self.hostile, self.allowed = str(hostile), tuple(map(str, allowed))
        self.seen: list[str] = []

    def event(self, name: str, args: tuple) -> None:
        """Record forbidden events; programs and connections are prevented."""
        if name == "open" and isinstance(args[0], str | os.PathLike | bytes):
            by_mode = isinstance(args[1], str) and set(args[1]) & set("wax+")
            if by_mode or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._written(args[0])
        elif name in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.truncate", "shutil.move", "shutil.copyfile", "shutil.rmtree"):
            for path in args[:2]:
                if isinstance(path, str | os.PathLike):
                    self._written(path, name)
        elif name in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn"):
            self.seen.append(f"{name} {args[:1]}")
            raise PermissionError(f"the watch: {name}")
        elif name in ("socket.connect", "socket.getaddrinfo"):
            raise ConnectionError("the watch: no network")
        elif name == "pickle.find_class" and args[0] in ("builtins", "os", "posix", "subprocess"):
            self.seen.append(f"unpickles {args}")
        elif name == "compile" and isinstance(args[1], str) and args[1].startswith(self.hostile):
            self.seen.append(f"compiles {args[1]}")
        elif name == "import" and args[0] in (MODULE, "hostile"):
            self.seen.append(f"imports {args[0]}")
        elif name == "ctypes.dlopen" and str(args[0]).startswith(self.hostile):
            self.seen.append(f"loads {args[0]}")

    def _written(self, path: str | bytes | os.PathLike, how: str = "writes") -> None:
        place = os.path.abspath(os.fsdecode(path))
        if not place.startswith(self.allowed) and not place.startswith(("/dev/", "/proc/")) and "__pycache__" not in place:
            self.seen.append(f"{how} {place}")


_now: list[Watch] = []


def _hook(name: str, args: tuple) -> None:
    if _now:
        _now[-1].event(name, args)


@contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    """A context in which `watch` records Python's audit events (PEP 578); questions on the terminal are recorded and not answered."""
    if not getattr(sys, "_llmmod_watch", False):
        sys.addaudithook(_hook)  # it can't be removed; outside of a context it doesn't do anything
        sys._llmmod_watch = True  # type: ignore[attr-defined]
    own = builtins.input

    def asked(prompt: str = "") -> str:
        watch.seen.append(f"asks {prompt[:60]!r}")
        return "yes"

    builtins.input = asked
    _now.append(watch)
    try:
        yield watch
    finally:
        _now.pop()
        builtins.input = own
