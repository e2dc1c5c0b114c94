"""The model card of an exported run: what it is, its training and test data, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from alphafuse.data.sources.demo import DEMO_NAME
from alphafuse.data.streams import COMPACT, DEFAULT_NAMES, GIVEN, MEDIA, is_code, title_of
from alphafuse.heads.studies.runs import TrainedRun
from alphafuse.version import __version__

TEMPLATE = Path(__file__).parent / "card.md.j2"
SHOWN_CLASSES = 30
RECORDED = {  # of a stream's recipe, what the card states
    "weights_sha256": "weights sha256 `{:.16}`...",
    "file_sha256": "file sha256 `{:.16}`...",
    "protocol": "protocol {}",
    "precision": "{}",
}


def model_card(run: TrainedRun) -> ModelCard:
    """Return the card, made from the records of the run; nothing is measured again."""
    config, head = run.config, run.heads[0].config
    encoders = [run.encoders.get(stream, {}) for stream in run.streams]
    media = {made.get("medium") for made in encoders}
    names = [made.get("name", "") for made in encoders]
    hub_names = [name for name in names if "/" in name]
    families = [str(run.embeddings[stream]["family"]) for stream in run.streams if "family" in run.embeddings[stream]]
    data = ModelCardData(
        library_name="alphafuse",
        pipeline_tag="video-classification" if "video" in media else "audio-classification",
        tags=list(dict.fromkeys(["alphafuse", *(["audio-visual"] if len(media) > 1 else []), *families])),
        base_model=hub_names or None,
    )
    parameters = sum(parameter.numel() for parameter in run.heads[0].parameters())
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text("utf-8"),
        title=run.experiment.title,
        head=head.describe(),
        layers="-".join(map(str, (run.heads[0].fusion.output_dim, *head.settings.hidden, len(head.classes)))),
        parameters=f"{parameters:,}",
        heads=len(run.heads),
        seeds=", ".join(map(str, config["seeds"])),
        dataset=config["dataset"]["name"],
        is_demo=config["dataset"]["name"] == DEMO_NAME,
        clips=config["clips"],
        classes=len(head.classes),
        shown="; ".join(head.classes[:SHOWN_CLASSES]),
        more=max(0, len(head.classes) - SHOWN_CLASSES),
        encoders=[_encoder(run, stream) for stream in run.streams],
        carries_encoders=(run.folder / "encoders").is_dir(),
        splits={split: _figures(figures) for split, figures in run.metrics.items()},
        what=" and ".join(medium for medium in MEDIA if medium in media),
        inputs=" and ".join(filter(None, dict.fromkeys(_input(run.embeddings[stream]) for stream in run.streams))),
        is_compact=COMPACT in names,
        of_hub=[one for one, name in zip(run.streams, names, strict=True) if name != GIVEN and not is_code(name)],
        warnings=warnings_of(run),
        is_paper=set(run.streams) <= set(DEFAULT_NAMES),
        absent=head.settings.absent,
        weigh=config.get("weigh"),
        settings={name: value for name, value in config["settings"].items() if value is not None},
        versions=config["versions"],
        version=__version__,
        streams=" and ".join(title_of(stream) for stream in run.streams),
    )


def warnings_of(run: TrainedRun) -> list[str]:
    """Return what prediction with a run needs beyond it, or can't do: a sentence per stream concerned."""
    warnings = []
    for stream in run.streams:
        name = run.encoders.get(stream, {}).get("name", "")
        if is_code(name):
            warnings.append(
                f"Stream {stream} runs the Python code {name}, which must be importable: read it, then allow it with "
                "--trust-code (trust_code=True)."
            )
        elif name == GIVEN:
            warnings.append(f"The embeddings of stream {stream} were given: predict can't make them of a clip.")
    return warnings


def _encoder(run: TrainedRun, stream: str) -> dict[str, Any]:
    made = run.embeddings[stream]
    known = run.encoders.get(stream, {})
    return {
        "title": title_of(stream),
        "name": known.get("name", "not recorded"),
        "revision": known.get("revision", ""),
        "details": ", ".join(words.format(str(made[key])) for key, words in RECORDED.items() if made.get(key)),
    }


def _input(made: Mapping[str, Any]) -> str:
    """Return which part of a clip an encoder reads, from the recipe of its embeddings; "" for given ones."""
    if "frames" in made:
        return f"{made['frames']} frames, spread over the whole clip,"
    if made.get("max_samples"):
        return f"the first {made['max_samples'] / made['rate']:.1f} seconds of audio"
    return "the audio" if "rate" in made else ""


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Format the metrics of one split."""
    k = next(int(name[3:]) for name in figures if name.startswith("top") and name != "top1")
    top1, topk, loss = figures["top1"], figures[f"top{k}"], figures["loss"]
    return {
        "n": figures["n"],
        "videos": figures["source_videos"],
        "top1": _percent(top1),
        "k": k,
        "topk": _percent(topk),
        "loss": f"{loss['mean']:.3f} [{loss['interval']['low']:.3f}, {loss['interval']['high']:.3f}]",
        "ceiling": f"{100 * figures['reachable_ceiling']['accuracy']:.1f}",
        "method": top1["interval"]["method"],
    }


def _percent(estimate: Mapping[str, Any]) -> str:
    interval = estimate["interval"]
    return f"{100 * estimate['mean']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
