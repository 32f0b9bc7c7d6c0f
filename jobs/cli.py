"""The `mos` command: a table of subcommands, each imported only when it is called."""

import errno
import importlib
import os
import signal
import sys
from typing import NoReturn

import click

from mos.errors import BadInputError, MosError, TryAgainError

EXAMPLES = """
\b
The main job, from pictures to a picture of three concepts together:
  mos submit concept --owner alice --name robot --class robot --pictures photos/
  mos fuse --from-registry alice/robot bob/cat carol/house --out fused/
  mos sample fused/ "a robot and a cat and a house on the beach" \\
      --region "<alice-robot> @ 0,0,0.5,0.5" \\
      --region "<bob-cat> @ 0.5,0,1,0.5" \\
      --region "<carol-house> @ 0.25,0.5,0.75,1"

\b
See all of it happen on this machine:
  mos demo
"""

COMMANDS: dict[str, tuple[str, str]] = {
    "submit": ("jobs.commands.submit", "Submit a concept, a fusion or an evaluation as a job."),
    "fuse": ("jobs.commands.fuse", "Fuse concepts of the registry into one model."),
    "sample": ("jobs.commands.sample", "Draw pictures, with a region for each concept if asked."),
    "concept": ("jobs.commands.concept", "List, show, search, publish, pull and withdraw concepts."),
    "owner": ("jobs.commands.owner", "Make, enrol, rotate and revoke an owner's keys."),
    "registry": ("jobs.commands.registry", "Create, index, verify and clean a registry."),
    "jobs": ("jobs.commands.jobs", "List, follow, wait for, cancel and retry jobs."),
    "evaluation": ("jobs.commands.evaluation", "Show, compare and report evaluations."),
    "data": ("jobs.commands.data", "Check a folder of pictures before training."),
    "import": ("jobs.commands.importing", "Turn a LoRA or embedding of another tool into a concept."),
    "export": ("jobs.commands.exporting", "Write a concept or fused model for another tool."),
    "cluster": ("jobs.commands.cluster", "Start, look at and stop a local Ray head."),
    "doctor": ("jobs.commands.doctor", "Name what is missing on this machine."),
    "demo": ("jobs.commands.demo", "Run the whole marketplace on this machine and write a report."),
}
"""Command name -> (module with a click command `command`, one-line help)."""


class LazyGroup(click.Group):
    """A group whose help comes from a table, so that listing commands imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name][0]}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing any command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mos", prog_name="mos")
def cli() -> None:
    """Train concepts apart, share them in a registry, fuse them, and draw them together."""


def as_mos_error(error: OSError) -> MosError:
    """What the operating system refused in one line: the file where it is known, the cause, the remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TryAgainError("the disk is full; nothing half-written was kept; free some space and run it again")
    cause = error.strerror or str(error)
    return BadInputError(f"{error.filename}: {cause}" if error.filename else cause)


def main() -> NoReturn:
    """Run the command line; one line on stderr and the error's exit code when something is wrong."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")  # read when they are imported, here and in the processes of Ray
    terminated: list[int] = []

    def terminate(*_: object) -> None:
        terminated.append(143)
        sys.exit(143)

    signal.signal(signal.SIGTERM, terminate)
    try:
        cli.main(standalone_mode=False)
    except SystemExit as end:
        sys.exit(terminated[0] if terminated else end.code)  # Ray makes 1 of the code if it is interrupted
    except MosError as error:
        click.echo(f"mos: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("mos: interrupted", err=True)
        sys.exit(130)
    except OSError as error:
        refused = as_mos_error(error)
        click.echo(f"mos: {refused}", err=True)
        sys.exit(refused.exit_code)
    sys.exit(0)


if __name__ == "__main__":
    main()
