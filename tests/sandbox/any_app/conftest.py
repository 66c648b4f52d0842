# The project has an environment of its own, and tests of its own, which test_any_app.py runs there.
collect_ignore = ["project"]
