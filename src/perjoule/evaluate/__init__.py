"""Evaluation of a built model: used inside training and alone."""
