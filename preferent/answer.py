"""Answers to prompts in files, whoever wrote them: read in any format, and joined by prompt."""
