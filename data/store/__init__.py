"""What is cached: embeddings in HDF5 shards."""
