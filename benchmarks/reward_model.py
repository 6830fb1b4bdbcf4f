"""Which answers exploit the reward model of `experiment=rlhf`: its rewards for kinds of wrong answers that the pairs do not have.

    llmmod experiment=rlhf output_dir=outputs/mine 'pipeline=[sft,rm]'
    python benchmarks/reward_model.py outputs/mine

The right answers to the held-out questions are compared with wrong ones (`llmmod_pairs_heldout`) and with damaged ones, one kind at a time
(`devtools.damage`). The table in Markdown has how often the right answer gets the higher reward, and the mean of both rewards.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from measure import machine, measure

ROOT = Path(__file__).parent.parent
KINDS = {
    "another topic's right answer": 0,
    "its first half, then half of another": 1,
    "it, then another": 2,
    "each third word replaced": 3,
    "half of another, then its second half": 4,
    "three strange words within it": 5,
}


def compared():
    """Name -> pairs of a right and another answer."""
    sys.path.append(str(ROOT))
    from devtools.damage import another, damaged

    file = ROOT / "data" / "llmmod_pairs_heldout.jsonl"
    pairs = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    answers = [pair["chosen"] for pair in pairs]
    found = {"wrong": pairs}
    for name, kind in KINDS.items():
        found[name] = [pair | {"rejected": damaged(pair["chosen"], another(pair["chosen"], answers, 1 + 2 * kind), kind)} for pair in pairs]
    found["it twice"] = [pair | {"rejected": damaged(pair["chosen"], pair["chosen"], 2)} for pair in pairs]
    return found


def main(run, *overrides) -> None:
    """Score all pairs in one run of the command line, and print the table."""
    print(machine(), "\n\n| compared with the right answer | right preferred, % | right one's reward | other's reward |\n|---|---|---|---|")
    found = compared()
    with tempfile.TemporaryDirectory() as place:
        data = Path(place, "pairs.jsonl")
        data.write_text("".join(json.dumps(pair) + "\n" for pairs in found.values() for pair in pairs), "utf-8")
        command = [sys.executable, "-m", "llmmod", "stage=rm", "pipeline=[predict]", f"finetune.adapters=[{run}/sft,{run}/rm]"]
        done = measure([*command, f"dataset.val_files={data}", f"output_dir={place}/run", *overrides], env={"HF_HUB_OFFLINE": "1"})
        if done.code:
            sys.exit(done.output[-3000:])
        scored = [json.loads(line) for line in Path(place, "run/predict/scores.jsonl").read_text("utf-8").splitlines()]
    assert len(scored) == sum(map(len, found.values())), "a pair was left out"
    rewards = iter([(row["chosen_score"], row["rejected_score"]) for row in scored])
    for name, pairs in found.items():
        both = [next(rewards) for _ in pairs]
        preferred = sum(right > other for right, other in both) / len(both)
        right, other = (statistics.mean(column) for column in zip(*both, strict=True))
        print(f"| {name} | {preferred:.0%} | {right:.2f} | {other:.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
