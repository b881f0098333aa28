"""What a backbone learns from, by name."""

from fewshot.learners.adaptation import AdaptationLearner
from fewshot.learners.protonet import ProtoNet
from harness.learner import BuildLearner, Classifier

LEARNERS: dict[str, BuildLearner] = {
    "classifier": Classifier,
    "protonet": ProtoNet,
    "maml": AdaptationLearner,
    "anil": AdaptationLearner,
}
"""The learners."""
