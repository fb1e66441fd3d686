"""Plans as data: built from removed units, priced, added up over several steps, and named after the cut.

Imports neither torch nor a model.
"""
