"""Ray shells: cluster start-up, the bounded worker pool, and one thin file per kind of work. No mathematics, no Spark."""
