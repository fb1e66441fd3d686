"""What the nets are trained and judged on: digits, glyphs, text, sentences."""
