"""Common parts of the tests of learning: seeds, a training, its measured value, and the distance from the rule.

A rule such as "at least half is right" must hold on any machine: other processors round differently, and a training that samples then
takes another course, as with another seed. So chance rarely reaches a rule, and tasks and settings were chosen so that of twelve or
more fresh seeds none is below the rule, and their mean is at least 3.8 standard deviations above it (mostly 5 to 30):

    pytest tests/trainers -k learns --learning-seeds 16

trains with that many fresh seeds and prints, by test, how many standard deviations lie between the mean and the rule.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict

# Fresh seeds start here, so that they differ from the tests' seeds.
FRESH = 1000


def pytest_addoption(parser):
    text = "train with so many fresh seeds in each test of learning, and show how far the rule is"
    parser.addoption("--learning-seeds", type=int, help=text)


def pytest_generate_tests(metafunc):
    """A test with a `learning_seed` runs with its module's SEEDS, or with the number of fresh seeds from the command line."""
    if "learning_seed" in metafunc.fixturenames:
        fresh = metafunc.config.getoption("--learning-seeds")
        metafunc.parametrize("learning_seed", range(FRESH, FRESH + fresh) if fresh else metafunc.module.SEEDS)


def pytest_terminal_summary(terminalreporter, config):
    """Test without its seed -> the measured values, and the distances from the rule in standard deviations."""
    if not config.getoption("--learning-seeds"):
        return
    found, rules = defaultdict(list), {}
    for report in [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]:
        for name, (value, rule) in report.user_properties:
            if name == "learnt":
                test = re.sub(rf"{FRESH // 100}\d\d-?", "", report.nodeid)
                found[test].append(value)
                rules[test] = rule
    for test, values in sorted(found.items()):
        mean, spread = statistics.mean(values), statistics.pstdev(values)
        apart = f"{(mean - rules[test]) / spread:.1f} standard deviations" if spread else "any number of standard deviations"
        line = f"{test}: {len(values)} seeds, mean {mean:.3f}, least {min(values):.3f}; the rule {rules[test]} is {apart} below the mean"
        terminalreporter.write_line(line)


def assert_learns(trainer, record, *, rule, measure):
    """Train, and compare the measured value afterwards with the rule.

    Args:
        trainer: the trainer, not started.
        record: pytest's `record_property`.
        rule: the smallest allowed value.
        measure: a function: trainer -> the measured value.

    Returns:
        The measured values before and after the training.
    """
    before = measure(trainer)
    trainer.train()
    after = measure(trainer)
    record("learnt", (after, rule))
    assert after >= rule
    return before, after
