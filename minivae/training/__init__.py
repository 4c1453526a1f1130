"""The update, the loop around it, and all that a run directory holds."""
