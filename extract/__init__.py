"""Stage one: clips -> embeddings.

pipeline    `extract_embeddings`: what is missing -> an engine fills the store -> a report
missing     what a split's store lacks: one function decides what is left to do
engines/    what runs it: this machine, a process per device, a Ray cluster
decoding/   a file -> frames and a waveform, in worker processes
encoders/   frames or a waveform -> an embedding
jobs        plain values between these: a clip to embed, clips that are embedded, what is done
settings    how to extract
in_memory   files -> embeddings in memory, for prediction
recheck     clips of a store extracted again, to check the stored embeddings
planning    what extraction would do, and how long it would take
"""
