"""Where clips come from: each module makes a dataset root.

importing    shared by all: finding files, leaving some out, writing the root
folder       a folder per label
vggsound     VGGSound's csv
ucf101       UCF101's split lists
kinetics     Kinetics' csv files
given        embeddings of one's own
parquet_columns  the columns of a parquet file of embeddings
demo         generated clips
synthesis    pictures and sounds of the demo
resplit      another root's clips in new splits, embeddings included
"""
