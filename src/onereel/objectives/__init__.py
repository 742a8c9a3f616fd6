"""Features to a loss: an objective bundles a model with what it learns, and says `{"loss": …}`."""

from onereel.objectives.base import Objective, layer_of_vit, undecayed_of_vit
from onereel.objectives.classification import ClassificationObjective
from onereel.objectives.contrastive import InfoNce, SigmoidLoss
from onereel.objectives.distillation import DistillationObjective
from onereel.objectives.masked import MaskedObjective
from onereel.objectives.max_margin import MaxMargin
from onereel.objectives.multi_budget import MultiBudgetObjective
from onereel.objectives.pairs import PairObjective

AnyObjective = (
    ClassificationObjective
    | MultiBudgetObjective
    | MaskedObjective
    | DistillationObjective
    | PairObjective
)
"""What a run may learn, around its model."""

__all__ = [
    "AnyObjective",
    "ClassificationObjective",
    "DistillationObjective",
    "InfoNce",
    "MaskedObjective",
    "MaxMargin",
    "MultiBudgetObjective",
    "Objective",
    "PairObjective",
    "SigmoidLoss",
    "layer_of_vit",
    "undecayed_of_vit",
]
