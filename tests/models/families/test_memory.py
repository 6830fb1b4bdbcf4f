"""A checkpoint is in memory once while it is loaded: at the peak within 1.2 times its size, its file's own pages counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

CHECKPOINTS = Path(__file__).parents[1] / "legacy_checkpoints"
HIDDEN, INNER, VOCABULARY, LAYERS = 512, 1376, 4000, 24  # 150 MB in float16, head and embeddings as large a share as in a 7B

# The first load is of a tiny checkpoint, so that what is imported on the way isn't counted; every page is read, since files are mapped.
MEASURE = """
import sys
from llmmod.models.load import load_model

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

load_model(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
model = load_model(sys.argv[2])
for parameter in model.parameters():
    parameter.detach().view(-1)[::512].sum()
size = sum(p.numel() * p.element_size() for p in model.parameters())
print((kilobytes("VmHWM") - before) * 1024 / size, size)
"""


def grown(name, directory, *, suffix):
    """The checkpoint `name`, larger and deeper, its weights random in float16."""
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("name", "suffix"), [("chatglm2", "safetensors"), ("chatglm2", "bin"), ("baichuan2_7b", "safetensors")])
def test_the_peak_of_loading(tmp_path, name, suffix):
    grown(name, tmp_path / "grown", suffix=suffix)
    command = [sys.executable, "-c", MEASURE, str(CHECKPOINTS / name), str(tmp_path / "grown")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    peak, size = done.stdout.split()
    assert int(size) > 100e6
    assert 0.9 < float(peak) < 1.2, f"{float(peak):.2f} times its size"
