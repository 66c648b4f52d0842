// Everything that the function needs in Azure, for one environment in one resource group.
//
// No compiler has seen this file: its syntax was checked with a tree-sitter grammar, its names with the tests of this
// repository, and nothing of it was deployed yet. `az deployment group what-if` is the first to judge it for good.
//
//   az deployment group what-if --resource-group <group> --parameters infrastructure/environments/dev.bicepparam

targetScope = 'resourceGroup'

@description('The environment: part of the names, so that dev, test and prod are told apart at a glance.')
@allowed(['dev', 'test', 'prod'])
param environmentName string

@description('Region of all resources. Flex Consumption must be offered there: az functionapp list-flexconsumption-locations.')
param location string = resourceGroup().location

@description('The Dataverse environment, for example https://contoso.crm.dynamics.com. Always https, nothing after the host.')
@minLength(20)
param dataverseUrl string

@description('Id of the Dataverse organization. With it, events of another environment are parked instead of processed. `operations connect` prints it.')
param dataverseOrganizationId string = ''

@description('What to do with a won opportunity that has a sales order: skip (it is billed through its order) or invoice.')
@allowed(['skip', 'invoice'])
param orderedOpportunity string = 'skip'

// Flex Consumption once took no fewer than 40; documentation now says 1.
@description('How many instances at most. Calls to Dataverse at once = instances x maxConcurrentCalls of host.json, to be kept below 52: docs/deploy.md has the sum.')
@minValue(1)
@maxValue(100)
param maximumInstanceCount int = 3

@description('Instances that never sleep, for a first invoice without the seconds of a cold start. They cost money all the time.')
@minValue(0)
@maxValue(3)
param alwaysReadyInstanceCount int = 0

@description('true: messages are accepted and kept, but nobody receives them.')
param paused bool = false

@description('Who gets the alerts.')
@minLength(1)
param alertEmailAddresses array

@description('Object id of the Entra group whose members may list, replay and discard failed messages; empty: nobody is given these rights here.')
param operatorsGroupId string = ''

@description('How many days logs are kept.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

// Names that the whole system agrees on. A test compares them with function.json, the sandbox and the documentation.
var opportunityWonQueueName = 'opportunity-won'
var failedQueueName = 'opportunity-won-failed'
var invoiceCreatedTopicName = 'invoice-created'

var suffix = uniqueString(resourceGroup().id)
var tags = {
  application: 'invoice-from-opportunity'
  environment: environmentName
}

// User-assigned: it outlives the function app, so that its application user in Dataverse stays valid when the app is recreated.
resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: 'id-invoicing-${environmentName}-${suffix}'
  location: location
  tags: tags
}

module serviceBus 'modules/service-bus.bicep' = {
  name: 'service-bus'
  params: {
    namespaceName: 'sb-invoicing-${environmentName}-${suffix}'
    location: location
    tags: tags
    opportunityWonQueueName: opportunityWonQueueName
    failedQueueName: failedQueueName
    invoiceCreatedTopicName: invoiceCreatedTopicName
    paused: paused
    functionPrincipalId: identity.properties.principalId
    operatorsGroupId: operatorsGroupId
  }
}

module monitoring 'modules/monitoring.bicep' = {
  name: 'monitoring'
  params: {
    workspaceName: 'log-invoicing-${environmentName}-${suffix}'
    componentName: 'appi-invoicing-${environmentName}-${suffix}'
    location: location
    tags: tags
    retentionDays: logRetentionDays
    functionPrincipalId: identity.properties.principalId
  }
}

module functionApp 'modules/function-app.bicep' = {
  name: 'function-app'
  params: {
    functionAppName: 'invoicing-${environmentName}-${suffix}'
    storageAccountName: 'stinvoicing${suffix}'
    location: location
    tags: tags
    identityId: identity.id
    identityClientId: identity.properties.clientId
    functionPrincipalId: identity.properties.principalId
    serviceBusHost: serviceBus.outputs.host
    opportunityWonQueueName: opportunityWonQueueName
    failedQueueName: failedQueueName
    invoiceCreatedTopicName: invoiceCreatedTopicName
    dataverseUrl: dataverseUrl
    dataverseOrganizationId: dataverseOrganizationId
    orderedOpportunity: orderedOpportunity
    maximumInstanceCount: maximumInstanceCount
    alwaysReadyInstanceCount: alwaysReadyInstanceCount
    applicationInsightsConnectionString: monitoring.outputs.connectionString
  }
}

module alerts 'modules/alerts.bicep' = {
  name: 'alerts'
  params: {
    environmentName: environmentName
    location: location
    tags: tags
    emailAddresses: alertEmailAddresses
    namespaceId: serviceBus.outputs.namespaceId
    workspaceId: monitoring.outputs.workspaceId
    opportunityWonQueueName: opportunityWonQueueName
    failedQueueName: failedQueueName
    invoiceCreatedTopicName: invoiceCreatedTopicName
    paused: paused
  }
}

// What the pipeline, the command line and people need to know. No key is ever an output.
output functionAppName string = functionApp.outputs.name
output identityClientId string = identity.properties.clientId
output serviceBusNamespaceName string = serviceBus.outputs.namespaceName
output serviceBusNamespaceId string = serviceBus.outputs.namespaceId
