"""Shared blocks of language models."""
