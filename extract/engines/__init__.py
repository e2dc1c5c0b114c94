"""Who does the work: this process, several devices, a Ray cluster."""
