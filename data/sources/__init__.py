"""Where clips come from: each module makes a dataset root.

importing    what all of them share: finding files, leaving some out, writing the root
folder       a folder per label
vggsound     VGGSound's csv
ucf101       UCF101's split lists
kinetics     Kinetics' csv files
demo         generated clips, with an encoder of its own
synthesis    pictures and sounds of the demo
resplit      another root's clips, split anew, embeddings included
"""
