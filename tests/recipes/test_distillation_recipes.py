"""Flux-UMT's recipes say what its table 14 says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onereel import build
from onereel.config import ObjectiveConfig
from onereel.models.teachers import OwnTeacher, View
from onereel.objectives import DistillationObjective
from onereel.recipes import load_recipe
from onereel.tokens.tubelets import shapes_in_window


@pytest.mark.parametrize(("name", "width"), [("flux_umt_vits", 384), ("flux_umt_vitb", 768)])
def test_flux_umt_is_table_14(name: str, width: int) -> None:
    config = load_recipe(name)
    data, distill = config.data, config.distill
    shapes = shapes_in_window(
        data.num_frames_choices, data.size_choices, data.token_window, tubelet_size=1, patch_size=14
    )
    assert len(shapes) == 18
    assert (distill.pool_budget, config.objective.budgets) == (2048, (2048, 1536, 1024))
    assert (config.optim.lr, config.optim.lr_batch_size) == (1e-3, 0)
    assert (config.optim.betas, config.train.global_batch_size) == ((0.9, 0.98), 2048)
    student = build.build_encoder(replace(config, data=replace(data, size=28, num_frames=1)))
    assert (student.embed_dim, student.depth, student.patch_values) == (width, 12, 588)


def test_a_flux_umt_student_learns_its_last_six_blocks_from_a_teacher_of_its_family() -> None:
    config = load_recipe("flux_umt_vits")
    tiny = replace(config, model=config.model.renamed("fluxvit_micro_patch14_224"))
    classifier = replace(tiny, objective=ObjectiveConfig(budgets=(2048, 1024)))
    teacher = build.build_model(classifier, 2)
    own = OwnTeacher(teacher.encoder, teacher.head, View())
    shallow = replace(tiny, distill=replace(tiny.distill, num_layers=3))
    built = build.build_objective(shallow, build.build_trainee(shallow, 0), own)
    assert isinstance(built, DistillationObjective)
    assert own.attends
    assert built.shows_pool
    assert built.alignment.student_layers == (1, 2, 3)
    assert own.final_dim == built.model.head.feature_dim == 768
