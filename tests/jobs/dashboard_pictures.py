"""Pictures of Ray's dashboard for docs: `python -m tests.jobs.dashboard_pictures jobs actors --out docs/cluster`.

The head is the one `mos cluster up` started here; something should be running on it.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.head import find_head
from mos.errors import NotFoundError
from tests.jobs.browser import Browser


def main(arguments: Sequence[str] | None = None) -> int:
    """Take one picture a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", help="such as jobs, actors, cluster, or jobs/RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settle-s", type=float, default=8.0, help="time for a page to fetch its tables")
    parser.add_argument("--height", type=int, default=760)
    options = parser.parse_args(arguments)
    head = find_head()
    if head is None:
        raise NotFoundError("no head was started here; `mos cluster up` starts one")
    cookies = {"ray-authentication-token": Path(head.token_path).read_text()}
    options.out.mkdir(parents=True, exist_ok=True)
    for page in options.pages:
        with Browser() as browser:
            browser.visit(f"{head.dashboard_url}/#/{page}", cookies=cookies)
            time.sleep(options.settle_s)
            browser.picture(options.out / f"{page.replace('/', '-')}.png", width=1280, height=options.height)
    return 0


if __name__ == "__main__":
    sys.exit(main())
