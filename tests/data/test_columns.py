"""Texts stored as bytes: they behave like tuples of str."""

from __future__ import annotations

import pickle
import random
from collections import Counter

import numpy as np
import pytest

from alphafuse.data import columns
from alphafuse.data.columns import Places, Texts, TextsBuilder


def draw(count: int, alphabet: str, seed: int = 0) -> list[str]:
    lots = random.Random(seed)
    return ["".join(lots.choices(alphabet, k=lots.randint(1, 9))) for _ in range(count)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make parts small, so that they end at many positions."""
    monkeypatch.setattr(columns, "AT_ONCE", 64)
    monkeypatch.setattr(columns, "MOST_NAMES", 100)


KINDS = {"few names": "ab", "many names": "abcdefgh", "beyond ascii": "aß日𝕏"}


@pytest.mark.parametrize("alphabet", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("count", [0, 1, 64, 700])
def test_texts_behave_as_a_tuple_of_str(alphabet: str, count: int) -> None:
    expected = draw(count, alphabet)
    texts = Texts(expected)
    assert list(texts) == expected and len(texts) == count
    assert texts == tuple(expected) and tuple(expected) == texts and texts == expected and texts != [*expected, "x"]
    assert pickle.loads(pickle.dumps(texts)) == texts
    assert texts.distinct() == tuple(sorted(set(expected)))
    assert texts[5:40:3] == expected[5:40:3] and texts[::-1] == expected[::-1]
    positions = np.array([random.Random(1).randrange(count) for _ in range(300 if count else 0)], np.int64)
    some = texts.take(positions)
    assert some == [expected[i] for i in positions]
    assert pickle.loads(pickle.dumps(some)) == some and some.copy() == some
    if count:
        assert texts[-1] == expected[-1] and some[3] == expected[positions[3]]
        names = sorted(set(expected), reverse=True)
        assert [names[i] for i in some.indices_in(names)] == list(some)
        with pytest.raises(KeyError, match="no such text"):
            Texts([*expected, "no such text"]).indices_in(names)
    with pytest.raises(IndexError):
        texts[count]


def test_repeated_texts_are_stored_once() -> None:
    labels = Texts(f"class {i % 50}" for i in range(10_000))
    assert labels.nbytes < 11_000
    assert Texts(["a"]).take(np.zeros(1000, np.int64)).nbytes < 1100
    ids = Texts(f"clip{i:06d}" for i in range(10_000))
    assert ids.nbytes == 14 * 10_000


def test_a_pickled_part_of_many_texts_contains_only_that_part() -> None:
    ids = Texts(f"clip{i:06d}" for i in range(10_000))
    assert len(pickle.dumps(ids.take(np.array([5, 7])))) < 500


@pytest.mark.parametrize("hashed", [hash, lambda text: len(text)], ids=["Python's hash", "a hash with many collisions"])
@pytest.mark.parametrize("alphabet", KINDS.values(), ids=KINDS)
def test_places_find_texts_as_a_dict_does(alphabet: str, hashed: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "hash", hashed, raising=False)
    several = draw(700, alphabet)
    once = list(dict.fromkeys(several))
    asked = [*random.Random(2).sample(once, len(once) // 2), "not there", ""]
    position = {text: i for i, text in enumerate(once)}
    assert Places(Texts(once)).find(asked).tolist() == [position.get(text, -1) for text in asked]
    assert Places(Texts(once)).repeated() is None
    counts = Counter(several)
    assert Places(Texts(several)).repeated() == next(item for item in counts.items() if item[1] > 1)
    assert [several[i] for i in Places(Texts(several)).firsts()] == once
    assert Places(Texts()).find(["a"]).tolist() == [-1] and Places(Texts()).firsts().tolist() == []


def test_a_builder_gives_its_texts_once() -> None:
    builder = TextsBuilder().extend(["a", "b"])
    assert builder.build() == ["a", "b"] and builder.build() == []
