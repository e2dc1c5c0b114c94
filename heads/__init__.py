"""Stage two: embeddings in, heads and figures out."""
