"""This tree beside another commit of the project: both built, measured in turn, and judged by their ratios."""
