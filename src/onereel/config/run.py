"""A whole configuration: every section, and what must fit between them.

A recipe (`onereel.recipes`) is a function that returns a `RunConfig`; the command line overrides any field by its
dotted name (`--optim.lr 3e-4`). What the words mean is in `docs/design.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onereel.config.checks import require
from onereel.config.frozen import check_backbone, check_cache
from onereel.config.inputs import AugmentConfig, DataConfig, TokensConfig
from onereel.config.learning import (
    DistillConfig,
    EvalConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainConfig,
)
from onereel.config.model import ModelConfig, TextConfig
from onereel.errors import ConfigError


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on."""

    recipe: str = ""
    """The recipe this configuration came from."""
    after: str = ""
    """A recipe that is trained first, into RUN/first, on the same clips, in batches of the same size; this run starts
    from its weights. Frames, tokens, rates and epochs are its own. With model.pretrained that one starts from these."""
    seed: int = 0
    """What all randomness of the run derives from."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 or more, below 2 ** 63")
        require(
            not self.data.hold_out_ratio or self.objective.kind == "classification",
            "data.hold_out_ratio",
            self.data.hold_out_ratio,
            f"0 where objective.kind is {self.objective.kind}: budgets are chosen for classifiers",
        )
        tokens = self.tokens
        self._check_factorised()
        self._check_start()
        self._check_budgets()
        self._check_flexible()
        if self.data.scaling == "device" and tokens.where == "loader":
            raise ConfigError(
                "tokens.where is 'loader', which selects tokens of finished clips, but data.scaling is 'device', which "
                "finishes them there; set one of the two to the other's place"
            )
        check_backbone(self)
        check_cache(self)
        self._check_distillation()
        masked_tubes = self.objective.kind == "masked" and self.objective.mask == "tube"
        keeps_a_picture = tokens.kind == "run-length" and tokens.budget in ("auto", "threshold")
        if masked_tubes and tokens.kind != "all" and not keeps_a_picture:
            raise ConfigError(
                f"objective.mask is 'tube', but {tokens.kind} tokens need not be left at the places that a tube shows; "
                "use objective.mask random, or tokens.kind all, or run-length by its threshold"
            )

    def _check_start(self) -> None:
        model = self.model
        if self.after and self.objective.kind != "classification":
            raise ConfigError(
                f"after is for classification, and objective.kind is {self.objective.kind!r}: train {self.after} on "
                "its own, and give --model.pretrained RUN"
            )
        for name in ("temporal_init", "keep_head"):
            if getattr(model, name) and not (self.after or model.pretrained):
                raise ConfigError(
                    f"model.{name} is set, but there are no weights: give --model.pretrained"
                )
        if model.temporal_blocks != "even" and model.temporal_init in ("", "random"):
            raise ConfigError(
                f"model.temporal_blocks is {model.temporal_blocks!r}, but no blocks are taken: give "
                "--model.temporal-init WEIGHTS, or leave it at 'even'"
            )
        if model.temporal_init and self.objective.kind != "classification":
            raise ConfigError(
                f"model.temporal_init is for classification, and objective.kind is {self.objective.kind!r}: "
                'set it to "" and start from a factorised run'
            )

    def _check_factorised(self) -> None:
        if not self.model.temporal_depth:
            return
        if self.objective.kind in ("masked", "distillation"):
            raise ConfigError(
                f"objective.kind is {self.objective.kind!r}, but a factorised encoder has no feature for each token; "
                "set model.temporal_depth to 0. A factorised run can start from such a one: --model.pretrained RUN"
            )
        if self.tokens.length_embedding:
            raise ConfigError(
                "tokens.length_embedding counts tubelets in time, and the spatial half of a factorised encoder sees "
                "one at a time; set it to False, or model.temporal_depth to 0"
            )

    def _check_budgets(self) -> None:
        if not self.objective.budgets:
            return
        for name, off in (("where", "device"), ("frame_selection", 0.0)):
            given = getattr(self.tokens, name)
            if given != off:
                raise ConfigError(
                    f"tokens.{name} is {given}, but objective.budgets takes several choices of one whole clip; "
                    f"set tokens.{name} to {off}, or objective.budgets to none"
                )

    def _check_flexible(self) -> None:
        data, tokens = self.data, self.tokens
        if data.is_flexible and tokens.frame_selection > 1:
            raise ConfigError(
                f"tokens.frame_selection is {tokens.frame_selection}, which chooses data.num_frames of a clip's "
                "frames, but data.num_frames_choices or size_choices draw its shape; use one of the two"
            )
        longest = max(data.num_frames_choices, default=0)
        if tokens.length_embedding and longest > data.num_frames:
            raise ConfigError(
                f"tokens.length_embedding has a row for each tubelet of data.num_frames = {data.num_frames} frames, "
                f"and data.num_frames_choices go up to {longest}; raise data.num_frames to that"
            )

    def _check_distillation(self) -> None:
        tokens, distill, budgets = self.tokens, self.distill, self.objective.budgets
        if self.objective.kind != "distillation":
            return
        if tokens.where == "loader":
            raise ConfigError(
                "tokens.where is 'loader', which sends kept patches alone to the device, and a teacher sees whole "
                "clips; set tokens.where to 'device'"
            )
        for name, off in (("pool_budget", 0), ("choose", "ranking")):
            if getattr(distill, name) != off and not budgets:
                raise ConfigError(
                    f"distill.{name} is {getattr(distill, name)}, which says where the student's tokens lie, but not "
                    f"how many they are: give objective.budgets, or set distill.{name} to {off}"
                )
        if distill.pool_budget and budgets[0] > distill.pool_budget:
            raise ConfigError(
                f"objective.budgets begin with {budgets[0]} tokens, and distill.pool_budget keeps "
                f"{distill.pool_budget}; lower the one or raise the other"
            )
        if distill.choose == "attention" and not distill.pool_budget and tokens.kind != "all":
            raise ConfigError(
                f"tokens.kind is {tokens.kind}, but the student's tokens are drawn by the teacher's attention among "
                "all; set tokens.kind to all, or distill.pool_budget to what the selector keeps first"
            )
