"""`operations dashboard`: a local web page over the same functions as the commands.

`collector` reads Service Bus and Dataverse in the background and keeps a snapshot, `application` replays, discards and
retries, `jobs` runs these one after the other and keeps their progress, `server` serves the page to this machine only.
The page polls for the parts that have changed.
"""
