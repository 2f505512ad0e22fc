"""Which forge a configuration names: one of ours, or anybody's as `package.module:Class`."""

from collections.abc import Mapping
from pathlib import Path

from coordinator.forges import Forge
from coordinator.forges.local import LocalForge
from swarm.config import ForgeChoice
from swarm.errors import ConfigError
from swarm.plugins import load_class

SHORT_NAMES = {
    "local": "coordinator.forges.local:LocalForge",
    "github": "coordinator.forges.github:GitHubForge",
}


def load(choice: ForgeChoice, folder: Path, environment: Mapping[str, str]) -> Forge:
    """Build the forge of the study in `folder`; a forge of your own is built as `Class(folder=..., options=...)`.

    Raises:
        ConfigError: unknown name, something that it needs is missing, or a class that these options do not build.
    """
    if choice.use == "local":
        return LocalForge(Path(choice.path) if choice.path else folder / "repo.git")
    if choice.use == "github":
        return _github(choice, environment.get("GITHUB_TOKEN", ""))
    cls = load_class("forge", choice.use, SHORT_NAMES)
    try:
        forge: Forge = cls(folder=folder, options=choice.options)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"forge {choice.use!r} cannot be built with the options {choice.options}: {error}; correct forge.options"
        ) from error
    return forge


def _github(choice: ForgeChoice, token: str) -> Forge:
    from coordinator.forges.github import GitHubForge  # PyGithub takes 0.3 s to import

    if not token or not choice.repository:
        missing = "forge.repository = owner/name" if token else "the environment variable GITHUB_TOKEN"
        raise ConfigError(f'forge "github" needs {missing}; without a token use forge "local"')
    return GitHubForge(choice.repository, token, base_url=choice.base_url, git_url=choice.git_url or None)
