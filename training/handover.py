"""`python -m training.handover DIR --out ENCODER`: the encoder of a run, from what it left for the next one.

DIR is the `handover/` of a run, or a copy of it (training/engine/handover.py says what is in it); ENCODER becomes a
model directory for `Encoder.from_pretrained`, timm and transformers.
"""

from __future__ import annotations

from pathlib import Path

from training.common.commands import command_parser
from training.engine.handover import read
from video_distilled_encoder import Encoder
from video_distilled_encoder.errors import command
from video_distilled_encoder.model_directory import load_strictly


@command
def main() -> None:
    """Run the command."""
    parser = command_parser("handover", __doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run's handover/, or a copy of it")
    parser.add_argument("--out", type=Path, required=True, help="the model directory that is written")
    args = parser.parse_args()
    found = read(args.folder)
    backbone = found.config.build_backbone()
    load_strictly(backbone, found.backbone(), args.folder)
    Encoder(backbone, found.config).save_pretrained(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
