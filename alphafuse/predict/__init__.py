"""A trained run at work: labels for clips, what decided them, a folder that travels."""
