"""`mos evaluation show | compare | report`, and `mos submit evaluation` that fills what they show."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from jobs.options import base_option, json_option, print_json, registry_option
from mos.errors import BadInputError

SUITE_HELP = "human, object, pet, scene, small-world, or a TOML file of one's own."


@click.group("evaluation")
def command() -> None:
    """Show, compare and report evaluations."""


@command.command()
@click.argument("evaluation", required=False)
@click.option("--by", type=click.Choice(["method", "model", "concept", "family"]), default="method", show_default=True)
@registry_option
@json_option
def show(evaluation: str | None, by: str, registry_url: str, as_json: bool) -> None:
    """List the registry's evaluations, or show the scores of EVALUATION (the start of its digest is enough).

    \b
      mos evaluation show
      mos evaluation show 3fa1 --by concept
    """
    from jobs.evaluation_tables import cells_as_data, list_evaluations, open_evaluation, regrouped, text_table
    from mos.evaluation.results import summarise

    if evaluation is None:
        rows = list_evaluations(registry_url)
        if as_json:
            print_json(rows)
        elif not rows:
            click.echo(f"no evaluation in {registry_url}; start with `mos submit evaluation MODEL`", err=True)
        else:
            columns = ["digest", "suite", "seeds", "models", "pictures"]
            click.echo(text_table(columns, [[str(row[name]) for name in columns] for row in rows]))
        return
    found = open_evaluation(registry_url, evaluation)
    cells = summarise(regrouped([row.score for row in found.rows], by))
    if as_json:
        print_json({"evaluation": found.digest, "settings": found.settings, "cells": cells_as_data(cells)})
    else:
        from jobs.evaluation_tables import cells_table

        click.echo(cells_table(cells))


@command.command()
@click.argument("evaluation")
@click.argument("method")
@click.argument("baseline")
@click.option("--by-concept", is_flag=True, help="Intervals over concepts instead of pictures.")
@registry_option
@json_option
def compare(evaluation: str, method: str, baseline: str, by_concept: bool, registry_url: str, as_json: bool) -> None:
    """Compare METHOD with BASELINE on the prompts and seeds both drew, with 95 % intervals.

    \b
      mos evaluation compare 3fa1 fused-gradient fused-average
    """
    from jobs.evaluation_tables import differences_between, differences_table, open_evaluation

    found = open_evaluation(registry_url, evaluation)
    rows = [row.score for row in found.rows]
    differences = differences_between(rows, method, baseline, by_concept=by_concept)
    if as_json:
        print_json([vars(row) | {"interval": vars(row.interval), "better": row.better} for row in differences])
    else:
        click.echo(differences_table(differences))


@command.command()
@click.argument("evaluation")
@click.option("--out", type=click.Path(path_type=Path), default=Path("evaluation"), show_default=True, help="Folder.")
@click.option("--highlight", default="", help="Method to set off in the charts.")
@registry_option
def report(evaluation: str, out: Path, highlight: str, registry_url: str) -> None:
    """Write EVALUATION as one HTML page that stands alone: figures, tables and picture grids.

    \b
      mos evaluation report 3fa1 --out report/
    """
    from jobs.evaluation_tables import open_evaluation
    from jobs.gallery.evaluation import write_evaluation_report

    found = open_evaluation(registry_url, evaluation)
    path = write_evaluation_report(found.digest, found.settings, found.rows, out, highlight=highlight)
    click.echo(str(path))


@command.command()
@click.argument("evaluation")
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@click.option("--allow-unlisted", is_flag=True, help="Also sign versions that are not listed.")
@base_option
@registry_option
@json_option
def sign(
    evaluation: str, refs: tuple[str, ...], allow_unlisted: bool, base: str | None, registry_url: str, as_json: bool
) -> None:
    """Sign EVALUATION's scores of the published versions REF, for search and show to display.

    Only the registry's evaluator can: it takes the indexer's key, and pictures drawn with the very weights.

    \b
      mos evaluation sign 3fa1 alice/robot@1 bob/cat@2
    """
    from jobs.evaluate_signing import sign_evaluation
    from registry import Registry

    signed = sign_evaluation(Registry.open(registry_url), evaluation, refs, base, allow_unlisted=allow_unlisted)
    if as_json:
        print_json(signed)
    else:
        for line in signed:
            click.echo(f"{line['ref']}  {line['pictures']} pictures")


@click.command("evaluation")
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option("--suite", default="small-world", show_default=True, help=SUITE_HELP)
@click.option("--seeds", "num_seeds", type=click.IntRange(1, 1000), default=2, show_default=True, help="A prompt.")
@click.option("--full", is_flag=True, help="The published size: 50 seeds a prompt.")
@click.option("--steps", type=click.IntRange(1, 1000), default=20, show_default=True, help="Denoising steps.")
@click.option("--guidance", type=float, default=3.0, show_default=True, help="Guidance scale.")
@click.option("--references", multiple=True, metavar="CONCEPT=DIR", help="Pictures to measure likeness against.")
@click.option("--identity", "identities", multiple=True, metavar="CONCEPT=CLASS:SEED", help="Who it is (small world).")
@click.option("--scorer", default=None, metavar="PATH", help="A transformers CLIPModel; default the small world's.")
@click.option("--ray-address", metavar="URL", envvar="MOS_RAY_ADDRESS", help="Job server of a cluster.")
@click.option("--wait/--no-wait", "is_waiting", default=True, help="Wait for the result (of a cluster).")
@click.option("--dry-run", is_flag=True, help="Check everything, print what it would take, do nothing.")
@click.option("--no-ray", is_flag=True, help="Draw and score in this one process, for small evaluations.")
@click.option("--allow-unlisted", is_flag=True, help="Also evaluate what the catalogue does not list.")
@base_option
@registry_option
@json_option
def submit_evaluation(
    models: tuple[str, ...],
    suite: str,
    num_seeds: int,
    full: bool,
    steps: int,
    guidance: float,
    references: tuple[str, ...],
    identities: tuple[str, ...],
    scorer: str | None,
    ray_address: str | None,
    is_waiting: bool,
    dry_run: bool,
    no_ray: bool,
    allow_unlisted: bool,
    base: str | None,
    registry_url: str,
    as_json: bool,
) -> None:
    """Draw and score a suite of prompts with each MODEL; what was done before is not done again.

    \b
      mos submit evaluation fused/ alice/robot bob/cat --suite small-world \\
          --identity alice/robot=robot:7
      mos submit evaluation fused/ --base ./sd15 --suite object \\
          --scorer ./clip --references alice/vase=photos/ --full
    """
    from jobs.evaluate import EvaluationRequest, describe_evaluation, prepare_evaluation, run_here
    from jobs.submission import whole_path
    from mos.evaluation.prompts import FULL_SEEDS

    request = EvaluationRequest(
        models=models,
        suite=suite,
        registry_url=whole_path(registry_url),
        num_seeds=FULL_SEEDS if full else num_seeds,
        num_inference_steps=steps,
        guidance_scale=guidance,
        references={concept: Path(folder) for concept, folder in _pairs(references, "--references").items()},
        identities=_pairs(identities, "--identity"),
        base=whole_path(base) if base else None,
        scorer=whole_path(scorer) if scorer else None,
        allow_unlisted=allow_unlisted,
    )
    job = prepare_evaluation(request)
    if dry_run:
        _print_values(describe_evaluation(job), as_json=as_json)
        return
    if ray_address and not no_ray:
        from jobs.remote_evaluation import submit_remote_evaluation

        _print_values(submit_remote_evaluation(request, job, ray_address, is_waiting=is_waiting), as_json=as_json)
        return
    outcome = run_here(job, ray_address=None, on_block=_say, use_ray=not no_ray)
    if as_json:
        print_json(vars(outcome))
    else:
        click.echo(f"{outcome.digest[:12]}  {outcome.num_rows} pictures scored, {outcome.num_found} blocks were there")
        click.echo(f"mos evaluation show {outcome.digest[:12]}", err=True)


def _print_values(values: Mapping[str, Any], *, as_json: bool) -> None:
    print_json(values) if as_json else click.echo("\n".join(f"{name:<18} {value}" for name, value in values.items()))


def _say(done: int, total: int) -> None:
    click.echo(f"evaluation: block {done} of {total}", err=True)


def _pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not rest:
            raise BadInputError(f"{option} {value!r}: expected {option} owner/name=..., such as alice/robot=robot:7")
        pairs[name] = rest
    return pairs
