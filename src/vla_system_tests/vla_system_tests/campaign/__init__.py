"""`./vla campaign safety`: the long proofs of the safety filter, resumable part by part, and a report of the counts."""
