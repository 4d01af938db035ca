"""Feedback of a model in place of people's: what a judge is asked, and what its answers are worth."""
