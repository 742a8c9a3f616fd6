"""Planning: every wanted frame is in one span, nothing needed is missing, nothing idle is fed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onereel.video.encode import PROFILES
from onereel.video.index import build_packet_index
from onereel.video.spans import plan_spans, widen_span


@pytest.mark.parametrize("kind", [*PROFILES, "default", "open_gop"])
@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_spans(zoo: Callable[[str], Any], kind: str, data: Any) -> None:
    index = build_packet_index(zoo(kind).path)
    frames = data.draw(st.lists(st.integers(0, index.num_frames - 1), min_size=1, max_size=8))
    spans = plan_spans(index, frames)
    places = sorted(place for span in spans for many in span.wanted.values() for place in many)
    assert places == list(range(len(frames)))
    for span in spans:
        assert index.key[span.rows[0]]
        assert span.rows == sorted(set(span.rows))
        assert span.rows[-1] == max(span.wanted)
        for packet, many in span.wanted.items():
            assert {frames[place] for place in many} == {int(index.rank[packet])}
        fed = np.isin(np.arange(span.rows[0], span.rows[-1] + 1), span.rows)
        needed = index.reference[span.rows[0] : span.rows[-1] + 1]
        assert fed[needed].all(), "a reference is missing"
        idle = [row for row in span.rows if not index.reference[row] and row not in span.wanted]
        assert not idle
    ends = [(span.rows[0], span.rows[-1]) for span in spans]
    assert all(a[1] < b[0] for a, b in pairwise(ends)), "spans overlap"


def test_widening_goes_one_key_frame_back_and_stops_at_the_first(zoo: Callable[[str], Any]) -> None:
    index = build_packet_index(zoo("fast").path)
    (span,) = plan_spans(index, [70])
    assert span.rows[0] == span.trusted == 64
    wider = widen_span(index, span, span.wanted)
    assert (wider.rows[0], wider.trusted, wider.wanted) == (32, 64, span.wanted)
    widest = widen_span(index, wider, wider.wanted)
    assert (widest.rows[0], widest.trusted) == (0, 32)
