"""Models in shards: several processes on gloo, each of which runs the cases of a module."""
