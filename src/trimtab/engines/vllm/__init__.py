"""Guides inside vLLM: base and guides share its batching, caches and workers, and each request has its own weights.

`packing` writes a directory that vLLM loads; `plugin` tells vLLM what it is; `composite` is the network; `admission`
reads a request's weights, in the front end and in the workers; `engine` drives it all offline. Nothing here imports
vLLM until it is needed.
"""
