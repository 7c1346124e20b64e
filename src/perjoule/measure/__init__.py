"""Measuring: the recorder of phases, memory, and facts about the machine. Never imports torch."""
