"""Clips: what they are, where they come from, how they are split, and the store of their embeddings.

    streams      names of the streams, their default encoders and preprocessing protocols
    columns      ids and labels of millions of clips in little memory
    manifest     Clip, and the manifest.csv that lists all clips of a dataset
    embeddings   embeddings of clips in memory, with their windows
    store/       embeddings on disk or behind a URL
    dataset      a dataset root: manifest, stores and runs in one folder
    dropping     clips taken out of a root, and put back
    splits       subsets and splits by source video
    duplicates   clips that look and sound alike, by their signatures
    labelling    what labels given by eye or by ear hide
    coverage     how much of each clip's sound a stream hears
    power        how small a difference a test split can show
    audit        what is wrong with a dataset's clips, labels and splits
    sources/     making a root from a folder, VGGSound, UCF101, Kinetics, the demo or another root

Modules import only from modules above them: sources use dataset, dataset uses the store, the store uses embeddings.
"""
