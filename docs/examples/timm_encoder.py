"""A model of timm as a stream of video: --stream vit=timm_encoder:vit,frames=8

A plain function: the checksum in its recipe is that of this file, so the model's name and tag stand here.
"""

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

model = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=True, num_classes=0).eval()
prepare = create_transform(**resolve_model_data_config(model))


def vit(frames):
    """Turn (frames, height, width, 3) uint8 into (192,): the mean over the frames of a clip."""
    pixels = torch.stack([prepare(Image.fromarray(frame)) for frame in frames])  # (frames, 3, 224, 224)
    return model(pixels).mean(0)
