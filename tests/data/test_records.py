"""Image records in arrays: equal to the records they were made from, small, and shared by forks."""

from __future__ import annotations

import pickle
import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.data.records import ImageRecord, ImageRecords

TEXTS = st.text(max_size=8) | st.sampled_from(["a/b", "/a", "a//b", "\udc80", "\ud800", "é", "é"])
RECORDS = st.lists(
    st.builds(
        ImageRecord,
        path=TEXTS,
        label=TEXTS,
        size_bytes=st.integers(0, 2**62),
        group=st.none() | TEXTS,
        container=st.none() | TEXTS,
        offset=st.none() | st.integers(0, 2**62),
    )
)


@given(RECORDS)
def test_records_come_back_as_they_were(records: list[ImageRecord]) -> None:
    found = ImageRecords(iter(records))
    assert list(found) == records
    assert found == records
    assert [found[index] for index in range(-len(records), len(records))] == records * 2
    assert [found.path(index) for index in range(len(records))] == [at.path for at in records]
    assert found[1:5:2] == records[1:5:2]
    assert pickle.loads(pickle.dumps(found)) == records
    assert set(found.labels) == {at.label for at in records}
    assert set(found.groups) == {at.group for at in records} - {None}
    assert [found.labels[at] for at in found.label_indices] == [at.label for at in records]
    number_of = {label: number for number, label in enumerate(found.labels)}
    assert found.map_labels(number_of) == [number_of[at.label] for at in records]


@given(RECORDS)
def test_sorting_is_by_code_points_and_stable(records: list[ImageRecord]) -> None:
    expected = sorted(records, key=lambda record: record.path)
    assert ImageRecords(records).sorted_by_path() == expected
    assert ImageRecords(expected).sorted_by_path() == expected


def test_sequences_with_other_records_differ() -> None:
    records = ImageRecords([ImageRecord("a", "b", 1)])
    assert records != [ImageRecord("a", "b", 2)]
    assert records != []
    assert records != "text"
    with pytest.raises(IndexError, match="record 1 of 1"):
        records[1]


def test_image_takes_less_than_120_bytes() -> None:
    n_images = 100_000

    def generated() -> Iterator[ImageRecord]:
        for number in range(n_images):
            label = f"n{number // 1000:08}"
            yield ImageRecord(f"train/{label}/{label}_{number}.JPEG", label, 100_000 + number)

    tracemalloc.start()
    try:
        records = ImageRecords(generated())
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(records) == n_images
    assert kept / n_images < 90
    assert peak / n_images < 120


def test_reading_records_keeps_no_object_per_image() -> None:
    records = ImageRecords(ImageRecord(str(at), "label", at) for at in range(1000))
    label = records[0].label
    before = sys.getrefcount(label)
    assert sum(record.size_bytes for record in records) == 499_500
    assert sys.getrefcount(label) == before
