"""Our Hydra plugins. Hydra accepts only classes below `hydra_plugins`, a folder that the layout does not have."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin

from rlaif.app.home import CONF
from rlaif.app.search.sweeper import OptunaSweeper
from rlaif.app.sweep.grid import GridSweeper

OURS: dict[str, type[Plugin]] = {
    "hydra_plugins.rlaif.GridSweeper": GridSweeper,
    "hydra_plugins.rlaif.OptunaSweeper": OptunaSweeper,
}
"""By the `_target_` of their file in conf/hydra/."""


def register_plugins() -> None:
    """Let Hydra find our plugins. The classes keep their own module, by which processes of launchers import them."""
    known = Plugins.instance()
    for target, plugin in OURS.items():
        known.register(plugin)
        known.class_name_to_class[target] = plugin
    # Hydra would merge its own defaults below a file of ours of the same name, and warn that it does.
    theirs = ConfigStore.instance().repo.get("hydra", {})
    for group in ("launcher", "sweeper"):
        for file in (CONF / "hydra" / group).glob("*.yaml"):
            theirs.get(group, {}).pop(file.name, None)
