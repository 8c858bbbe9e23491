"""A comparison in the formats of others: LLM Comparator, AlpacaEval, preference rows, CSV."""
