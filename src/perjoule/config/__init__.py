"""Configuration: strict base class, YAML loader, ``key=value`` overrides, the source of each value."""

from perjoule.config.base import Component, Config

__all__ = ["Component", "Config"]
