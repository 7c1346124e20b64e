"""What is left of a run, from its steps so far. Needs numpy and nothing else, so that training can afford it.

::

    live (while it trains) ──┐
                             ├─> Past ── rest.look_ahead ──> Outlook: steps, seconds, joules with 90 % intervals
    estimate RUN (a folder) ─┘              ├── series           seconds and joules of a step
                                            └── early_stopping   evaluations until patience ends

Stands below ``train``, whose progress line shows it, and below ``estimate``, which reads a run's folder for it.
"""
