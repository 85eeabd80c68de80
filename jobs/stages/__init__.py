"""The stages of `topicscale run`, in order: ingest, embed, cluster, merge and refine, terms, publish."""
