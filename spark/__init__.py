"""Spark shells: session, ingest, term counts, reuse of vectors. DataFrame API and SQL functions alone, so that all of it also runs over
Spark Connect; no mathematics lives here, and nothing here imports ray_actors or jobs."""
