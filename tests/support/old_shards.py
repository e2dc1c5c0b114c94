"""Shards as earlier versions wrote them."""

import hashlib
from pathlib import Path

import h5py

SETTINGS = {"timesformer": {"protocol": "standard", "dim": 3}, "ast": {"protocol": "standard", "dim": 2}}
FAILURE = ("clip_id", "modality", "reason")


def checksum(shard: h5py.File) -> str:
    """Computed on all at once, as earlier versions did."""
    names: list[str] = []
    shard.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    recipes = shard.attrs["recipes"]
    digest = hashlib.sha256(recipes if isinstance(recipes, bytes) else recipes.encode())
    for name in sorted(names):
        values = shard[name][()]
        text = values.dtype.kind in "OS"
        digest.update(f"{name} {'text' if text else values.dtype} {values.shape} ".encode())
        digest.update(b"\0".join(values) if text else values.tobytes())
    return digest.hexdigest()


def as_before(path: Path) -> Path:
    """Rewrite a shard as earlier versions wrote it: strings of variable length, nothing in /present."""
    with h5py.File(path) as new, h5py.File(path.with_suffix(".old"), "w") as old:
        for name in ("clip_id", "label", "group", *(f"failures/{n}" for n in FAILURE)):
            old.create_dataset(name, data=list(new[name].asstr()[()]), dtype=h5py.string_dtype(), shape=new[name].shape)
        for modality in SETTINGS:
            old.create_dataset(modality, data=new[modality][()])
        old.attrs["format_version"] = 1
        for name in ("recipes", "provenance"):
            old.attrs[name] = new.attrs[name].decode()
        old.attrs["sha256"] = checksum(old)
    return path.with_suffix(".old").rename(path)
