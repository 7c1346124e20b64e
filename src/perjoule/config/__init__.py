"""Configuration: strict base class, YAML loader, ``key=value`` overrides, the source of each value."""

from perjoule.config.base import Component, Config, with_absolute_paths

__all__ = ["Component", "Config", "with_absolute_paths"]
