"""The tables (by their entity sets) and messages of Dynamics 365 Sales that the sandbox does not support.

A request for one of these gets 501 and a text with the name. A name in neither list gets 404, as if Dataverse did not
know it either. The lists are not complete.
"""

from typing import Final

TABLES: Final = frozenset({
    "activityparties", "activitypointers", "appointments", "emails", "faxes", "letters", "phonecalls",
    "tasks", "campaigns", "competitors", "goals", "incidents", "leads", "lists", "territories", "subjects",
    "sites", "quotecloses", "contracts", "discounts", "discounttypes", "productpricelevels",
    "productassociations", "customeraddresses", "connections", "duplicaterules", "queues", "queueitems",
    "sharepointsites", "attributemaps", "entitymaps", "pluginassemblies", "plugintypes", "plugintracelogs",
    "solutions", "publishers", "workflows", "savedqueries", "userqueries", "systemforms",
    "usersettingscollection", "GlobalOptionSetDefinitions", "RelationshipDefinitions",
    "ManagedPropertyDefinitions",
})  # fmt: skip
MESSAGES: Final = frozenset({
    "CreateMultiple", "UpdateMultiple", "DeleteMultiple", "UpsertMultiple", "BulkDelete", "GrantAccess",
    "ModifyAccess", "RevokeAccess", "RetrieveSharedPrincipalsAndAccess", "CalculatePrice",
    "LockInvoicePricing", "UnlockInvoicePricing", "LockSalesOrderPricing", "WinQuote", "CloseQuote",
    "ReviseQuote", "GetInvoiceProductsFromOpportunity", "QualifyLead", "AddMembersTeam",
    "RemoveMembersTeam", "SetBusinessSystemUser", "Merge", "InitializeFrom", "RetrieveVersion",
    "RetrieveCurrentOrganization", "RetrieveUserPrivileges", "PublishXml", "RetrieveEntityChanges",
    "RetrieveTotalRecordCount", "ExecuteWorkflow", "FormatAddress", "RetrievePrincipalAccess",
    "RemovePrivilegeRole", "TriggerServiceEndpointCheck",
})  # fmt: skip
