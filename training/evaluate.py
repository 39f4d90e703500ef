"""`python -m training.evaluate PROTOCOL --model … --data … --out …`: one protocol, one model, one JSON.

`python -m training.evaluate compare RESULT.json …` puts several results of a protocol into one table, with a row for
each model whatever its seeds, and says which differ from the first.
"""

from __future__ import annotations

import json
import sys

from training.evaluation.measure import evaluate, parser
from training.evaluation.statistics import comparison
from video_distilled_encoder.errors import command


@command
def main() -> None:
    """Run the command."""
    args = parser(__doc__).parse_args()
    if args.protocol == "compare":
        print(comparison.compare(args.results))
    else:
        print(json.dumps(evaluate(sys.argv[1:]), indent=2))


if __name__ == "__main__":
    main()
