"""How fast rows become tokens beside the bare Rust tokenizer, and how much memory many rows take beside few.

    python benchmarks/data.py              20,000 examples for speed; 1,000 and 200,000 rows for memory, a few minutes
    python benchmarks/data.py --million    a million rows

The rows are alpaca's in shape (instruction, at times an input, an output) and about in length; their text is that of the docstrings of
Python's standard library. Speed is in CPU seconds, in one process with one thread, five times in turn: the bare tokenizer's
`encode_batch_fast` gets the finished text of the examples, llmmod reads rows, renders, encodes, makes labels and writes Arrow batches.
Memory is the peak of a process that does what a run does from the loaded tokenizer to the loaded data; a second one finds the examples in
the cache. Linux alone can forget an earlier peak.
"""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measure import machine, median

EXAMPLES, TIMES = 20_000, 5
FEW, MANY, MILLION = 1_000, 200_000, 1_000_000


def rows(count: int) -> Iterator[dict[str, str]]:
    """Rows of docstrings' words, the same each time."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    trees = [ast.parse(path.read_bytes()) for path in files]
    documented = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    words = [word for node in documented for word in (ast.get_docstring(node) or "").split()]
    draw = random.Random(0)

    def text(middle: float) -> str:
        length = max(3, int(draw.lognormvariate(0, 0.7) * middle))
        start = draw.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    for _ in range(count):
        yield {"instruction": text(12), "input": text(20) if draw.random() < 0.4 else "", "output": text(40)}


def parts() -> tuple[object, object]:
    """SmolLM2's tokenizer and render."""
    from omegaconf import OmegaConf

    import llmmod
    from llmmod.instantiate import build
    from llmmod.models.build import tokenizer_from

    root = OmegaConf.to_object(llmmod.compose(["model=smollm2"]))
    tokenizer = tokenizer_from(root.tokenizer, root.model, hub=root.hub, smoke=False)
    return build(root.render, tokenizer=tokenizer), tokenizer


def speed() -> None:
    """Print examples a CPU second of both, and their ratio."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from llmmod.data.build import BATCH, build_dataset
    from llmmod.data.formats import alpaca
    from llmmod.data.row import Place
    from llmmod.data.tokenize import Tokenizing

    render, tokenizer = parts()
    examples = list(rows(EXAMPLES))
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    tokenizing = Tokenizing(render, tokenizer, 1024)

    def ours() -> list[int]:
        placed = ((Place("x", number), alpaca.read(row, columns)) for number, row in enumerate(examples))
        with tempfile.TemporaryDirectory() as directory:
            return build_dataset(placed, tokenizing, path=Path(directory) / "x.arrow").counts.tokens

    ids = build_dataset([(Place("x", n), alpaca.read(row, columns)) for n, row in enumerate(examples)], tokenizing).dataset["input_ids"]
    texts = tokenizer.batch_decode(ids[:])

    def bare() -> int:
        batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        encode = tokenizer.backend_tokenizer.encode_batch_fast
        return sum(len(made.ids) for batch in batches for made in encode(batch, add_special_tokens=False))

    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    tokens = {}
    for _ in range(TIMES):
        for name, work in (("bare", bare), ("ours", ours)):
            start = time.process_time()
            tokens[name] = work()
            seconds[name].append(time.process_time() - start)
    rates = {name: EXAMPLES / median(taken) for name, taken in seconds.items()}
    print(f"bare tokenizer  {rates['bare']:7.0f} examples a CPU second ({tokens['bare'] / EXAMPLES:.0f} tokens each)")
    print(f"llmmod          {rates['ours']:7.0f} examples a CPU second ({tokens['ours'] / EXAMPLES:.0f} tokens each)")
    print(f"ratio           {rates['ours'] / rates['bare']:7.1%}")


def load(path: str) -> None:
    """Load a file's examples, and print the seconds and the peak memory that it took."""
    from llmmod.data.load import load_splits
    from llmmod.schema.data import DatasetConf
    from llmmod.schema.model import HubConf

    render, tokenizer = parts()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    start = time.process_time()
    splits = load_splits(DatasetConf(name="rows", path=path, val_size=100), render=render, tokenizer=tokenizer, seed=0, hub=HubConf())
    assert splits.train[len(splits.train) - 1]["labels"]
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps([time.process_time() - start, peak_kib / 1024]))


def memory(counts: list[int]) -> None:
    """Print seconds and peak memory of some numbers of rows, made and then found."""
    print(f"{'rows':>10}{'made: CPU s':>14}{'peak MiB':>10}{'found: CPU s':>14}{'peak MiB':>10}")
    peaks = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "rows.jsonl"
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows(count))
            environment = {**os.environ, "LLMMOD_CACHE": f"{directory}/cache", "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, __file__, "load", str(path)]
            outputs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout for _ in range(2)]
        (made, peak), (found, peak_found) = (json.loads(output.splitlines()[-1]) for output in outputs)
        peaks[count] = peak
        print(f"{count:10,}{made:14.1f}{peak:10.0f}{found:14.1f}{peak_found:10.0f}")
    print(f"{counts[-1]:,} rows take {peaks[counts[-1]] - peaks[counts[0]]:.0f} MiB more than {counts[0]:,}")


def main() -> None:
    """Print both."""
    print(machine())
    speed()
    memory([FEW, MILLION if "--million" in sys.argv else MANY])


if __name__ == "__main__":
    load(sys.argv[2]) if sys.argv[1:2] == ["load"] else main()
