"""`mos registry`: create, index, verify and clean a registry."""

from typing import TYPE_CHECKING, Any

import click

from jobs.commands.concept import load_scorer
from jobs.concept_output import print_rows, report, report_withdrawn
from jobs.options import json_option, print_json, registry_option
from mos.concept import ConceptRef

if TYPE_CHECKING:
    from registry.client import Registry
    from registry.indexer import IndexReport, Scope


checked_base_option = click.option(
    "--base",
    metavar="PATH|ID",
    default=None,
    help="Also check tensors and norms against this base; small-world is the one that comes with mos.",
)


@click.group(no_args_is_help=True)
def command() -> None:
    """Create, index, verify and clean a registry."""


@command.command("init")
@click.argument("url", required=False)
@click.option("--policy", is_flag=True, help="Only print the IAM policies of an s3:// registry, as JSON.")
@click.option("--owner", "owners", multiple=True, help="With --policy: an owner to print one for; may be repeated.")
@click.option("--needs-approval", is_flag=True, help="List a version only when the administrator approves it.")
@registry_option
@json_option
def init(
    url: str | None, policy: bool, owners: tuple[str, ...], needs_approval: bool, registry_url: str, as_json: bool
) -> None:
    """Found a registry at URL (a directory or s3://bucket/prefix); its keys stay in MOS_HOME."""
    from registry.client import Registry
    from registry.objects import open_store
    from registry.policy import bucket_policy, identity_policies
    from registry.records import Limits

    url = url or registry_url
    if policy:
        principals = {owner: f"arn:aws:iam:::user/{owner}" for owner in owners}
        print_json(
            {
                "identity_policies": identity_policies(url, owners),
                "bucket_policy": bucket_policy(
                    url,
                    principals,
                    administrator="arn:aws:iam:::user/administrator",
                    indexer="arn:aws:iam:::user/indexer",
                ),
            }
        )
        return
    store = open_store(url, create=True)
    _refuse_existing(store)
    registry = Registry.over(store, create=True, limits=Limits(needs_approval=needs_approval))
    if as_json:
        print_json(_describe(registry))
        return
    click.echo(f"{registry.url}: founded; administrator {registry.record.administrator.key_id}")
    click.echo(f"mos: its administrator's and indexer's keys are in {registry.home.root}/keys; keep a copy", err=True)


@command.command("show")
@registry_option
@json_option
def show(registry_url: str, as_json: bool) -> None:
    """Show the registry's keys, limits and newest catalogue."""
    data = _describe(_open(registry_url))
    if as_json:
        print_json(data)
        return
    for name, value in data.items():
        click.echo(f"{name:<16} {value}")


@command.command("index")
@click.option("--sweep", is_flag=True, help="Look at everything, not only where publishers say.")
@click.option("--scorer", default=None, metavar="PATH|ID", help="Also embed previews with this CLIP model.")
@click.option("--embed", is_flag=True, help="Also embed previews with the small world's scorer.")
@checked_base_option
@registry_option
@json_option
def index(sweep: bool, scorer: str | None, embed: bool, base: str | None, registry_url: str, as_json: bool) -> None:
    """Bring the catalogue up to date; needs the indexer's key."""
    _index(registry_url, "sweep" if sweep else "hints", base, scorer, embed, as_json)


@command.command("rebuild")
@click.option("--scorer", default=None, metavar="PATH|ID", help="Also embed previews with this CLIP model.")
@click.option("--embed", is_flag=True, help="Also embed previews with the small world's scorer.")
@checked_base_option
@registry_option
@json_option
def rebuild(scorer: str | None, embed: bool, base: str | None, registry_url: str, as_json: bool) -> None:
    """Examine every version anew, files included; needs the indexer's key."""
    _index(registry_url, "rebuild", base, scorer, embed, as_json)


@command.command("verify")
@registry_option
@json_option
def verify(registry_url: str, as_json: bool) -> None:
    """Read everything again: signatures, every file's sha256, the chain of catalogues."""
    from registry.audit import audit

    report(*audit(_open(registry_url).shelf), as_json)


@command.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@registry_option
@json_option
def collect(dry_run: bool, registry_url: str, as_json: bool) -> None:
    """Remove what killed writers, deletions, expired runs and old catalogues left behind."""
    from registry.sweeping import sweep

    swept = sweep(_open(registry_url).shelf, dry_run=dry_run)
    for problem in swept.problems:
        click.echo(f"mos: {problem}", err=True)
    if as_json:
        print_json({**vars(swept), "dry_run": dry_run})
        return
    verb = "would remove" if dry_run else "removed"
    click.echo(f"{verb} {len(swept.keys)} objects, {swept.size_bytes} bytes, {swept.num_temporary} half-written files")


@command.command("affected")
@click.argument("ref")
@registry_option
@json_option
def affected(ref: str, registry_url: str, as_json: bool) -> None:
    """List the fusions that contain a concept, directly or through another fusion."""
    print_rows(_open(registry_url).affected(ConceptRef.parse(ref)), as_json)


@command.command("approve")
@click.argument("ref")
@registry_option
@json_option
def approve(ref: str, registry_url: str, as_json: bool) -> None:
    """Approve a checked version for listing; needs the administrator's key."""
    registry = _open(registry_url)
    approved = registry.withdraw(ConceptRef.parse(ref), "approve", registry.administrator.key)
    if registry.may_index:
        registry.index()
    report_withdrawn(approved, "approve", as_json)


@command.command("forget")
@click.argument("url")
@json_option
def forget(url: str, as_json: bool) -> None:
    """Forget what this home has seen of the registry at URL, for when it was really made anew."""
    from registry.home import Home
    from registry.objects import open_store

    Home().forget(open_store(url).url)
    if as_json:
        print_json({"url": url, "forgotten": True})
        return
    click.echo(f"{url}: forgotten")


def _open(url: str) -> "Registry":
    from registry.client import Registry

    return Registry.open(url)


def _refuse_existing(store: Any) -> None:
    from mos.errors import ConflictError
    from registry.layout import REGISTRY

    if store.head(REGISTRY) is not None:
        raise ConflictError(f"{store.url}: a registry is there already; use it, or choose another place")


def _describe(registry: "Registry") -> dict[str, Any]:
    snapshot = registry.shelf.catalogue().snapshot
    record = registry.record
    return {
        "url": registry.url,
        "registry_id": record.registry_id,
        "administrator": record.administrator.key_id,
        "indexer": record.indexer.key_id,
        "limits": record.limits.to_json(),
        "catalogue": snapshot.number,
        "catalogue_at": snapshot.at,
        "num_versions": snapshot.num_rows,
        "scorers": sorted(snapshot.embeddings),
    }


def _index(url: str, scope: "Scope", base: str | None, scorer: str | None, embed: bool, as_json: bool) -> None:
    registry = _open(url)
    bases = []
    if base is not None:
        from jobs.opening import open_base

        bases = [open_base(None if base == "small-world" else base).facts]
    scorers = [load_scorer(scorer)] if scorer or embed else []
    made: IndexReport = registry.index(scope, bases=bases, scorers=scorers)
    for problem in made.problems:
        click.echo(f"mos: {problem}", err=True)
    if as_json:
        print_json(vars(made))
        return
    states = ", ".join(f"{count} {state}" for state, count in made.states.items()) or "nothing new"
    click.echo(f"catalogue {made.snapshot}: {made.num_examined} examined, {made.num_changed} changed ({states})")
