"""Each kind of list is tested by its own figures."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.data.annotations import Annotations, Origin, read_annotations
from onereel.data.sources.questions import Questions
from onereel.errors import DataError
from onereel.evaluation.multiple_choice import MultipleChoice
from onereel.evaluation.retrieval import CaptionRetrieval, MultiInstanceRetrieval
from onereel.evaluation.text_tasks import task_texts, text_figures
from onereel.evaluation.zero_shot import TEMPLATES, ZeroShot


def words(texts: tuple[str, ...]) -> Tensor:
    """A bag of words per text: the same text has the same embedding."""
    known = {word: i for i, word in enumerate(sorted({w for text in texts for w in text.split()}))}
    vectors = torch.zeros(len(texts), len(known))
    for row, text in zip(vectors, texts):
        row[[known[word] for word in text.split()]] = 1
    return F.normalize(vectors, dim=-1)


def test_captions_are_retrieved() -> None:
    table = pa.table(
        {
            "path": ["a", "b", "a"],
            "caption": [["one", "two"], ["three"], ["four"]],
            "label": list("xyx"),
        }
    )
    annotations = Annotations(table, "list")
    assert task_texts(annotations) == ("one", "two", "three", "four")
    found = text_figures(annotations, torch.eye(3), torch.eye(3)[[0, 0, 1, 0]])
    assert isinstance(found, CaptionRetrieval)
    assert found.text_to_video.recall[1] == found.video_to_text.recall[1] == 1
    assert found.video_to_text.num_queries == 2, "a is one video, though two records name it"
    with pytest.raises(DataError, match="2 videos and 4 texts were embedded, not 3 and 4"):
        text_figures(annotations, torch.eye(2), torch.eye(4))


def test_questions_are_answered() -> None:
    table = pa.table({"path": ["a", "b", "a", "a"], "caption": ["x"] * 4})
    questions = Questions(("cuts", "reads"), (1, 0), ("inter", "intra"))
    annotations = Annotations(table, "list", origin=Origin(questions=questions))
    assert task_texts(annotations) == ("cuts", "reads")
    found = text_figures(annotations, torch.eye(4), torch.eye(4)[[1, 3]])
    assert isinstance(found, MultipleChoice)
    assert found.to_dict() == {"accuracy": 0.5, "accuracy_inter": 1.0, "accuracy_intra": 0.0}


def test_classes_are_told_by_their_names() -> None:
    table = pa.table({"path": ["a", "b", "c"], "label": ["wave", "clap", "wave"]})
    annotations = Annotations(table, "list")
    texts = task_texts(annotations)
    assert len(texts) == 2 * len(TEMPLATES)
    assert texts[0] == "a video of clap."
    embeddings = words(tuple(text.replace(".", "") for text in texts))
    wave, clap = embeddings[len(TEMPLATES)], embeddings[0]
    found = text_figures(annotations, torch.stack([wave, clap, clap]), embeddings)
    assert isinstance(found, ZeroShot)
    assert found.to_dict() == {
        "num_videos": 3,
        "num_classes": 2,
        "top1": pytest.approx(2 / 3),
        "top5": 1.0,
        "mean_class_accuracy": 0.75,
    }
    assert str(found).startswith("zero-shot top-1 66.67%")
    with pytest.raises(DataError, match="not finite"):
        text_figures(annotations, torch.full((3, 2), torch.nan), torch.ones(len(texts), 2))


def test_a_list_without_captions_and_labels_asks_nothing() -> None:
    with pytest.raises(DataError, match="no captions; retrieval needs a column 'caption'"):
        task_texts(Annotations.of_videos(["a"]))


def test_published_lists(real_data: Path) -> None:
    epic = read_annotations(str(real_data / "epic100" / "EPIC_100_retrieval_test.csv"))
    assert len(task_texts(epic)) == 3842
    small = Annotations(epic.table.slice(0, 3), "list", origin=epic.origin)
    with pytest.raises(DataError, match="not 3 and 3842"):
        text_figures(small, torch.eye(3), torch.eye(3))
    captions = read_annotations(str(real_data / "captions24" / "captions.csv"))
    vectors = words(task_texts(captions))
    found = text_figures(captions, vectors, vectors)
    assert isinstance(found, CaptionRetrieval)
    assert found.text_to_video.recall[1] > 0.9
    assert json.loads(json.dumps(found.to_dict()))["text_to_video"]["num_queries"] == 24


def test_epic_retrieval_lists_get_graded_figures(tmp_path: Path) -> None:
    header = "narration_id,video_id,start_timestamp,stop_timestamp,narration,verb_class,noun_class,all_noun_classes\n"
    rows = "a_0,a,00:00:00,00:00:01,take cup,0,1,[1]\nb_0,b,00:00:00,00:00:01,put cup,1,1,[1]\n"
    (tmp_path / "test.csv").write_text(header + rows)
    (tmp_path / "test_sentence.csv").write_text(
        "narration_id,narration\nb_0,put cup\na_0,take cup\n"
    )
    annotations = read_annotations(str(tmp_path / "test.csv"))
    found = text_figures(annotations, torch.eye(2), torch.eye(2)[[1, 0]])
    assert isinstance(found, MultiInstanceRetrieval)
    assert (found.mean_map, found.mean_ndcg) == (1.0, 1.0)
    worst = text_figures(annotations, torch.eye(2), torch.eye(2))
    assert isinstance(worst, MultiInstanceRetrieval)
    assert worst.mean_map == pytest.approx(0.75)
