"""Misspelt names."""

import pytest

from mpi_jax import _spelling

NAMES = ("kaczmarz", "tikhonov", "tv", "--data.batch-size")


@pytest.mark.parametrize(
    "word, meant",
    [
        ("kaczmarcz", "kaczmarz"),
        ("tichonov", "tikhonov"),
        ("--data.batch", "--data.batch-size"),
        ("kacz", "kaczmarz"),
    ],
)
def test_the_nearest_name(word, meant):
    assert _spelling.did_you_mean(word, NAMES) == f"; did you mean {meant}?"


@pytest.mark.parametrize("word", ["", "magic", "x"])
def test_nothing_near(word):
    assert _spelling.did_you_mean(word, NAMES) == ""


def test_one_of():
    _spelling.expect_one_of("method", "tv", iter(NAMES))
    with pytest.raises(ValueError) as raised:
        _spelling.expect_one_of("method", "vt", iter(NAMES))
    assert str(raised.value).startswith(
        "method: expected one of kaczmarz, tikhonov, tv"
    )
    assert "got 'vt'" in str(raised.value)
