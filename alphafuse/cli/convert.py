"""`alphafuse convert`: convert original checkpoints to HuggingFace folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import Commands, json_option, one_of, print_json

if TYPE_CHECKING:
    from alphafuse.extract.encoders.checkpoints import ConversionReport


@click.group(cls=Commands)
def convert() -> None:
    """Convert original checkpoints to HuggingFace folders for extract.

    \b
    Example:
      alphafuse convert ast audioset_10_10_0.4593.pth ast-audioset
    """


@convert.command("timesformer")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--image-size", type=int, help="Pixels the original model is built for. [default: from the tensors]")
@click.option("--frames", type=int, help="Frames the original model is built for. [default: from the tensors]")
@click.option("--fed-image-size", type=int, help="Pixels of the frames given to it. [default: --image-size]")
@click.option("--fed-frames", type=int, help="Frames given to it. [default: --frames]")
@click.option(
    "--attention-type",
    shell_complete=one_of("divided_space_time", "joint_space_time", "space_only"),
    help="divided_space_time, joint_space_time, space_only. [default: from the tensors]",
)
@json_option
def convert_timesformer(as_json: bool, **arguments: Any) -> None:
    """Convert a .pyth file of facebookresearch/TimeSformer.

    \b
    Example:
      alphafuse convert timesformer TimeSformer_divST_8x32_224_K400.pyth timesformer-k400
    The seed paper's model: built for 448 pixels and 64 frames, fed 8 frames of 224 pixels:
      alphafuse convert timesformer TimeSformer_divST_64x32_224_HowTo100M.pyth timesformer-howto \\
        --image-size 448 --frames 64 --fed-image-size 224 --fed-frames 8
    """
    from alphafuse.extract.encoders import checkpoints

    _print_conversion(checkpoints.convert_timesformer(**arguments), as_json=as_json)


@convert.command("ast")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--fstride", type=int, help="Patch step along frequency. [default: from the tensors]")
@click.option("--tstride", type=int, help="Patch step along time. [default: from the tensors]")
@click.option("--max-length", type=int, help="Input frames of 10 ms. [default: from the tensors]")
@json_option
def convert_ast(as_json: bool, **arguments: Any) -> None:
    """Convert a .pth file of YuanGongND/ast.

    \b
    Example:
      alphafuse convert ast audioset_10_10_0.4593.pth ast-audioset
    """
    from alphafuse.extract.encoders import checkpoints

    _print_conversion(checkpoints.convert_ast(**arguments), as_json=as_json)


def _print_conversion(report: ConversionReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(str(report))
