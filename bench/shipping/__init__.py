"""Language models of a dozen families: a folder in, a smaller folder out, and what opens it again."""
