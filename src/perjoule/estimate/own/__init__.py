"""What our own recipes and runs will cost: before they start on this machine, and while they run.

::

    recipe ── counting ──> Work ──┐                                     (FLOPs, bytes, calls of a step; imports torch)
    calibration ──> Sample … ── machine.fit ──> StepModel ── recipe ──> time, energy, carbon, cost, memory
                                                                └─ alternatives: what a change would save
    run folder ── remaining ──> series.forecast ──> time, energy, carbon that are left

``verb`` turns all of it into the lines of ``perjoule estimate``. Only ``counting`` imports torch.
"""
