"""The tables of the platform: the organization, users, teams, roles, and those for posting events."""

from typing import Final

from sandbox.dataverse.columns import Column, ColumnKind, Lookup, Table
from sandbox.dataverse.declaring import choice, lookup, plain, states, table, text

_DEPTHS = {1: "Basic", 2: "Local", 4: "Deep", 8: "Global"}
_ENABLED = states({0: ("Enabled", {1: "Enabled"}), 1: ("Disabled", {2: "Disabled"})})


def _pair(
    name: str, set_name: str, first: str, second: str, *columns: list[Column], privilege: str, code: int
) -> Table:
    """Declare a table whose rows connect two rows, and are deleted with either."""
    lookups = [lookup(f"{target}id", target, on_delete="cascade") for target in (first, second)]
    key = f"{name.removesuffix('s')}id"
    return table(
        name, set_name, *lookups, *columns,
        privilege=privilege, code=code, key=key, primary_name=key, history=False,
    )  # fmt: skip


PLATFORM: Final = (
    table(
        "organization", "organizations",
        text("name friendlyname uniquename"), lookup("basecurrencyid", "transactioncurrency"),
        plain(ColumnKind.INTEGER, "pricingdecimalprecision", default=4),
        choice("discountcalculationmethod", {0: "Line item", 1: "Per unit"}, 0),
        plain(ColumnKind.BOOLEAN, "oobpricecalculationenabled", default=True),
        privilege="Organization", code=1019,
    ),
    table(
        "businessunit", "businessunits",
        text("name"), lookup("parentbusinessunitid", "businessunit", "business_unit_parent_business_unit"),
        plain(ColumnKind.BOOLEAN, "isdisabled", default=False),
        privilege="BusinessUnit", code=10,
    ),
    table(
        "systemuser", "systemusers",
        text("fullname firstname lastname domainname internalemailaddress"),
        plain(ColumnKind.ID, "applicationid", unique=True), plain(ColumnKind.ID, "azureactivedirectoryobjectid"),
        plain(ColumnKind.BOOLEAN, "isdisabled", default=False),
        choice("azurestate", {0: "Exists", 1: "Soft deleted", 2: "Not found or hard deleted"}, 0),
        choice("accessmode", {0: "Read-Write", 1: "Administrative", 4: "Non-interactive"}, 4),
        lookup("businessunitid", "businessunit", "business_unit_system_users"),
        privilege="User", code=8, primary_name="fullname",
    ),
    table(
        "team", "teams",
        text("name description"), choice("teamtype", {0: "Owner", 1: "Access"}, 0),
        lookup("businessunitid", "businessunit", "business_unit_teams"),
        privilege="Team", code=9,
    ),
    table(
        "role", "roles",
        text("name description"), lookup("businessunitid", "businessunit", "business_unit_roles"),
        privilege="Role", code=1036,
    ),
    table(
        "privilege", "privileges",
        text("name"), plain(ColumnKind.INTEGER, "accessright"),
        privilege="Privilege", code=1023, history=False,
    ),
    _pair(
        "roleprivileges", "roleprivilegescollection", "role", "privilege", choice("privilegedepthmask", _DEPTHS),
        privilege="Role", code=12,
    ),
    _pair("systemuserroles", "systemuserrolescollection", "systemuser", "role", privilege="Role", code=15),
    _pair("teamroles", "teamrolescollection", "team", "role", privilege="Role", code=40),
    _pair("teammembership", "teammemberships", "team", "systemuser", privilege="Team", code=23),
    table(
        "sdkmessage", "sdkmessages", text("name categoryname"),
        privilege="SdkMessage", code=4606,
    ),
    table(
        "sdkmessagefilter", "sdkmessagefilters",
        text("name primaryobjecttypecode secondaryobjecttypecode"),
        plain(ColumnKind.BOOLEAN, "iscustomprocessingstepallowed", default=True),
        lookup("sdkmessageid", "sdkmessage", "sdkmessageid_sdkmessagefilter"),
        privilege="SdkMessageFilter", code=4607,
    ),
    table(
        "serviceendpoint", "serviceendpoints",
        text("name description namespaceaddress solutionnamespace path saskeyname url"),
        text("saskey", secret=True), plain(ColumnKind.BOOLEAN, "issaskeyset", writable=False, default=False),
        choice("contract", {1: "OneWay", 2: "Queue", 3: "Rest", 4: "TwoWay", 5: "Topic",
                             6: "Queue (Persistent)", 7: "Event Hub", 8: "Webhook"}),
        choice("connectionmode", {1: "Normal", 2: "Federated"}, 1),
        choice("authtype", {1: "ACS", 2: "SAS Key", 3: "SAS Token", 9: "ManagedIdentity"}),
        choice("namespaceformat", {1: "Namespace Name", 2: "Namespace Address"}),
        choice("messageformat", {1: "Binary XML", 2: "Json", 3: "Text XML"}, 1),
        choice("userclaim", {1: "None", 2: "UserId"}, 1),
        privilege="ServiceEndpoint", code=4618,
    ),
    table(
        "sdkmessageprocessingstep", "sdkmessageprocessingsteps",
        text("name description filteringattributes configuration"),
        choice("mode", {0: "Synchronous", 1: "Asynchronous"}, 0),
        choice("stage", {10: "Pre-validation", 20: "Pre-operation", 40: "Post-operation"}, 40),
        choice("supporteddeployment", {0: "Server Only", 1: "Outlook Client Only", 2: "Both"}, 0),
        plain(ColumnKind.INTEGER, "rank", default=1), plain(ColumnKind.BOOLEAN, "asyncautodelete", default=False),
        [Column("eventhandler", ColumnKind.LOOKUP, lookup=Lookup(
            {"serviceendpoint": "eventhandler_serviceendpoint"},
            {"serviceendpoint": "serviceendpoint_sdkmessageprocessingstep"}, "restrict"))],
        lookup("sdkmessageid", "sdkmessage", "sdkmessageid_sdkmessageprocessingstep"),
        lookup("sdkmessagefilterid", "sdkmessagefilter", "sdkmessagefilterid_sdkmessageprocessingstep"),
        _ENABLED,
        privilege="SdkMessageProcessingStep", code=4608,
    ),
    table(
        "asyncoperation", "asyncoperations",
        text("name message friendlymessage correlationid messagename primaryentitytype requestid"),
        text("_post", secret=True),
        plain(ColumnKind.INTEGER, "errorcode"), plain(ColumnKind.INTEGER, "retrycount", default=0),
        plain(ColumnKind.DATETIME, "startedon completedon postponeuntil"),
        [Column("owningextensionid", ColumnKind.LOOKUP, lookup=Lookup(
            {"sdkmessageprocessingstep": "owningextensionid"},
            {"sdkmessageprocessingstep": "SdkMessageProcessingStep_AsyncOperations"}))],
        [Column("regardingobjectid", ColumnKind.LOOKUP, lookup=Lookup(
            {"opportunity": "regardingobjectid_opportunity"},
            {"opportunity": "Opportunity_AsyncOperations"}))],
        states({
            0: ("Ready", {0: "Waiting For Resources"}),
            1: ("Suspended", {10: "Waiting"}),
            2: ("Locked", {20: "In Progress", 21: "Pausing", 22: "Canceling"}),
            3: ("Completed", {30: "Succeeded", 31: "Failed", 32: "Canceled"}),
        }),
        privilege="AsyncOperation", code=4700, owned=True,
    ),
)  # fmt: skip
