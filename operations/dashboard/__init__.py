"""`operations dashboard`: a local web page over the same functions as the commands.

`collector` reads Service Bus and Dataverse in the background and keeps a snapshot, `actions` replays, discards and
retries with progress, `server` serves the page to this machine only. The page polls for the parts that have changed.
"""
