"""The control address of a running sandbox: win, break, watch, from commands, scripts and the dashboard.

    with ControlServer(ControlPanel(cloud), ...) as server:         # server.url, server.token
    Control.find().call("POST", "/win", {"count": 5})               # from another process of the same user

`panel` is what can be done, `server` offers it as JSON over HTTP on 127.0.0.1, `client` finds and calls it;
`run_folder` is the private folder of each run. The endpoints are documented in docs/sandbox.md. Nothing here depends on
the operator's commands.
"""
