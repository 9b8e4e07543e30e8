"""A server of one exported model with the routes of the OpenAI API."""
