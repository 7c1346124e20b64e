"""Things with no opinion: errors, shelves, phases, units, seeds. Imports nothing of ours, never torch."""
