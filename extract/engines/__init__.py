"""Who extracts: objects with one method, `fill(work)`, that yield clips once their shard is written.

embedder     encoders at work without a store: decode workers -> model threads -> embeddings; prediction uses it too
local        this machine: claim clips, embed them, write shards
devices      a process per device, each with a local engine
ray          a Ray cluster; `ray_stages` runs on its nodes, `ray_pools` divides them
"""
