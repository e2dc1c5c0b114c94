"""What follows for a comparison of sight and sound from how labels were given."""

from __future__ import annotations

from pathlib import Path

from alphafuse.data.dataset import LABELLED_BY, Dataset

from .streams import MEDIA

MVEB = "(MVEB, arXiv 2606.14958)"


def labelling_warning(dataset: Dataset | str | Path) -> str | None:
    """Return a sentence on what labels given by one sense hide about the other; None if there is nothing to say.

    Labels given by eye name what can be seen: then sound adds little to them, whatever can be heard. MVEB (arXiv
    2606.14958) finds that audio helps where both media decided the labels, and hurts where sight alone did (VGGSound
    from 45.5 to 52.7, Kinetics-400 from 62.7 to 53.2, PE-AV-large). The same holds the other way round for labels that
    were given by ear. It is no warning for a root of one medium, or for labels that both senses gave.

    >>> from alphafuse import Dataset, labelling_warning
    >>> labelling_warning(Dataset.open("demo"))  # None: each class of the demo is a sight and a sound
    """
    dataset = Dataset.open(dataset)
    if set(dataset.media.values()) != set(MEDIA):
        return None
    if dataset.labelled_by == "eye":
        return f"labels were given by eye: sound can look useless here even where it carries the event {MVEB}"
    if dataset.labelled_by == "ear":
        return f"labels were given by ear: sight can look useless here even where it shows the event {MVEB}"
    if dataset.labelled_by is None:
        return (
            f"it isn't known how labels were given, and labels given by eye make sound look useless {MVEB}: say it "
            f"with `alphafuse data labelled-by {'|'.join(LABELLED_BY)}`"
        )
    return None
