"""Stage one: clips in, embeddings out."""
