"""Evaluation of a built model: used inside training and alone.

``loss`` is the held-out loss of training. Everything else begins with a run folder: ``trained`` builds its model again,
``run`` is ``perjoule evaluate`` and knows the evaluations, each of which returns the ``contract``'s findings.
"""
