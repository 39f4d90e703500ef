"""`python -m training.study NAME --data VIDEO… --evaluation DATA --out DIR`: what one choice changes, all else equal.

A study (training/studies/*.yaml) is a base recipe and rows that differ from it, each trained on the same videos with
the same arithmetic: a row whose clips cost more floating-point operations takes fewer of them. Every row and every seed
is measured by the same protocols. DIR receives a run directory for each, `results/`, and `study.json`, `study.md` (the
table: mean over seeds [Student's 95 % interval]) and `study.png`. The same command goes on with a study that was
interrupted; one whose --out is on another machine goes on with `--earlier study.json`, and a seed or a row that it
lacks.

Settings given here (`--run.steps 100`) and another base (`--recipe release`) apply to all rows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.common.commands import command_parser
from training.common.yaml_files import names_in
from training.engine.run import pretrain_whole
from training.evaluation.evidence import add_arguments, check, measure_all
from training.recipes.recipe import options, read_recipe
from training.studies.study import (
    STUDIES,
    chained,
    only,
    plan,
    read_earlier,
    read_study,
    run_of,
    subject_of,
    summarize,
    with_names_of,
)
from video_distilled_encoder.errors import command
from video_distilled_encoder.sources.options import asked_of


@command
def main() -> None:
    """Run the command."""
    parser = command_parser("study", __doc__)
    parser.add_argument("study", help=f"a YAML file, or one of: {', '.join(names_in(STUDIES))}")
    parser.add_argument("--out", type=Path, required=True, help="the study's directory")
    parser.add_argument("--recipe", nargs="+", help="another base")
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of the study's")
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--measures", nargs="+", help="only these")
    parser.add_argument("--earlier", type=Path, help="study.json of the same study elsewhere, whose figures join these")
    add_arguments(parser)
    args, given = parser.parse_known_args()
    study = read_study(args.study)
    settings = [*options(study.settings), *given]
    study = replace(study, recipe=args.recipe or study.recipe, seeds=args.seeds or study.seeds)
    study = with_names_of(study, read_recipe(study.recipe, settings))
    earlier = read_earlier(args.earlier) if args.earlier else None
    rows, measures = only(study.rows, args.rows, "rows"), only(study.measures, args.measures, "measures")
    check(measures, args.evaluation)
    recipes, facts = plan(study, args.data, args.frames, settings, asked_of(args))
    if earlier:
        summarize(study, args.out, facts, settings, earlier)  # another study is told before hours of training
    for seed in study.seeds:
        for name, row in rows.items():
            if name in recipes:
                recipe = replace(recipes[name], run=replace(recipes[name].run, seed=seed))
                if row.after:
                    recipe = chained(recipe, run_of(args.out, row.after, seed))
                run = run_of(args.out, name, seed)
                print(f"{run.name}:", flush=True)
                pretrain_whole(args.data, run, recipe, args.frames, asked=asked_of(args))
            subject = subject_of(args.out, name, row, seed)
            measure_all(measures, [subject], args.evaluation, args.out / "results", args.device)
            summarize(study, args.out, facts, settings, earlier)
    print((args.out / "study.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
