"""The checks of the exercises, a module a lesson. Each says what is wrong with an answer; none says the answer."""
