"""Language models that name topics: prompts, backends, and what is done with their answers."""
