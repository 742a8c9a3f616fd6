"""Features to a loss: an objective bundles a model with what it learns, and says `{"loss": …}`."""

from onereel.objectives.base import Objective, clip_generators, layer_of_vit, undecayed_of_vit
from onereel.objectives.classification import ClassificationObjective

__all__ = [
    "ClassificationObjective",
    "Objective",
    "clip_generators",
    "layer_of_vit",
    "undecayed_of_vit",
]
