"""Decoded clips -> their embeddings: both encoders over a batch, and why a clip has none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from alphafuse.data.embeddings import Failure
from alphafuse.errors import DecodeError
from alphafuse.extract.decoding.decode import Decoded
from alphafuse.extract.decoding.specs import AudioSpec
from alphafuse.extract.jobs import Batch, Job

from .encoder import Encoder
from .tensors import resize_frames

NOT_FINITE = "the embedding is not finite"


def embed_batch(encoders: Mapping[str, Encoder], decoded_jobs: Sequence[tuple[Job, Decoded]]) -> Batch:
    """Run the encoders over a batch."""
    on_cpu = all(encoder.placement.device.type == "cpu" for encoder in encoders.values())
    clock = time.thread_time if on_cpu else time.perf_counter
    began = clock()
    jobs = tuple(job for job, _ in decoded_jobs)
    rows: dict[str, np.ndarray] = {}
    failures: list[Failure] = []
    for modality, encoder in encoders.items():
        fed = [_input(encoder, decoded) for _, decoded in decoded_jobs]
        inputs, reasons = [item for item, _ in fed], [reason for _, reason in fed]
        usable = [i for i, job in enumerate(jobs) if modality in job.modalities and inputs[i] is not None]
        matrix = rows[modality] = np.full((len(jobs), encoder.dim), np.nan, np.float32)
        if usable:
            matrix[usable] = encoder.embed([inputs[i] for i in usable])
        for i in usable:
            if not np.isfinite(matrix[i]).all():
                matrix[i], reasons[i] = np.nan, NOT_FINITE
        failures += [
            Failure(job.clip.clip_id, modality, reason)
            for job, reason in zip(jobs, reasons, strict=True)
            if reason and modality in job.modalities
        ]
    decode_seconds = sum(decoded.cpu_seconds for _, decoded in decoded_jobs)
    return Batch(jobs, rows, tuple(failures), clock() - began, decode_seconds)


def _input(encoder: Encoder, decoded: Decoded) -> tuple[Any, str]:
    """What the encoder is fed, and why it is nothing."""
    if isinstance(encoder.spec, AudioSpec):
        return decoded.waveform, decoded.no_waveform
    if decoded.frames is None or decoded.is_prepared:
        return decoded.frames, decoded.no_frames
    try:
        return resize_frames(torch.from_numpy(decoded.frames).to(encoder.placement.device), encoder.spec), ""
    except DecodeError as error:
        return None, str(error)
