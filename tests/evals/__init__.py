"""The evaluations of the skill: each task of `evals.json` has a grader here."""
