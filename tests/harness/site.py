"""The site, built by MkDocs in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from recipes._cookbook.catalogue import ROOT


def build(
    target: Path, *, config: Path = ROOT / "mkdocs.yml", site_url: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a strict build into `target`; the caller looks at the exit status."""
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "SITE_URL": site_url}
    # Not --quiet: it hides warnings from --strict, too, which then passes.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*command, "--config-file", str(config), "--site-dir", str(target)],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
    )


def built(target: Path, site_url: str = "") -> Path:
    """`target`, with the site in it."""
    if not target.exists():
        done = build(target, site_url=site_url)
        assert done.returncode == 0, done.stdout + done.stderr
    return target
