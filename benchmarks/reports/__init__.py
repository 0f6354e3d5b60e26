"""Reports: tables, standings, figures and pages of result files."""
