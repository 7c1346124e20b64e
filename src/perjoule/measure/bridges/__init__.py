"""Bridges to what people already use: the course toolkit's TrainerStats, Hugging Face's Trainer, CodeCarbon.

Each works in one direction or both: their code runs in our loop, or our ledger is kept for their loop. Nothing of
theirs is imported before it is asked for.
"""
