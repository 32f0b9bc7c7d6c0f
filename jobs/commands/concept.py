"""`mos concept`: list, show, search, publish, pull, verify and withdraw concepts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.concept_output import as_line, describe, lock_entry, print_rows, report, report_withdrawn
from jobs.options import json_option, print_json, registry_option
from mos.concept import ConceptRef

if TYPE_CHECKING:
    from registry.client import Registry
    from registry.event import Action


@click.group(no_args_is_help=True)
def command() -> None:
    """List, show, search, publish, pull and withdraw concepts."""


@command.command("ls")
@click.argument("owner", required=False)
@click.option("--all", "every", is_flag=True, help="Every version in every state, not only the newest listed.")
@click.option("--limit", default=100, show_default=True, help="At most this many.")
@registry_option
@json_option
def list_concepts(owner: str | None, every: bool, limit: int, registry_url: str, as_json: bool) -> None:
    """List concepts, all or those of OWNER."""
    from registry.search import Query

    query = Query(owner=owner, state=None if every else "listed", all_versions=every, limit=limit)
    print_rows(_open(registry_url).search(query), as_json)


@command.command("search")
@click.argument("text", nargs=-1)
@click.option("--tag", default=None, help="Has this tag.")
@click.option("--base", default=None, help="Name, family or fingerprint of the base it was trained on.")
@click.option("--owner", default=None, help="Belongs to this owner.")
@click.option("--licence", default=None, help="Has this licence, such as cc-by-4.0.")
@click.option("--commercial/--no-commercial", "commercial_use", default=None, help="Commercial use allowed or not.")
@click.option("--mergeable/--no-mergeable", "derivatives", default=None, help="Fusing allowed or not.")
@click.option("--kind", type=click.Choice(["concept", "fusion"]), default=None, help="Only these.")
@click.option("--like", type=click.Path(path_type=Path), default=None, help="Looks like this picture.")
@click.option("--prompt", default=None, help="Looks like what this prompt says.")
@click.option("--scorer", default=None, metavar="PATH|ID", help="CLIP model that compares; default: the small world's.")
@click.option("--limit", default=20, show_default=True, help="At most this many.")
@registry_option
@json_option
def search(
    text: tuple[str, ...],
    like: Path | None,
    prompt: str | None,
    scorer: str | None,
    limit: int,
    registry_url: str,
    as_json: bool,
    **filters: Any,
) -> None:
    """Find listed concepts by words, filters, a picture or a prompt."""
    from registry.search import Query

    registry = _open(registry_url)
    query = Query(text=" ".join(text), limit=limit, **filters)
    if like is None and prompt is None:
        print_rows(registry.search(query), as_json, registry=registry)
        return
    images = [] if like is None else [read_picture(like)]
    hits = registry.similar(load_scorer(scorer), images=images, prompts=[prompt] if prompt else [], query=query)
    print_rows([row for row, _ in hits], as_json, [closeness for _, closeness in hits], registry=registry)


@command.command("show")
@click.argument("ref")
@registry_option
@json_option
def show(ref: str, registry_url: str, as_json: bool) -> None:
    """Show one version: what it is, its state, its licence, its files. REF is owner/name or owner/name@version."""
    from jobs.evaluate_signing import one_line, verified_scores

    registry = _open(registry_url)
    found = registry.resolve(ref, allow_unlisted=True)
    data = describe(found)
    data["evaluation"] = verified_scores(registry, found.ref, found.weights_sha256)
    if as_json:
        print_json(data)
        return
    data["evaluation"] = one_line(data["evaluation"])
    for name, value in data.items():
        if value not in ("", [], {}, None):
            click.echo(f"{name:<16} {as_line(value)}")


@command.command("resolve")
@click.argument("ref")
@click.option("--allow-unlisted", is_flag=True, help="Take it even if it is not listed.")
@registry_option
@json_option
def resolve(ref: str, allow_unlisted: bool, registry_url: str, as_json: bool) -> None:
    """Say which version REF is now, with its digests: what a lockfile pins. Refuses what is not listed."""
    entry = lock_entry(_open(registry_url).resolve(ref, allow_unlisted=allow_unlisted))
    if as_json:
        print_json(entry)
        return
    click.echo(" ".join(entry.values()))


@command.command("publish")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("ref")
@click.option("--run-id", default=None, help="The run that made it; the same run is one version. Default: its sha256.")
@click.option("--licence", default="cc-by-4.0", show_default=True, help="Its terms.")
@click.option("--credit", multiple=True, help="Whom to name; may be repeated.")
@click.option("--person", default=None, help="A name or pseudonym of the person depicted.")
@click.option(
    "--consent", type=click.Path(path_type=Path), default=None, help="The consent record; only its sha256 is published."
)
@click.option("--title", default="", help="One line.")
@click.option("--description", default="", help="A paragraph.")
@click.option("--tag", "tags", multiple=True, help="A word to find it by; may be repeated.")
@click.option(
    "--preview", "previews", multiple=True, type=click.Path(path_type=Path), help="A picture; may be repeated."
)
@click.option("--no-index", is_flag=True, help="Leave listing it to the indexer, even if its key is here.")
@registry_option
@json_option
def publish(
    path: Path,
    ref: str,
    run_id: str | None,
    licence: str,
    credit: tuple[str, ...],
    person: str | None,
    consent: Path | None,
    title: str,
    description: str,
    tags: tuple[str, ...],
    previews: tuple[Path, ...],
    no_index: bool,
    registry_url: str,
    as_json: bool,
) -> None:
    """Publish an ED-LoRA file, or the folder of a fused model, as the next version of REF (owner/name)."""
    from registry.client import Details

    registry = _open(registry_url)
    target = ConceptRef.parse(ref)
    key = registry.home.owner_key(target.owner)
    published = registry.publish(
        path,
        target,
        key=key,
        run_id=run_id or _run_id_of(path),
        licence=_licence(licence, credit, person, consent),
        details=Details(title=title, description=description, tags=tags, previews=previews),
    )
    state = "uploaded"
    if registry.may_index and not no_index:
        registry.index()
        row = registry.shelf.catalogue().version(published)
        state = "uploaded" if row is None else f"{row.state}{f': {row.reason}' if row.reason else ''}"
    if as_json:
        print_json({"ref": str(published), "state": state, "licence": licence})
        return
    click.echo(f"{published} {state} ({licence})")


@command.command("pull")
@click.argument("ref")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Copy it here; default: only the cache.")
@click.option("--allow-unlisted", is_flag=True, help="Take it even if it is not listed.")
@registry_option
@json_option
def pull(ref: str, out: Path | None, allow_unlisted: bool, registry_url: str, as_json: bool) -> None:
    """Fetch a version, verified, and print where it is."""
    registry = _open(registry_url)
    found = registry.resolve(ref, allow_unlisted=allow_unlisted)
    path = registry.pull(found)
    if out is not None:
        path = copy_out(path, out)
    if found.state != "listed":
        click.echo(f"mos: {found.ref} is {found.state.value}, not listed", err=True)
    if as_json:
        print_json({"ref": str(found.ref), "path": str(path), "weights_sha256": found.weights_sha256})
        return
    click.echo(str(path))


@command.command("verify")
@click.argument("refs", nargs=-1, required=True)
@registry_option
@json_option
def verify(refs: tuple[str, ...], registry_url: str, as_json: bool) -> None:
    """Read versions again and check signatures and every file's sha256."""
    from registry.audit import audit

    report(*audit(_open(registry_url).shelf, [ConceptRef.parse(ref) for ref in refs]), as_json)


@command.command("yank")
@click.argument("ref")
@click.option("--reason", default="", help="For those who ask why.")
@registry_option
@json_option
def yank(ref: str, reason: str, registry_url: str, as_json: bool) -> None:
    """Hide a version, or all versions of a concept; unyank brings it back."""
    report_withdrawn(_withdraw(registry_url, ref, "yank", reason), "yank", as_json)


@command.command("unyank")
@click.argument("ref")
@registry_option
@json_option
def unyank(ref: str, registry_url: str, as_json: bool) -> None:
    """Show a version again that was yanked."""
    report_withdrawn(_withdraw(registry_url, ref, "unyank", ""), "unyank", as_json)


@command.command("delete")
@click.argument("ref")
@click.option("--reason", default="", help="Such as: consent withdrawn.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@registry_option
@json_option
def delete(ref: str, reason: str, yes: bool, registry_url: str, as_json: bool) -> None:
    """Remove the bytes of a version, or of all versions of a concept, for good; a tombstone stays.

    What its run left goes with it, and the pictures of it in evaluations. Fused models that contain it are named.
    """
    from registry.errors import ObjectMissingError

    if not yes:
        click.confirm(f"Delete {ref} for good?", abort=True, err=True)
    withdrawn = _withdraw(registry_url, ref, "delete", reason)
    try:
        fusions = [str(row.ref) for row in _open(registry_url).affected(ConceptRef.parse(ref))]
    except ObjectMissingError:
        fusions = []
    num_pictures = _forget_pictures(registry_url, withdrawn)
    report_withdrawn(withdrawn, "delete", as_json, affected=fusions, num_pictures=num_pictures)
    if num_pictures:
        click.echo(f"mos: {num_pictures} pictures of it in evaluations removed", err=True)
    for fusion in fusions:
        click.echo(f"mos: {fusion} was fused from it", err=True)


def load_scorer(path_or_id: str | None) -> Any:
    """A CLIP scorer, loaded without a progress bar; the small world's own if none is named."""
    import transformers

    from mos.evaluation.scorer import ClipScorer

    transformers.utils.logging.disable_progress_bar()
    if path_or_id is not None:
        return ClipScorer.load(path_or_id)
    from mos.smallworld.assets import scorer_path

    scorer = ClipScorer.load(scorer_path())
    scorer.name = "small-world"
    return scorer


def read_picture(path: Path) -> Any:
    """A picture from a file.

    Raises:
        NotFoundError: If it is not there.
        BadInputError: If it cannot be read.
    """
    from PIL import Image

    from mos.errors import BadInputError, NotFoundError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such picture") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInputError(f"{path}: cannot be read as a picture") from error


def copy_out(path: Path, out: Path) -> Path:
    """Copy a pulled file or folder to where its user wants it.

    Raises:
        ConflictError: If something is there already.
    """
    import shutil

    from mos.errors import ConflictError

    if path.is_dir():
        if out.exists():
            raise ConflictError(f"{out}: something is there already; choose another place")
        shutil.copytree(path, out)
        return out
    target = out / f"{path.stem[:12]}.safetensors" if out.is_dir() else out
    if target.exists() and target.read_bytes() != path.read_bytes():
        raise ConflictError(f"{target}: something else is there already; choose another place")
    shutil.copyfile(path, target)
    return target


def _open(url: str) -> "Registry":
    from registry.client import Registry

    return Registry.open(url)


def _withdraw(url: str, ref: str, action: "Action", reason: str) -> list[ConceptRef]:
    registry = _open(url)
    target = ConceptRef.parse(ref)
    own = registry.home.has_owner_key(target.owner)
    key = registry.home.owner_key(target.owner) if own else registry.administrator.key
    withdrawn = registry.withdraw(target, action, key, reason)
    if registry.may_index:
        registry.index()
    return withdrawn


def _forget_pictures(url: str, refs: list[ConceptRef]) -> int:
    """Remove what evaluations drew of versions, as far as this machine's credentials reach."""
    from mos.errors import NotAllowedError
    from registry.objects import open_store

    if next(iter(open_store(url).list("evaluations/")), None) is None:  # so that cluster need not be imported
        return 0
    from cluster.evaluation import forget_pictures

    try:
        return forget_pictures(url, [str(ref) for ref in refs])
    except NotAllowedError as error:
        click.echo(f"mos: pictures of it in evaluations stay: {error}", err=True)
        return 0


def _licence(name: str, credit: tuple[str, ...], person: str | None, consent: Path | None) -> Any:
    from mos.errors import NotFoundError, UsageError
    from registry.documents import sha256_hex
    from registry.licence import Licence, Person

    if consent is not None and person is None:
        raise UsageError("--consent needs --person: whose consent is it?")
    if consent is not None and not consent.is_file():
        raise NotFoundError(f"{consent}: no such consent record")
    digest = None if consent is None else sha256_hex(consent.read_bytes())
    persons = [] if person is None else [Person(label=person, consent_sha256=digest)]
    return Licence.named(name, credit=credit, persons=persons)


def _run_id_of(path: Path) -> str:
    """A run id for something made elsewhere: what it contains."""
    from mos.errors import NotFoundError
    from registry.documents import sha256_hex

    files = [path] if path.is_file() else sorted(one for one in path.glob("*") if one.is_file())
    if not files:
        raise NotFoundError(f"{path}: nothing there to publish")
    return "file-" + sha256_hex("".join(sha256_hex(one.read_bytes()) for one in files).encode())[:16]
