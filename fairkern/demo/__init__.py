"""`fairkern demo`: train, score, plan and cut two small networks on real handwritten digits."""
