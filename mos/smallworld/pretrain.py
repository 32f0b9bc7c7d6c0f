"""Train the small world's weights from a seed: `python -m mos.smallworld.pretrain --help`."""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mos.errors import BadInputError, ConflictError, MosError, NotFoundError
from mos.smallworld.autoencoder import AutoencoderConfig, train_autoencoder
from mos.smallworld.base import BaseConfig, train_base
from mos.smallworld.decoder import DecoderConfig, train_decoder
from mos.smallworld.probe_training import ProbeConfig, train_probe
from mos.smallworld.scorer import ScorerConfig, train_scorer
from mos.smallworld.world import World, load_world

STAGES = ("autoencoder", "decoder", "probe", "scorer", "base")
EXPORTED = ("base", "scorer", "probe")
_SHORT = ("probe", "scorer")
"""Stages without checkpoints: done or not."""

_LOGS = ("autoencoder.jsonl", "decoder.jsonl", "probe.jsonl", "scorer.jsonl", "base.jsonl")


def main(arguments: list[str] | None = None) -> int:
    """Run the stages asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except MosError as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def export_weights(directory: Path, destination: Path, *, seed: int) -> Path:
    """Copy the trained parts to `destination` and write `record.json`: seed, logs and sha256 of every file.

    Raises:
        NotFoundError: If a part has not been trained in `directory`.
    """
    missing = [part for part in EXPORTED if not (directory / part).is_dir()]
    if missing:
        raise NotFoundError(f"{directory}: {', '.join(missing)} not trained yet; run the stages first")
    for part in EXPORTED:
        shutil.rmtree(destination / part, ignore_errors=True)
        shutil.copytree(directory / part, destination / part)
    for config in sorted(destination.rglob("config.json")):
        _forget_place(config)
    logs = {name: _lines(directory / name) for name in _LOGS}
    digests = {
        str(path.relative_to(destination)): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in EXPORTED
        for path in sorted((destination / part).rglob("*"))
        if path.is_file()
    }
    record = {
        "seed": seed,
        "torch": str(torch.__version__),
        "stages": {name.removesuffix(".jsonl"): lines[-1] for name, lines in logs.items() if lines},
        "sha256": digests,
    }
    (destination / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return destination


def _forget_place(config: Path) -> None:
    """Take out of a config where on this machine the part was loaded from."""
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _run(options: argparse.Namespace) -> None:
    world = load_world(options.world)
    directory: Path = options.out
    directory.mkdir(parents=True, exist_ok=True)
    if options.from_weights is not None:
        _adopt(options.from_weights, directory)
    chosen: dict[str, tuple[str, ...]] = {"all": STAGES, "export": ()}
    stages = chosen.get(options.stage, (options.stage,))
    _refuse_to_overwrite(directory, stages, options)
    for stage in stages:
        if options.resume and stage in _SHORT and (directory / stage).is_dir():
            continue
        print(f"pretrain: {stage} into {directory}", file=sys.stderr, flush=True)
        _STAGE_RUNS[stage](directory, world, options)
    if options.export is not None:
        print(export_weights(directory, options.export, seed=options.seed))


def _refuse_to_overwrite(directory: Path, stages: tuple[str, ...], options: argparse.Namespace) -> None:
    """Hours of training are not replaced because somebody forgot an option."""
    there = [stage for stage in stages if (directory / stage).is_dir() or (directory / f"{stage}.ckpt").exists()]
    is_adopted = options.from_weights is not None
    there = [stage for stage in there if not (is_adopted and stage == "autoencoder")]
    if there and not options.resume:
        raise ConflictError(
            f"{directory}: {', '.join(there)} already trained there; add --resume to go on, "
            "--stage export to copy what is there, or choose another --out"
        )


def _adopt(weights: Path, directory: Path) -> None:
    """Take the autoencoder of existing weights, so that their U-Net goes on in the same latents."""
    source = weights / "base" / "vae"
    if not source.is_dir():
        raise NotFoundError(f"{weights}: no base/vae there; --from-weights wants a folder of exported weights")
    if not (directory / "autoencoder").exists():
        shutil.copytree(source, directory / "autoencoder")


def _autoencoder(directory: Path, world: World, options: argparse.Namespace) -> None:
    if options.from_weights is None:
        config = _adjusted(AutoencoderConfig(), options)
        train_autoencoder(directory, world, config, seed=options.seed, resume=options.resume, device=options.device)


def _decoder(directory: Path, world: World, options: argparse.Namespace) -> None:
    _need_autoencoder(directory)
    config = _adjusted(DecoderConfig(), options)
    train_decoder(directory, world, config, seed=options.seed, resume=options.resume, device=options.device)


def _probe(directory: Path, world: World, options: argparse.Namespace) -> None:
    train_probe(directory, world, _adjusted(ProbeConfig(), options), seed=options.seed, device=options.device)


def _scorer(directory: Path, world: World, options: argparse.Namespace) -> None:
    train_scorer(
        directory,
        world,
        _adjusted(ScorerConfig(), options),
        seed=options.seed,
        device=options.device,
        from_weights=options.from_weights and options.from_weights / "scorer",
    )


def _base(directory: Path, world: World, options: argparse.Namespace) -> None:
    _need_autoencoder(directory)
    train_base(
        directory,
        world,
        _adjusted(BaseConfig(), options),
        seed=options.seed,
        resume=options.resume,
        device=options.device,
        from_weights=options.from_weights and options.from_weights / "base",
    )


def _need_autoencoder(directory: Path) -> None:
    if not (directory / "autoencoder").is_dir():
        raise NotFoundError(f"{directory}: no autoencoder yet; run --stage autoencoder first")


def _adjusted(config: Any, options: argparse.Namespace) -> Any:
    """The stage's recipe with the steps, workers and shards named on the command line."""
    named = {
        "steps": options.steps,
        "num_workers": options.workers,
        "num_shards": options.shards,
        "alike_share": options.alike_share,
    }
    changes = {key: value for key, value in named.items() if value is not None and hasattr(config, key)}
    alike_share = changes.get("alike_share", 0.5)
    if any(value < 1 for name, value in changes.items() if name != "alike_share"):
        raise BadInputError(f"pretrain: {changes}: steps, workers and shards must be at least 1")
    if not 0 <= alike_share <= 1:
        raise BadInputError(f"pretrain: --alike-share {alike_share} must be between 0 and 1")
    if options.device != "cpu" and hasattr(config, "num_workers"):
        changes["num_workers"] = 1
    return replace(config, **changes)


def _lines(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mos.smallworld.pretrain", description=__doc__)
    parser.add_argument("--stage", choices=("all", *STAGES, "export"), default="all")
    parser.add_argument("--out", type=Path, default=Path.home() / ".cache" / "mos" / "smallworld")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--from-weights", type=Path, help="start from exported weights instead of noise")
    parser.add_argument("--export", type=Path, help="copy the trained parts here with their digests")
    parser.add_argument("--world", type=Path, help="world file (TOML); default: the shipped world")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, help="steps of the stage, each worker")
    parser.add_argument("--workers", type=int, help="processes of one thread (CPU only)")
    parser.add_argument("--shards", type=int, help="shards of 2048 pictures")
    parser.add_argument("--alike-share", type=float, help="share of dotted and checked among single subjects")
    return parser


_STAGE_RUNS: dict[str, Callable[[Path, World, argparse.Namespace], None]] = {
    "autoencoder": _autoencoder,
    "decoder": _decoder,
    "probe": _probe,
    "scorer": _scorer,
    "base": _base,
}

if __name__ == "__main__":
    sys.exit(main())
