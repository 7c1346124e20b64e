"""perjoule: train it, and know what it cost."""

__version__ = "0.1.0"
