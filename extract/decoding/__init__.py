"""A file -> frames and a waveform, in worker processes.

specs         plain values: FrameSpec and AudioSpec (what encoders are fed), Decoded (what decoding gives)
decode        a clip's file -> frames and waveform (`decode_clip`); what a worker does (`decode_inputs`)
video         packets of a video stream -> the frames that are looked at
packets       which of these packets must be decoded for that
audio         packets of an audio stream -> the waveform
fetch         a temporary copy of a clip behind a URL
probe         which files have no audio, by their headers
signatures    a few small frames and the loudness of a few bands, for the audit
"""
