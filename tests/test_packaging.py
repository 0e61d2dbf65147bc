"""The repository as a plugin of Claude Code, and one version everywhere."""

import json
import re
import tomllib

from recipes._cookbook import skill
from recipes._cookbook.catalogue import ROOT

PLUGIN = ROOT / ".claude-plugin"


def test_the_version_is_the_same_everywhere() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    plugin = json.loads((PLUGIN / "plugin.json").read_text("utf-8"))
    manual = (skill.SKILL / "SKILL.md").read_text("utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    found = {
        pyproject["project"]["version"],
        plugin["version"],
        *re.findall(r'^  version: "(.+)"$', manual, re.MULTILINE),
        *re.findall(r"^## (\S+)", changelog, re.MULTILINE)[:1],
    }
    assert len(found) == 1, found


def test_the_marketplace_offers_the_plugin_that_holds_the_skill() -> None:
    marketplace = json.loads((PLUGIN / "marketplace.json").read_text("utf-8"))
    plugin = json.loads((PLUGIN / "plugin.json").read_text("utf-8"))
    assert marketplace["owner"]["name"]
    [offered] = marketplace["plugins"]
    assert offered["name"] == plugin["name"]
    assert offered["description"] == plugin["description"]
    root = (ROOT / offered["source"]).resolve()
    # A plugin's skills are the folders below `skills/` of its root.
    assert [path.parent for path in root.glob("skills/*/SKILL.md")] == [skill.SKILL]
