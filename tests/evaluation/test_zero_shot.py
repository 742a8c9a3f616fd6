"""Classes from their names: prompts, the classifier they make, and its answers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from onereel.config import EvalConfig
from onereel.errors import ConfigError, DataError
from onereel.evaluation.zero_shot import (
    TEMPLATES,
    class_embeddings,
    prompts,
    zero_shot_probabilities,
)


def test_prompts_are_class_by_class():
    found = prompts(["swipe_left", " take {x}"])
    assert found[:2] == ["a video of swipe left.", "a video of a person doing swipe left."]
    assert found[len(TEMPLATES)] == "a video of take {x}."
    assert len(found) == 2 * len(TEMPLATES)


def test_names_are_spoken_as_words():
    found = prompts(["ApplyEyeMakeup", "YoYo", "play iPhone", "TV"], ["{}"])
    assert found == ["Apply Eye Makeup", "Yo Yo", "play iPhone", "TV"]


def test_templates_of_the_tests_own():
    assert prompts(["cut", "wash"], ["#C C {}", "{}, #C C"]) == [
        "#C C cut",
        "cut, #C C",
        "#C C wash",
        "wash, #C C",
    ]
    with pytest.raises(ConfigError, match=r"eval\.templates .* texts with {} where the name goes"):
        EvalConfig(templates=("a video",))


def test_numbers_are_no_names():
    with pytest.raises(
        DataError, match=r"the classes are 0, 1, 2, \.\.\., and .* labels are names"
    ):
        prompts(["0", "1", "2", "3:4"])
    assert prompts(["1", "two"], ["{}"]) == ["1", "two"]


def test_a_class_is_the_mean_of_its_prompts_directions():
    embeddings = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    found = class_embeddings(embeddings, 2)
    for k in range(2):
        mean = sum(row / row.norm() for row in embeddings[3 * k : 3 * k + 3]) / 3
        torch.testing.assert_close(found[k], mean / mean.norm())
    scaled = embeddings * torch.tensor([1.0, 7, 0.1, 2, 3, 4])[:, None]
    torch.testing.assert_close(class_embeddings(scaled, 2), found)
    for num_classes in (0, 4):
        with pytest.raises(DataError, match="as many for each class"):
            class_embeddings(embeddings, num_classes)


def test_probabilities_are_a_softmax_of_cosines():
    generator = torch.Generator().manual_seed(0)
    videos, classes = torch.randn(4, 5, generator=generator), torch.randn(3, 5, generator=generator)
    found = zero_shot_probabilities(videos, classes, scale=10)
    cosine = F.cosine_similarity(videos[:, None], classes[None], dim=-1)
    torch.testing.assert_close(found, (10 * cosine).softmax(-1))
    surer = zero_shot_probabilities(3 * videos, classes)
    assert (surer.argmax(1) == found.argmax(1)).all()
    assert (zero_shot_probabilities(classes, classes).argmax(1) == torch.arange(3)).all()
