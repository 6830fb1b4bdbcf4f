"""llmmod.trainers.means by hand."""

from __future__ import annotations

from llmmod.trainers.means import Means


def test_each_part_counts_by_its_weight():
    means = Means()
    means.add({"loss": 1.0, "entropy": 2.0, "none": 5.0}, 3.0, weights={"entropy": 10.0, "none": 0.0})
    means.add({"loss": 5.0, "entropy": 4.0}, weights={"entropy": 30.0})
    assert means.take() == {"loss": 2.0, "entropy": 3.5}
    assert means.take() == {}


def test_a_loaded_state_continues():
    first, resumed = Means(), Means()
    first.add({"loss": 1.0}, 3.0)
    resumed.load(first.state())
    first.add({"loss": 2.0})
    resumed.add({"loss": 5.0})
    assert (first.take(), resumed.take()) == ({"loss": 1.25}, {"loss": 2.0})


def test_states_of_several_processes_are_merged():
    one, other, both = Means(), Means(), Means()
    one.add({"loss": 1.0, "kl": 3.0}, 3.0)
    other.add({"loss": 2.0})
    both.load(one.state(), other.state())
    assert both.take() == {"loss": 1.25, "kl": 3.0}
