"""A server of the models of a run, in the forms of OpenAI's API and of vLLM's additions to it."""
