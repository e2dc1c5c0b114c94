import alphafuse


def test_every_public_name_is_there_under_its_own_name() -> None:
    assert set(alphafuse.__all__) == set(alphafuse._HOME_OF)
    for name in alphafuse.__all__:
        assert getattr(alphafuse, name).__name__ == name
        assert getattr(alphafuse, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(alphafuse, "nothing")
