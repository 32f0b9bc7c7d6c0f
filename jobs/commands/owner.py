"""`mos owner`: make, enrol, rotate and revoke owners' keys."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.options import json_option, print_json, registry_option

if TYPE_CHECKING:
    from registry.client import Registry
    from registry.records import OwnerRecord


@click.group(no_args_is_help=True)
def command() -> None:
    """Make, enrol, rotate and revoke an owner's keys.

    The private key stays in MOS_HOME (~/.mos) of its owner; what is enrolled is the public one.
    """


@command.command("new")
@click.argument("name")
@json_option
def new(name: str, as_json: bool) -> None:
    """Make a key for owner NAME and print its public half."""
    from registry.home import Home
    from registry.keys import OwnerKey

    path = Home().owner_key_path(name)
    key = OwnerKey.create(name, path)
    _print_key(name, key.public.text, key.public.key_id, path, as_json)


@command.command("enrol")
@click.argument("name")
@click.option("--public-key", default=None, help="The owner's public key; default: of the key in MOS_HOME.")
@click.option("--max-versions", type=int, default=None, help="Quota of versions.")
@click.option("--max-bytes", type=int, default=None, help="Quota of bytes.")
@registry_option
@json_option
def enrol(
    name: str, public_key: str | None, max_versions: int | None, max_bytes: int | None, registry_url: str, as_json: bool
) -> None:
    """Enrol an owner in the registry; needs the administrator's key."""
    from registry.keys import PublicKey

    registry = _open(registry_url)
    public = PublicKey(public_key) if public_key else registry.home.owner_key(name).public
    record = registry.administrator.enrol(name, public, max_versions=max_versions, max_bytes=max_bytes)
    _print_record(record, as_json)


@command.command("rotate")
@click.argument("name")
@click.option("--public-key", default=None, help="The new public key; default: make a new key in MOS_HOME.")
@registry_option
@json_option
def rotate(name: str, public_key: str | None, registry_url: str, as_json: bool) -> None:
    """Replace an owner's key; versions signed with the old one stay verifiable. Needs the administrator's key."""
    from registry.keys import OwnerKey, PublicKey

    registry = _open(registry_url)
    administrator = registry.administrator
    if public_key:
        _print_record(administrator.rotate(name, PublicKey(public_key)), as_json)
        return
    path = registry.home.owner_key_path(name)
    old = OwnerKey.load(path)
    successor = OwnerKey.create(name, path.with_name(f"{name}.next.key"))
    record = administrator.rotate(name, successor.public)
    path.replace(path.with_name(f"{name}.{old.public.key_id}.key"))
    path.with_name(f"{name}.next.key").replace(path)
    _print_record(record, as_json)


@command.command("revoke")
@click.argument("name")
@click.option("--key-id", default=None, help="Which key; default: the active one.")
@click.option(
    "--since", default=None, metavar="TIME", help="Trusted until then, as 2026-11-22T21:55:00Z; default: now."
)
@registry_option
@json_option
def revoke(name: str, key_id: str | None, since: str | None, registry_url: str, as_json: bool) -> None:
    """Revoke a lost or stolen key: what was first seen later is no longer listed. Needs the administrator's key."""
    from registry.fields import check_time

    if since is not None:
        check_time(since, "--since")
    registry = _open(registry_url)
    record = registry.administrator.revoke(name, key_id, since)
    if registry.may_index:
        registry.index()
    _print_record(record, as_json)


@command.command("suspend")
@click.argument("name")
@click.option("--lift", is_flag=True, help="Lift the suspension.")
@registry_option
@json_option
def suspend(name: str, lift: bool, registry_url: str, as_json: bool) -> None:
    """Take an owner's versions out of the listing, or back in. Needs the administrator's key."""
    registry = _open(registry_url)
    record = registry.administrator.set_standing(name, suspended=not lift)
    if registry.may_index:
        registry.index()
    _print_record(record, as_json)


@command.command("quota")
@click.argument("name")
@click.option("--max-versions", type=click.IntRange(min=1), default=None, help="Quota of versions.")
@click.option("--max-bytes", type=click.IntRange(min=1), default=None, help="Quota of bytes.")
@registry_option
@json_option
def quota(name: str, max_versions: int | None, max_bytes: int | None, registry_url: str, as_json: bool) -> None:
    """Set an owner's quota. Needs the administrator's key."""
    registry = _open(registry_url)
    _print_record(registry.administrator.set_standing(name, max_versions=max_versions, max_bytes=max_bytes), as_json)


@command.command("show")
@click.argument("name")
@registry_option
@json_option
def show(name: str, registry_url: str, as_json: bool) -> None:
    """Show an owner's keys, quota and standing."""
    _print_record(_open(registry_url).shelf.owner(name), as_json)


@command.command("grant")
@click.argument("ref")
@click.option("--run-id", required=True, help="The run that may publish.")
@click.option("--spec-sha256", required=True, help="Digest of what was submitted.")
@click.option("--publisher", required=True, metavar="KEY", help="Public key of the cluster that will sign.")
@click.option("--days", default=7, show_default=True, help="For how long.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to write the grant.")
@json_option
def grant(ref: str, run_id: str, spec_sha256: str, publisher: str, days: int, out: Path, as_json: bool) -> None:
    """Let one run publish REF (owner/name) while you are away."""
    import time

    from mos.concept import ConceptRef
    from registry.fields import format_time
    from registry.grant import Grant
    from registry.home import Home, write_atomically
    from registry.keys import PublicKey

    target = ConceptRef.parse(ref)
    made = Grant(
        ref=target,
        run_id=run_id,
        spec_sha256=spec_sha256,
        publisher=PublicKey(publisher),
        expires_at=format_time(time.time() + days * 86_400),
    )
    write_atomically(out, made.sign(Home().owner_key(target.owner)).to_bytes())
    if as_json:
        print_json({"path": str(out), "ref": str(target), "run_id": run_id, "expires_at": made.expires_at})
        return
    click.echo(f"{out}: run {run_id} may publish {ref} until {made.expires_at}")


def _open(url: str) -> "Registry":
    from registry.client import Registry

    return Registry.open(url)


def _print_key(name: str, public: str, key_id: str, path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"owner": name, "public_key": public, "key_id": key_id, "path": str(path)})
        return
    click.echo(f"{name} {public}")
    click.echo(f"mos: private key in {path}; keep a copy where nobody else reads it", err=True)


def _print_record(record: "OwnerRecord", as_json: bool) -> None:
    data: dict[str, Any] = {
        "owner": record.owner,
        "serial": record.serial,
        "suspended": record.suspended,
        "max_versions": record.max_versions,
        "max_bytes": record.max_bytes,
        "keys": [{**key.to_json(), "key_id": key.public.key_id} for key in record.keys],
    }
    if as_json:
        print_json(data)
        return
    click.echo(f"{record.owner}{' (suspended)' if record.suspended else ''}")
    for key in record.keys:
        ended = f" {key.ended_at}" if key.ended_at else ""
        click.echo(f"  {key.public.key_id} {key.status}{ended}  {key.public.text}")
