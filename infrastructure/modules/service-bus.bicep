// The namespace with its queues and its topic, and the rights of the function. The entities' values come from
// entities.json. The rights of people are in operators.bicep.

import { Tags } from '../types.bicep'

@description('Name of the namespace.')
param namespaceName string

@description('Region.')
param location string

@description('Tags of the resources.')
param tags Tags

@description('true: the queue accepts messages and delivers none.')
param paused bool

@description('Resource id of the function\'s identity. It is known before the deployment, so that names derive from it.')
param functionIdentityId string

@description('Principal id of the function\'s identity.')
param functionPrincipalId string

@description('Name of the Log Analytics workspace that receives the namespace\'s logs.')
param workspaceName string

@description('Maximum size of a queue or topic, in MB.')
param maxSizeInMegabytes int

@description('true: nothing in the namespace can be deleted until the lock is removed.')
param preventDeletion bool

@description('The entities and their values.')
var entities = loadJsonContent('../entities.json').UserConfig.Namespaces[0]

@description('The queue that Dynamics posts to.')
var wonQueue = entities.Queues[0]

@description('The queue for messages that failed for good.')
var failedQueue = entities.Queues[1]

@description('The topic for created invoices.')
var createdTopic = entities.Topics[0]

@description('The subscription that keeps published events for operators.')
var auditSubscription = createdTopic.Subscriptions[0]

@description('Built-in role: Azure Service Bus Data Receiver.')
var dataReceiver = '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0'

@description('Built-in role: Azure Service Bus Data Sender.')
var dataSender = '69a216fc-b8fb-44d8-bc22-1f3c2cd27a39'

@description('Built-in role: Reader.')
var reader = 'acdd72a7-3385-48ef-bd42-f606fba81ae7'

// Standard: Basic has neither topics nor duplicate detection.
resource namespace 'Microsoft.ServiceBus/namespaces@2026-01-01' = {
  name: namespaceName
  location: location
  tags: tags
  sku: {
    name: 'Standard'
    tier: 'Standard'
  }
  properties: {
    minimumTlsVersion: '1.2'
    // Dataverse's service endpoint connects from the internet and authenticates with a SAS key, so both stay enabled.
    publicNetworkAccess: 'Enabled'
    disableLocalAuth: false
  }
}

resource failed 'Microsoft.ServiceBus/namespaces/queues@2026-01-01' = {
  parent: namespace
  name: failedQueue.Name
  properties: {
    lockDuration: failedQueue.Properties.LockDuration
    maxDeliveryCount: failedQueue.Properties.MaxDeliveryCount
    requiresDuplicateDetection: failedQueue.Properties.RequiresDuplicateDetection
    defaultMessageTimeToLive: failedQueue.Properties.DefaultMessageTimeToLive
    deadLetteringOnMessageExpiration: failedQueue.Properties.DeadLetteringOnMessageExpiration
    maxSizeInMegabytes: maxSizeInMegabytes
  }
}

resource opportunityWon 'Microsoft.ServiceBus/namespaces/queues@2026-01-01' = {
  parent: namespace
  name: wonQueue.Name
  properties: {
    status: paused ? 'ReceiveDisabled' : 'Active'
    lockDuration: wonQueue.Properties.LockDuration
    maxDeliveryCount: wonQueue.Properties.MaxDeliveryCount
    requiresDuplicateDetection: wonQueue.Properties.RequiresDuplicateDetection
    duplicateDetectionHistoryTimeWindow: wonQueue.Properties.DuplicateDetectionHistoryTimeWindow
    defaultMessageTimeToLive: wonQueue.Properties.DefaultMessageTimeToLive
    deadLetteringOnMessageExpiration: wonQueue.Properties.DeadLetteringOnMessageExpiration
    forwardDeadLetteredMessagesTo: wonQueue.Properties.ForwardDeadLetteredMessagesTo
    maxSizeInMegabytes: maxSizeInMegabytes
  }
  dependsOn: [failed]
}

resource invoiceCreated 'Microsoft.ServiceBus/namespaces/topics@2026-01-01' = {
  parent: namespace
  name: createdTopic.Name
  properties: {
    requiresDuplicateDetection: createdTopic.Properties.RequiresDuplicateDetection
    duplicateDetectionHistoryTimeWindow: createdTopic.Properties.DuplicateDetectionHistoryTimeWindow
    maxSizeInMegabytes: maxSizeInMegabytes
  }
}

resource audit 'Microsoft.ServiceBus/namespaces/topics/subscriptions@2026-01-01' = {
  parent: invoiceCreated
  name: auditSubscription.Name
  properties: {
    lockDuration: auditSubscription.Properties.LockDuration
    maxDeliveryCount: auditSubscription.Properties.MaxDeliveryCount
    defaultMessageTimeToLive: auditSubscription.Properties.DefaultMessageTimeToLive
    deadLetteringOnMessageExpiration: auditSubscription.Properties.DeadLetteringOnMessageExpiration
  }
}

// The only key of the system, for Dataverse's service endpoint. It can send to this queue and nothing else.
resource dataverseSends 'Microsoft.ServiceBus/namespaces/queues/authorizationRules@2026-01-01' = {
  parent: opportunityWon
  name: wonQueue.AuthorizationRules[0].Name
  properties: {
    rights: wonQueue.AuthorizationRules[0].Rights
  }
}

resource functionReceivesWins 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(opportunityWon.id, functionIdentityId, dataReceiver)
  scope: opportunityWon
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
  }
}

resource functionSchedulesRetries 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(opportunityWon.id, functionIdentityId, dataSender)
  scope: opportunityWon
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

resource functionParks 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(failed.id, functionIdentityId, dataSender)
  scope: failed
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

resource functionPublishes 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(invoiceCreated.id, functionIdentityId, dataSender)
  scope: invoiceCreated
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

// Target-based scaling reads the queue's counters; without this right it degrades silently. A Reader sees properties and
// counters, and neither messages nor keys. A custom role could permit less, but the login that deploys it could also widen it.
resource functionScales 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(namespace.id, functionIdentityId, reader)
  scope: namespace
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', reader)
  }
}

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' existing = {
  name: workspaceName
}

// Changes of entities and rules, and refused connections. Who sent or received a message (RuntimeAuditLogs) is recorded in
// the Premium tier only; there the category group includes it.
// The only other version, 2016-09-01, has no category groups.
#disable-next-line use-recent-api-versions
resource logs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: namespace
  properties: {
    workspaceId: workspace.id
    logAnalyticsDestinationType: 'Dedicated'
    logs: [
      {
        categoryGroup: 'allLogs'
        enabled: true
      }
    ]
  }
}

resource lock 'Microsoft.Authorization/locks@2020-05-01' = if (preventDeletion) {
  name: 'prevent-deletion'
  scope: namespace
  properties: {
    level: 'CanNotDelete'
    notes: 'The queues contain wins that have no invoice yet. Remove this lock only to take the environment down.'
  }
}

@description('Resource id of the namespace.')
output namespaceId string = namespace.id
