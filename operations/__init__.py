"""The command line of the people who run the function: `python -m operations …`; not deployed."""
