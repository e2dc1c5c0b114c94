"""Push a run or a bundle to the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from alphafuse.errors import ExperimentError

from .model import AlphaFuse


def push_bundle(folder: str | Path, repository: str, *, private: bool = False, trust_code: bool = False) -> str:
    """Push a run or a bundle to the hub after loading it once as a check; return the URL of the commit.

    Args:
        folder: the run or bundle.
        repository: its name on the hub, "owner/name".
        private: whether the repository is private.
        trust_code: run the Python code that the run names as an encoder, for the check.

    Raises:
        ExperimentError: the hub can't be reached, or refuses the push.
        EncoderError, RecipeMismatchError: as `AlphaFuse.from_pretrained`.

    >>> from alphafuse import push_bundle
    >>> push_bundle("demo/runs/sqrt-ast", "me/demo-sqrt-ast", private=True)  # doctest: +SKIP
    """
    # HTTPError of huggingface_hub's HTTP client
    transport_error: type[Exception] = HfHubHTTPError.__mro__[1]
    model = AlphaFuse.from_pretrained(folder, trust_code=trust_code)
    try:
        return str(model.push_to_hub(repository, private=private, commit_message="Add an alphafuse run"))
    except (HFValidationError, transport_error, OSError) as error:
        raise ExperimentError(
            f"can't push to '{repository}': {str(error).splitlines()[0]}: log in (`hf auth login`), check the name and "
            f"the network, then run it again ({folder} is complete)"
        ) from None
