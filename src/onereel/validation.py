"""A run's tests of itself, on `data.val`: what the loop calls between steps and at the end."""

from __future__ import annotations

import logging
from pathlib import Path

from onereel import build
from onereel.config import RunConfig, to_dict
from onereel.errors import DataError, OnereelError
from onereel.evaluation.classification import ClassificationResult, evaluate_classification
from onereel.evaluation.loss import evaluate_loss
from onereel.evaluation.pairs import PairResult, evaluate_pairs
from onereel.evaluation.text_tasks import task_texts
from onereel.models.dual_encoder import DualEncoder
from onereel.models.video_model import VideoModel
from onereel.objectives import AnyObjective, DistillationObjective, MaskedObjective
from onereel.progress import Told
from onereel.training import World, run_on_main

logger = logging.getLogger(__name__)

RESULT = "val"
"""Name of the evaluation that a run makes of itself."""


class Validation:
    """`validation(objective)` gives numbers; a classification also writes RUN/eval/val.json.

    The list is read and checked when this is made, before anything is trained or overwritten.

    Args:
        class_names: empty where no label is learned.

    Raises:
        DataError: videos or labels of the list are missing or unknown.
    """

    def __init__(
        self, config: RunConfig, run: Path, class_names: tuple[str, ...], world: World
    ) -> None:
        self.config, self.run, self.class_names, self.world = config, run, class_names, world
        annotations = build.build_annotations(config, config.data.val)
        label_names = class_names or None
        if label_names is not None:
            annotations.check_labels(label_names)
        if build.learns_pairs(config) and not (annotations.has_captions or annotations.has_labels):
            raise DataError(
                f"{annotations.source}: no captions; add a column 'caption', or 'label' for a test by class names"
            )
        if build.learns_pairs(config) and not annotations.has_captions:
            task_texts(annotations)  # says where the labels are no names
        build.warn_of_left_out(annotations)
        self.dataset = build.build_dataset(config, annotations, label_names, training=False)
        build.check_present(self.dataset)
        self.loader = build.build_eval_loader(config, self.dataset, world=world)
        self.augment = build.build_augment(config, len(class_names) or None, training=False)

    def result(
        self,
        model: VideoModel | DualEncoder,
        name: str,
        weights: str | Path = "",
        on_batch: Told | None = None,
    ) -> ClassificationResult | PairResult:
        """Test a classifier, or what two towers retrieve, and write RUN/eval/NAME.json.

        `on_batch` is called with (batches done, batches of this rank).
        """
        result: ClassificationResult | PairResult
        if isinstance(model, DualEncoder):
            result = self._retrieved(model, on_batch)
        else:
            result = self._classified(model, on_batch)
        settings = {
            "weights": str(weights or self.run),
            **{part: to_dict(getattr(self.config, part)) for part in ("data", "tokens", "eval")},
        }
        run_on_main(lambda: result.save(self.run / "eval" / f"{name}.json", settings))
        return result

    def _classified(self, model: VideoModel, on_batch: Told | None) -> ClassificationResult:
        return evaluate_classification(
            model,
            self.loader,
            self.augment,
            class_names=self.class_names,
            device=self.world.device,
            num_views=self.config.eval.num_clips * self.config.eval.num_crops,
            precision=self.config.train.precision,
            seed=self.config.seed,
            on_batch=on_batch,
        )

    def _retrieved(self, model: DualEncoder, on_batch: Told | None) -> PairResult:
        return evaluate_pairs(
            model,
            self.loader,
            self.augment,
            self.dataset.annotations,
            device=self.world.device,
            num_views=self.config.eval.num_clips * self.config.eval.num_crops,
            precision=self.config.train.precision,
            seed=self.config.seed,
            templates=self.config.eval.templates,
            on_batch=on_batch,
        )

    def __call__(
        self,
        objective: AnyObjective,
    ) -> dict[str, float]:
        """The numbers for the log. A test that fails, or whose result the disk does not take, is said, and costs no
        training: `onereel eval` repeats it."""
        try:
            if isinstance(objective, MaskedObjective | DistillationObjective):
                return evaluate_loss(
                    objective,
                    self.loader,
                    self.augment,
                    device=self.world.device,
                    precision=self.config.train.precision,
                )
            return self.result(objective.model, RESULT).figures()
        except (OnereelError, OSError) as error:
            logger.error("the evaluation failed, training goes on: %s", error)
            return {}
