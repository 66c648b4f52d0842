"""Azure on one machine, for tests and demonstrations.

Service Bus, Dataverse, managed identity and a Functions host, on loopback addresses only. It imports nothing of the
code that it runs. The deployed code runs in it unchanged. Never for production.

Packages: `service_bus`, `dataverse`, `identity` and `functions_host` are the emulators; `faults` lets them fail;
`tracing` collects spans; `cloud` composes them all; people and programs use the result through `control` and
`command_line`.

Modules at the top, because several packages share them: `clock` (time that tests can move), `http_server` (the base
of the four HTTP servers), `listener` (the port of the AMQP server and of the fault proxy), `certificates` (the
authority of all TLS servers), `start_stop` (the context manager of what runs), `sales_records` (what the database has
of sales). Because they use the whole from outside: `actors`, `demo`, `testing`, `pytest_plugin`. Because they run
before anything else is imported or installed: `stopping`, `prerequisites`, `install`.
"""
