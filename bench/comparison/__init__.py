"""What fairkern and others of its kind can do, feature by feature, tried: `python -m bench.comparison`.

`features.py` names the rows and the tools with their versions; a module per tool has one small function a cell;
`tried.py` runs those of one tool in an environment that has that tool alone, so nothing here but `ours.py` and
`__main__.py` imports fairkern. What is a claim about another tool's documents says which document.
"""
