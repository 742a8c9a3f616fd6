"""The loss of a step is that of one big batch, however it is cut into micro-batches and processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from onereel.errors import DataError
from onereel.objectives.contrastive import InfoNce
from onereel.objectives.max_margin import MaxMargin
from onereel.objectives.pairs import NO_CLIP, PairFeatures, PairObjective

SCRIPT = Path(__file__).parent / "pair_toy.py"
KINDS = ["info-nce", "sigmoid", "max-margin"]
JOBS = [
    {"loss": "info-nce", "batch_size": 6, "accum_steps": 1},
    {"loss": "info-nce", "batch_size": 3, "accum_steps": 2, "broken": [1, 6, 7, 8]},
    {"loss": "max-margin", "batch_size": 3, "accum_steps": 2},
    {"loss": "sigmoid", "batch_size": 6, "accum_steps": 1, "max_tokens": 6},  # 3 parts and 4
]


def assert_same_weights(weights, expected, atol=1e-6):
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=atol)


def plain_step(pair_toy, kind, indices, mask_duplicates):
    """The same by hand: one batch, the whole matrix, autograd through both towers at once."""
    towers, loss = pair_toy.ToyTowers(), pair_toy.LOSSES[kind]()
    objective = PairObjective(towers, loss, max_clips=99)
    batch = pair_toy.ToyPairs(12).batch(indices)
    features = objective.survey(batch)
    similarities = features.video @ features.text.T
    equal = torch.tensor([[a == b for b in batch.captions] for a in batch.captions])
    ignored = equal & ~torch.eye(len(equal), dtype=torch.bool) & mask_duplicates
    own = torch.arange(len(batch.keys))
    value = loss(similarities, similarities.T, own, ignored).mean()
    value.backward()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter -= pair_toy.LR * parameter.grad
    return objective.state_dict(), value.item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accum_steps", [1, 3])
@pytest.mark.parametrize("mask_duplicates", [False, True])
def test_a_step_is_the_plain_big_batchs(pair_toy, kind, accum_steps, mask_duplicates):
    weights, values = pair_toy.take_step(
        kind, 12 // accum_steps, accum_steps, mask_duplicates=mask_duplicates
    )
    expected, loss = plain_step(pair_toy, kind, range(12), mask_duplicates)
    assert_same_weights(weights, expected)
    assert values["loss"] / 12 == pytest.approx(loss, rel=1e-5)
    assert 0 <= values["top1"] <= 12


@pytest.mark.parametrize("max_tokens", [4, 9, 100])
@pytest.mark.parametrize("accum_steps", [1, 2])
def test_a_token_cap_leaves_the_negatives_and_the_gradient(pair_toy, accum_steps, max_tokens):
    weights, values = pair_toy.take_step(
        "info-nce", 12 // accum_steps, accum_steps, broken=[0, 7], max_tokens=max_tokens
    )
    good = [i for i in range(12) if i not in (0, 7)]
    expected, loss = plain_step(pair_toy, "info-nce", good, False)
    assert_same_weights(weights, expected)
    assert values["loss"] / len(good) == pytest.approx(loss, rel=1e-5)


def test_clips_that_cannot_be_read_are_in_nobodys_negatives(pair_toy):
    broken = [1, 3, 4, 5, 6, 7]  # the second of three micro-batches has no clip at all
    weights, values = pair_toy.take_step("info-nce", 4, 3, broken=broken)
    good = [i for i in range(12) if i not in broken]
    expected, loss = plain_step(pair_toy, "info-nce", good, False)
    assert_same_weights(weights, expected)
    assert values["num_clips"] == len(good)
    assert values["loss"] / len(good) == pytest.approx(loss, rel=1e-5)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """(weights, values) of both processes, for each of `JOBS`; all of them start from one import of torch."""
    folder = tmp_path_factory.mktemp("two")
    jobs = []
    for number, job in enumerate(JOBS):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        for rank in range(2):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            environment = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            out = str(folder / f"{number}-{rank}.pt")
            jobs.append({**job, "out": out, "environment": environment})
    command = [sys.executable, "-W", "error", str(SCRIPT), json.dumps(jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, stderr=subprocess.PIPE, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return [
        [torch.load(folder / f"{number}-{rank}.pt") for rank in range(2)]
        for number in range(len(JOBS))
    ]


@pytest.mark.parametrize(
    "number", range(len(JOBS)), ids=lambda i: f"{JOBS[i]['loss']}-{JOBS[i]['accum_steps']}"
)
def test_two_processes_are_one_with_the_same_pairs(pair_toy, two_processes, number):
    (weights, values), (others, _) = two_processes[number]
    broken = JOBS[number].get("broken", [])
    good = [i for i in range(12) if i not in broken]
    expected, loss = plain_step(pair_toy, JOBS[number]["loss"], good, False)
    assert_same_weights(weights, expected)
    assert_same_weights(others, weights, atol=0)
    assert values["loss"] / len(good) == pytest.approx(loss, rel=1e-5)
    assert values["num_group_threads"] == 0


def features_of(similarity_rows):
    """Features whose similarities are the given ones: clips are unit vectors."""
    size = len(similarity_rows)
    text = torch.tensor(similarity_rows).T
    return PairFeatures(torch.eye(size), text.contiguous(), torch.arange(size))


def test_rows_know_their_own_pair_and_what_is_nearest(pair_toy):
    objective = PairObjective(pair_toy.ToyTowers(), MaxMargin(0.2), max_clips=3)
    features = features_of([[0.9, 0.5, 0.1], [0.8, 0.6, 0.3], [0.2, 0.55, 0.4]])
    (coupled,) = objective.couple([features])
    assert coupled.loss.item() == pytest.approx(0.1, abs=1e-6)
    assert coupled.top1.item() == pytest.approx(1 / 3)


def test_a_blank_micro_batch_has_no_loss_and_no_gradient(pair_toy):
    objective = PairObjective(pair_toy.ToyTowers(), InfoNce(), max_clips=3)
    features = features_of([[0.9, 0.1], [0.2, 0.8]])
    blank = PairFeatures(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([NO_CLIP]))
    pairs, empty = objective.couple([features, blank])
    alone = objective.couple([features])[0]
    torch.testing.assert_close(pairs.video, alone.video)
    torch.testing.assert_close(pairs.loss, alone.loss)
    assert empty.loss == empty.top1 == 0
    assert torch.all(empty.video == 0)
    assert torch.all(empty.text == 0)


def test_missing_captions_are_an_error_with_the_remedy(pair_toy):
    objective = PairObjective(pair_toy.ToyTowers(), InfoNce(), max_clips=12)
    batch = pair_toy.ToyPairs(4).batch(range(4))
    for captions in (None, batch.captions[:3]):
        batch.captions = captions
        with pytest.raises(DataError, match="caption"):
            objective(batch)


def test_towers_of_other_widths_are_refused(pair_toy):
    objective = PairObjective(pair_toy.ToyTowers(), InfoNce(), max_clips=12)
    objective.model.words = torch.nn.Linear(pair_toy.NUM_WORDS, 3)
    with pytest.raises(ValueError, match="features"):
        objective(pair_toy.ToyPairs(4).batch(range(4)))


def test_the_loss_is_in_float32_under_autocast(pair_toy):
    objective = PairObjective(pair_toy.ToyTowers(), InfoNce(), max_clips=12)
    batch = pair_toy.ToyPairs(4).batch(range(4))
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(batch)["loss"]
    assert half.dtype == torch.float32
    features = objective.survey(batch)
    logits = objective.loss.logit_scale.exp() * features.video @ features.text.T
    own = torch.arange(4)
    exact = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert half.item() == pytest.approx(exact.item(), rel=0.1)
