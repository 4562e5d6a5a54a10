"""Numbers for the cores of a network that is to come near a target, in the norm of a metric."""
