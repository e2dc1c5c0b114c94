"""Decode a file into frames and a waveform, in worker processes.

specs         plain values: FrameSpec and AudioSpec (inputs of encoders), Decoded (result of decoding)
decode        a clip's file -> frames and waveform (`decode_clip`); a worker's function (`decode_inputs`)
video         packets of a video stream -> the sampled frames
packets       which of these packets must be decoded
audio         packets of an audio stream -> the waveform
fetch         temporary copies of clips behind URLs
probe         which files have no audio, by their headers
signatures    signatures of clips, for the audit
"""
