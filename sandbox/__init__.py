"""Azure on one machine, for tests and demonstrations.

Service Bus, Dataverse, managed identity and a Functions host, on loopback addresses only. It is a stranger
to the code that it runs, as Azure is: it imports nothing of it, and what is deployed cannot tell the two
apart. Never for production.
"""
