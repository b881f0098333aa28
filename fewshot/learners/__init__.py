"""What a backbone learns from, by name."""

from harness.learner import BuildLearner, Classifier

LEARNERS: dict[str, BuildLearner] = {"classifier": Classifier}
"""The learners."""
