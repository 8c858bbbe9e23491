"""Exports of people's feedback: thumbs, votes, ratings and rankings as chat programs and labelling tools write them."""
