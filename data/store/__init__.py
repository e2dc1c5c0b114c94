"""The store: embeddings in HDF5 shards.

hdf5           untrusted HDF5 files: each object is checked before libhdf5 reads it
shard          one shard, opened for reading: store format 2
shard_writer   writing a shard
shard_files    the files of a store: listed, opened, added, removed
lazy           rows that stay on disk until they are read
export         npz and parquet
store          the folder of shards: append, resume, read, verify, pack
"""
