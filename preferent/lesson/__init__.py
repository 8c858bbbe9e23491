"""The lesson: a little world of posts and summaries whose true preference is known, and the quickstart on it."""

from preferent.lesson.course import demonstrations, preferences, prompts, quickstart
from preferent.lesson.truth import faithful, true_scores, utility
from preferent.lesson.village import Facts, Post, facts_of, posts

__all__ = [
    "Facts",
    "Post",
    "demonstrations",
    "facts_of",
    "faithful",
    "posts",
    "preferences",
    "prompts",
    "quickstart",
    "true_scores",
    "utility",
]
