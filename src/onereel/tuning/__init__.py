"""The budget at deployment: measured on a held-out list, and chosen from the table that this gives."""

from onereel.tuning.choice import Choice, choose, with_budget
from onereel.tuning.search import tune_budget

__all__ = ["Choice", "choose", "tune_budget", "with_budget"]
