"""`python -m training.pretrain --data VIDEO_OR_DIR… --out DIR`: videos and robots' recordings in, an encoder out.

The run directory holds recipe.yaml (every setting), run.json (data and machine), views.png (the first clips as the
network sees them), log.jsonl (every step), tensorboard/, curves.png, checkpoints/ and, at the end, encoder/: the
teacher's backbone as a model directory for `Encoder.from_pretrained`, timm and transformers, with handover/, what the
next run needs to go on (`--init-from DIR`). Under torchrun or accelerate launch the same command uses every GPU of
every node.
"""

# The processes that extract videos import this file as well: what trains, and torch, is imported where it is used.
from __future__ import annotations

import gc
import sys

from video_distilled_encoder.errors import command


@command
def main() -> None:
    """Run the command."""
    from training.common import stop
    from training.engine.arguments import parse_arguments
    from training.engine.plan import age_of_process
    from training.engine.run import dry_run, pretrain
    from video_distilled_encoder.sources.options import asked_of

    args, recipe = parse_arguments(sys.argv[1:], __doc__)
    if args.dry_run:
        print(dry_run(args.data, args.out, recipe, args.frames, args.skip_unreadable, asked_of(args)))
        return
    with stop.listening():
        pretrain(
            args.data,
            args.out,
            recipe,
            frames=args.frames,
            asked=asked_of(args),
            resume=args.resume,
            max_seconds=None if args.max_time is None else args.max_time - age_of_process(),
            skip_unreadable=args.skip_unreadable,
            shard_mib=args.shard_size,
        )
    # Python would look through all that is alive once more before it ends, for a second that belongs to no one.
    gc.freeze()


if __name__ == "__main__":
    main()
