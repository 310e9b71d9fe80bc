"""Setup of the workspace with nothing but Python's standard library: it runs before anything is installed.

``state`` knows where things lie and what is already done, ``process`` runs commands and shows their progress,
``steps`` are the things to do, ``environment`` writes the shell file that every ``vla`` command sources.
"""
