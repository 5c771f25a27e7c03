"""Results files and what is made of them: tables, figures, a report. Reads results.json files and nothing else."""
