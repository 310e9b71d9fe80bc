"""Runs vision-language-action policies: observes, infers in a worker process, schedules chunks."""
