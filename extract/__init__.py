"""Stage one: clips in, embeddings out.

pipeline    `extract_embeddings`: what is missing -> an engine fills the store -> a report
work        what a split's store lacks: the one function that decides what is left
engines/    who does it: this machine, a process per device, a Ray cluster
decoding/   a file -> frames and a waveform, in worker processes
encoders/   frames or a waveform -> an embedding
jobs        plain values between these: a clip to embed, clips that are embedded, what is done
settings    how to extract
files       files -> embeddings in memory, for prediction
resample    a store's clips extracted again, to see that it holds what it says
planning    what extraction would do, and how fast
"""
