// Everything that the function needs in Azure, for one environment in one resource group. Nothing of it has been deployed
// yet; the Bicep compiler accepts it without warnings, with every linter rule on.
//
//   az deployment group what-if --resource-group <group> --parameters infrastructure/environments/dev.bicepparam

targetScope = 'resourceGroup'

import { RetryBounds, Tags } from 'types.bicep'

@description('The environment. It is part of the names of all resources.')
@allowed(['dev', 'test', 'prod'])
param environmentName string

@description('Region of all resources. Flex Consumption must be available there: az functionapp list-flexconsumption-locations.')
param location string = resourceGroup().location

@description('The Dataverse environment, for example https://contoso.crm.dynamics.com: https, and nothing after the host.')
@minLength(20)
param dataverseUrl string

@description('Id of the Dataverse organization. If it is set, events of another environment are parked instead of processed. operations connect prints it.')
param dataverseOrganizationId string = ''

@description('What to do with a won opportunity that has a sales order: skip (it is billed through its order) or invoice.')
@allowed(['skip', 'invoice'])
param orderedOpportunity string = 'skip'

@description('Who owns an invoice that the function generates: the owner of the opportunity, or the function (application-user).')
@allowed(['opportunity', 'application-user'])
param invoiceOwner string = 'opportunity'

@description('Logical names of further columns of the invoice that its event contains. They can be personal data (SECURITY.md).')
@maxLength(100)
param invoiceColumns string[] = []

// Flex Consumption once required at least 40; its documentation now says 1.
@description('Maximum number of instances. Concurrent calls to Dataverse = instances x maxConcurrentCalls of host.json; keep it below 52 (docs/deploy.md).')
@minValue(1)
@maxValue(100)
param maximumInstanceCount int = 3

@description('Number of instances that are always running, which spares the first invoice a cold start. They are charged all the time.')
@minValue(0)
@maxValue(3)
param alwaysReadyInstanceCount int = 0

@description('true: the queue accepts and keeps messages, and the function receives none.')
param paused bool = false

@description('Addresses that receive the alerts.')
@minLength(1)
param alertEmailAddresses string[]

@description('How many days logs are kept.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('How long the function retries a win whose opportunity is still open, in seconds.')
@minValue(60)
@maxValue(3600)
param retryOpenSeconds int = 300

@description('How long the function retries a win that a person can fix, such as a missing price list, in seconds.')
@minValue(60)
@maxValue(604800)
param retryRecordSeconds int = 3600

@description('How long the function retries during an outage, in seconds. Stay well below the 14 days after which the queue expires a message.')
@minValue(3600)
@maxValue(864000)
param retryOutageSeconds int = 259200

@description('The delay before the first retry, in seconds. It doubles with each attempt.')
@minValue(1)
@maxValue(300)
param retryFirstDelaySeconds int = 5

@description('The upper limit of the delay between two attempts, in seconds.')
@minValue(10)
@maxValue(3600)
param retryMaxDelaySeconds int = 900

@description('Whether the app\'s own HTTP endpoint accepts connections. The function has no HTTP trigger. Whether Azure still lists the function, which the verification needs, with Deny is not confirmed.')
param httpInbound 'Allow' | 'Deny' = 'Allow'

@description('azureMonitor: the function exports spans and metrics to Application Insights. The package must be built with make package TELEMETRY=1.')
param telemetry 'off' | 'azureMonitor' = 'off'

@description('true: nothing in the Service Bus namespace can be deleted until somebody removes the lock.')
param preventDeletion bool = environmentName == 'prod'

@description('Maximum size of a queue or topic, in MB: the highest that the Standard tier permits.')
var maxSizeInMegabytes = 5120

@description('Makes names unique that must be unique in all of Azure.')
var suffix = uniqueString(resourceGroup().id)

@description('Name of the Service Bus namespace.')
var namespaceName = 'sb-invoicing-${environmentName}-${suffix}'

@description('Name of the Log Analytics workspace.')
var workspaceName = 'log-invoicing-${environmentName}-${suffix}'

@description('Tags of every resource.')
var tags Tags = {
  application: 'invoice-from-opportunity'
  environment: environmentName
}

@description('For how long, and how often, the function retries.')
var retryBounds RetryBounds = {
  openSeconds: retryOpenSeconds
  recordSeconds: retryRecordSeconds
  outageSeconds: retryOutageSeconds
  firstDelaySeconds: retryFirstDelaySeconds
  maxDelaySeconds: retryMaxDelaySeconds
}

// User-assigned: it survives the function app, so that its application user in Dataverse stays valid when the app is recreated.
resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: 'id-invoicing-${environmentName}-${suffix}'
  location: location
  tags: tags
}

module monitoring 'modules/monitoring.bicep' = {
  params: {
    workspaceName: workspaceName
    componentName: 'appi-invoicing-${environmentName}-${suffix}'
    location: location
    tags: tags
    retentionDays: logRetentionDays
    functionIdentityId: identity.id
    functionPrincipalId: identity.properties.principalId
  }
}

module serviceBus 'modules/service-bus.bicep' = {
  params: {
    namespaceName: namespaceName
    location: location
    tags: tags
    paused: paused
    functionIdentityId: identity.id
    functionPrincipalId: identity.properties.principalId
    workspaceName: workspaceName
    maxSizeInMegabytes: maxSizeInMegabytes
    preventDeletion: preventDeletion
  }
  dependsOn: [monitoring]
}

module functionApp 'modules/function-app.bicep' = {
  params: {
    functionAppName: 'invoicing-${environmentName}-${suffix}'
    storageAccountName: 'stinvoicing${suffix}'
    location: location
    tags: tags
    functionIdentityId: identity.id
    functionPrincipalId: identity.properties.principalId
    functionClientId: identity.properties.clientId
    serviceBusHost: '${namespaceName}.servicebus.windows.net'
    dataverseUrl: dataverseUrl
    dataverseOrganizationId: dataverseOrganizationId
    orderedOpportunity: orderedOpportunity
    invoiceOwner: invoiceOwner
    invoiceColumns: invoiceColumns
    retryBounds: retryBounds
    maximumInstanceCount: maximumInstanceCount
    alwaysReadyInstanceCount: alwaysReadyInstanceCount
    applicationInsightsConnectionString: monitoring.outputs.connectionString
    httpInbound: httpInbound
    telemetry: telemetry
  }
}

module alerts 'modules/alerts.bicep' = {
  params: {
    environmentName: environmentName
    location: location
    tags: tags
    emailAddresses: alertEmailAddresses
    namespaceName: namespaceName
    workspaceName: workspaceName
    maxSizeInMegabytes: maxSizeInMegabytes
    paused: paused
  }
  dependsOn: [monitoring, serviceBus]
}

module workbook 'modules/workbook.bicep' = {
  params: {
    environmentName: environmentName
    location: location
    tags: tags
    workspaceName: workspaceName
  }
  dependsOn: [monitoring]
}

@description('Name of the function app.')
output functionAppName string = functionApp.outputs.name

@description('Client id of the function\'s identity: the application id of its user in Dataverse.')
output identityClientId string = identity.properties.clientId

@description('Name of the Service Bus namespace.')
output serviceBusNamespaceName string = namespaceName

@description('Resource id of the Service Bus namespace, for operations doctor.')
output serviceBusNamespaceId string = serviceBus.outputs.namespaceId
