"""A run or a bundle to the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from alphafuse.errors import ExperimentError

from .model import AlphaFuse


def push_bundle(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Push a run or a bundle to the hub, once it is certain that it loads here; returns the commit's address.

    Raises:
        ExperimentError: the hub can't be reached, or refuses.
        EncoderError, RecipeMismatchError: as `AlphaFuse.from_pretrained`.

    >>> from alphafuse import push_bundle
    >>> push_bundle("demo/runs/sqrt-ast", "me/demo-sqrt-ast", private=True)  # doctest: +SKIP
    """
    # HTTPError of the client that this huggingface_hub is built on
    transport_error: type[Exception] = HfHubHTTPError.__mro__[1]
    model = AlphaFuse.from_pretrained(folder)
    try:
        return str(model.push_to_hub(repository, private=private, commit_message="Add an alphafuse run"))
    except (HFValidationError, transport_error, OSError) as error:
        raise ExperimentError(
            f"can't push to '{repository}': {str(error).splitlines()[0]}: log in (`hf auth login`), check the name and "
            f"the network, then run it again ({folder} is whole)"
        ) from None
