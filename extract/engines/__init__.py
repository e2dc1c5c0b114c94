"""Engines: objects with one method, `fill(work)`, that yields counts of clips after their shard is written.

embedder     decode workers -> model threads -> embeddings, without a store; prediction uses it too
local        this machine: claim clips, embed them, write shards
devices      a process per device, each with a local engine
ray          a Ray cluster; `ray_stages` runs on its nodes, `ray_pools` divides them
"""
