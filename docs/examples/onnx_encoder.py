"""A model in an ONNX file as a stream of audio: --stream sound=onnx_encoder:sound,medium=audio,file=sound.onnx

A factory: it gets the device and the stream's options, and its recipe holds the checksum of the model's file.
"""

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime

from alphafuse import AudioSpec


class Sound:
    """Embeds the first ten seconds of a clip at 16 kHz; the model turns (clips, samples) into (clips, dim)."""

    spec = AudioSpec(rate=16_000, max_samples=160_000)

    def __init__(self, device, file):
        provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
        self.session = onnxruntime.InferenceSession(file, providers=[provider])
        self.dim = self.session.get_outputs()[0].shape[1]
        self.recipe = {"weights_sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}

    def embed(self, windows):
        """Turn samples of one clip or several into (clips, dim)."""
        name = self.session.get_inputs()[0].name
        rows = [self.session.run(None, {name: samples[None]})[0] for samples in windows]  # clips differ in length
        return np.concatenate(rows)


def sound(device, file):
    """Make the encoder; `file` is an option of the stream."""
    return Sound(device, file)
