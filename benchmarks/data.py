"""The speed of turning rows into tokens compared with the bare Rust tokenizer, and the memory for many rows compared with few.

    python benchmarks/data.py              20,000 examples for speed; 1,000 and 200,000 rows for memory, a few minutes
    python benchmarks/data.py --million    only memory, a million rows of a few words each, a quarter of an hour

Rows have alpaca's columns (instruction, sometimes an input, an output) and about its lengths; their text comes from the docstrings of
Python's standard library.

Speed is in CPU seconds, in one process with one thread, five times in turn. The bare tokenizer's `encode_batch_fast` gets the rendered text
of the examples; llmmod reads rows, renders, encodes, makes labels and writes Arrow batches. The script measures one row per conversation
with the render chatml, and four rows per conversation with SmolLM2's own chat template (`render=auto`). With two processes it prints the
CPU seconds of all of them together, and of the busiest: on idle cores, the clock time would be close to the latter.

Memory is the peak of a process that loads the data as a run does, with the tokenizer loaded before. A second process finds the examples in
the cache, and a third one streams all of them once. This needs Linux, where a process can reset its peak.
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
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from measure import machine, median

EXAMPLES, TIMES = 20_000, 5
PAIRS = 3  # of a run with one process and a run with two
FEW, MANY, MILLION = 1_000, 200_000, 1_000_000
SHORT = 0.15  # the length of a million rows' texts, as a multiple of alpaca's


def rows(count: int, scale: float = 1.0) -> Iterator[dict[str, str]]:
    """Rows with text from docstrings, the same each time; `scale`: their length, as a multiple of alpaca's."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    trees = [ast.parse(path.read_bytes()) for path in files]
    documented = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    words = [word for node in documented for word in (ast.get_docstring(node) or "").split()]
    draw = random.Random(0)

    def text(middle: float) -> str:
        length = max(3, int(draw.lognormvariate(0, 0.7) * middle * scale))
        start = draw.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    for _ in range(count):
        yield {"instruction": text(12), "input": text(20) if draw.random() < 0.4 else "", "output": text(40)}


def parts(render: str = "chatml") -> tuple[Any, Any]:
    """A render, and SmolLM2's tokenizer."""
    from omegaconf import OmegaConf

    import llmmod
    from llmmod.instantiate import build
    from llmmod.models.loading.build import build_tokenizer

    root = OmegaConf.to_object(llmmod.compose(["model=smollm2", f"render={render}"]))
    tokenizer = build_tokenizer(root.tokenizer, root.model, hub=root.hub, smoke=False)
    return build(root.render, tokenizer=tokenizer), tokenizer


def speed(render: str, rounds: int) -> None:
    """Print the examples per CPU second of the bare tokenizer and of llmmod, and their ratio; `rounds`: rows per conversation."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from llmmod.data.dataset.build import BATCH, build_dataset
    from llmmod.data.examples.tokenize import ExampleTokenizer

    built, tokenizer = parts(render)
    examples = list(rows(EXAMPLES))
    tokenizing = ExampleTokenizer(built, tokenizer, 1024 * rounds)

    def ours() -> int:
        with tempfile.TemporaryDirectory() as directory:
            return build_dataset(conversations(examples, rounds), tokenizing, path=Path(directory) / "x.arrow").counts.tokens

    texts = tokenizer.batch_decode(build_dataset(conversations(examples, rounds), tokenizing).dataset["input_ids"][:])

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
    count = len(texts)
    rates = {name: count / median(taken) for name, taken in seconds.items()}
    print(f"{count:,} examples of {rounds} rows, render={render}")
    print(f"bare tokenizer  {rates['bare']:7.0f} examples a CPU second ({tokens['bare'] / count:.0f} tokens each)")
    print(f"llmmod          {rates['ours']:7.0f} examples a CPU second ({tokens['ours'] / count:.0f} tokens each)")
    print(f"ratio           {rates['ours'] / rates['bare']:7.1%}")


def conversations(examples: Sequence[dict[str, str]], rounds: int) -> Iterator[tuple[Any, Any]]:
    """The conversations that llmmod reads from rows, `rounds` rows each."""
    from llmmod.data.formats import alpaca
    from llmmod.data.rows.records import RowLocation
    from llmmod.render.conversation import Conversation

    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    for number in range(0, len(examples), rounds):
        read = [alpaca.read(row, columns) for row in examples[number : number + rounds]]
        yield RowLocation("x", number), Conversation([message for one in read for message in one.messages])


def processes() -> None:
    """Print the seconds with one process and with two; each run is a process of its own."""
    print(f"{'num_proc':>10}{'clock s':>10}{'CPU s, all':>12}{'busiest':>10}   median of {PAIRS}, {EXAMPLES:,} examples")
    taken: dict[str, list[list[float]]] = {"1": [], "2": []}
    for _ in range(PAIRS):
        for count, found in taken.items():
            output = subprocess.run([sys.executable, __file__, "build", count], capture_output=True, text=True, check=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
    busiest = {}
    for count, found in taken.items():
        clock, everything, busiest[count] = (median(column) for column in zip(*found, strict=True))
        print(f"{count:>10}{clock:10.1f}{everything:12.1f}{busiest[count]:10.1f}")
    print(f"two processes: {busiest['1'] / busiest['2']:.2f} times as fast, where each has a core to itself")


def build(count: int) -> None:
    """Print the seconds that `count` processes take: by the clock, and CPU seconds of all of them and of the busiest."""
    from llmmod.data.dataset import build as made
    from llmmod.data.examples.tokenize import ExampleTokenizer

    examples = list(rows(EXAMPLES))
    tokenizing = ExampleTokenizer(*parts(), 1024)
    made.build_dataset(conversations(examples[:100], 1), tokenizing)
    workers: dict[int, float] = {}
    work = made.to_batch

    def timed(*given: Any) -> Any:
        batch = work(*given)
        seconds = Path(directory) / str(os.getpid())
        seconds.write_text(str(time.process_time()), encoding="ascii")
        return batch

    made.to_batch = timed
    with tempfile.TemporaryDirectory() as directory:
        clock, own = time.perf_counter(), time.process_time()
        made.build_dataset(conversations(examples, 1), tokenizing, num_proc=count)
        clock, own = time.perf_counter() - clock, time.process_time() - own
        workers = {int(path.name): float(path.read_text(encoding="ascii")) for path in Path(directory).iterdir()}
    workers.pop(os.getpid(), None)
    print(json.dumps([clock, own + sum(workers.values()), max([own, *workers.values()])]))


def load(path: str, streamed: int) -> None:
    """Load a file's examples, and print the CPU seconds and the peak memory that it took.

    Args:
        path: the file.
        streamed: how many examples to stream, as a training does; 0: all are made and mapped, and the last is read.
    """
    from llmmod.config.schema.data import DatasetConf
    from llmmod.config.schema.model import HubConf
    from llmmod.data.dataset.load import load_splits

    render, tokenizer = parts()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    start = time.process_time()
    conf = DatasetConf(name="rows", path=path, val_size=100, streaming=streamed > 0)
    splits = load_splits(conf, render=render, tokenizer=tokenizer, seed=0, hub=HubConf())
    for example in islice(splits.train, streamed) if streamed else [splits.train[len(splits.train) - 1]]:
        assert example["labels"]
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps([time.process_time() - start, peak_kib / 1024]))


def memory(counts: Sequence[int], scale: float = 1.0) -> None:
    """Print seconds and peak memory for each number of rows: made, found in the cache, and streamed once."""
    ways = ("made", "found", "streamed")
    print(f"{'rows':>10}" + "".join(f"{f'{way}: CPU s':>18}{'peak MiB':>10}" for way in ways))
    peaks: dict[int, list[float]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "rows.jsonl"
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows(count, scale))
            environment = {**os.environ, "LLMMOD_CACHE": f"{directory}/cache", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            command = [sys.executable, __file__, "load", str(path)]
            arguments = ("0", "0", str(count - 100))
            runs = [subprocess.run([*command, one], env=environment, capture_output=True, text=True, check=True) for one in arguments]
        results = [json.loads(run.stdout.splitlines()[-1]) for run in runs]
        peaks[count] = [peak for _, peak in results]
        print(f"{count:10,}" + "".join(f"{seconds:18.1f}{peak:10.0f}" for seconds, peak in results), flush=True)
    for way, few, many in zip(ways, peaks[counts[0]], peaks[counts[-1]], strict=True):
        print(f"{counts[-1]:,} rows {way} take {many - few:.0f} MiB more than {counts[0]:,}")


def main() -> None:
    """Print all figures, or memory for a million rows."""
    print(machine())
    if "--million" in sys.argv:
        memory([FEW, MILLION], scale=SHORT)
        return
    speed("chatml", 1)
    speed("auto", 4)
    processes()
    memory([FEW, MANY])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["load", path, streamed]:
            load(path, int(streamed))
        case ["build", count]:
            build(int(count))
        case _:
            main()
