"""The commands that README.md tells a new user to run."""

from __future__ import annotations

import re


def commands(readme: str, mark: str) -> tuple[str, str]:
    """Of the line that README marks so ("main job", "tests"): the command that installs, and the one that runs."""
    (line,) = re.findall(rf"<!-- {mark} -->\n```bash\n(.*)\n```", readme)
    install, run = line.split(" && ")
    assert install.startswith("pip install "), line
    return install, run
