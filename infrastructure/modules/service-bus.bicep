// The namespace with its queues and its topic, and who may do what with each of them.
//
// No compiler has seen this file; see main.bicep.

param namespaceName string
param location string
param tags object
param opportunityWonQueueName string
param failedQueueName string
param invoiceCreatedTopicName string
param paused bool
param functionPrincipalId string
param operatorsGroupId string

// Built-in roles.
var dataReceiver = '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0'
var dataSender = '69a216fc-b8fb-44d8-bc22-1f3c2cd27a39'

// Standard: Basic has neither topics nor duplicate detection.
resource namespace 'Microsoft.ServiceBus/namespaces@2024-01-01' = {
  name: namespaceName
  location: location
  tags: tags
  sku: {
    name: 'Standard'
    tier: 'Standard'
  }
  properties: {
    minimumTlsVersion: '1.2'
    // Dataverse's service endpoint comes from the internet and authenticates with a SAS key: neither can be switched off.
    publicNetworkAccess: 'Enabled'
    disableLocalAuth: false
  }
}

resource opportunityWon 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' = {
  parent: namespace
  name: opportunityWonQueueName
  properties: {
    status: paused ? 'ReceiveDisabled' : 'Active'
    lockDuration: 'PT1M'
    maxDeliveryCount: 10
    // Not to be changed once the queue is there: Azure refuses it.
    requiresDuplicateDetection: true
    duplicateDetectionHistoryTimeWindow: 'PT10M'
    // Far above the longest retry (3 days). What waits longer is shown to people, not dropped.
    defaultMessageTimeToLive: 'P14D'
    deadLetteringOnMessageExpiration: true
    // One place to look: dead letters come to where the function parks what it gives up.
    forwardDeadLetteredMessagesTo: failed.name
  }
}

resource failed 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' = {
  parent: namespace
  name: failedQueueName
  properties: {
    lockDuration: 'PT1M'
    // The highest there is: looking for one message among many must not wear out the others.
    maxDeliveryCount: 2000
    requiresDuplicateDetection: false
    // No end: nothing leaves this queue except by somebody's decision.
    defaultMessageTimeToLive: 'P10675199DT2H48M5.4775807S'
    deadLetteringOnMessageExpiration: true
  }
}

resource invoiceCreated 'Microsoft.ServiceBus/namespaces/topics@2024-01-01' = {
  parent: namespace
  name: invoiceCreatedTopicName
  properties: {
    // Not to be changed once the topic is there.
    requiresDuplicateDetection: true
    duplicateDetectionHistoryTimeWindow: 'P7D'
  }
}

// Every event of the last 14 days, for whoever wants to look. It forgets, because a subscription that nobody reads would
// fill the topic and stop publishing for all.
resource audit 'Microsoft.ServiceBus/namespaces/topics/subscriptions@2024-01-01' = {
  parent: invoiceCreated
  name: 'audit'
  properties: {
    lockDuration: 'PT1M'
    maxDeliveryCount: 10
    defaultMessageTimeToLive: 'P14D'
    deadLetteringOnMessageExpiration: false
  }
}

// The one key of the system, for Dataverse's service endpoint: it can send to this queue and do nothing else.
resource dataverseSends 'Microsoft.ServiceBus/namespaces/queues/authorizationRules@2024-01-01' = {
  parent: opportunityWon
  name: 'dataverse'
  properties: {
    rights: ['Send']
  }
}

// The function: receives wins, schedules copies of them, parks what failed, publishes invoices.
resource functionReceivesWins 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(opportunityWon.id, functionPrincipalId, dataReceiver)
  scope: opportunityWon
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
  }
}

resource functionSchedulesCopies 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(opportunityWon.id, functionPrincipalId, dataSender)
  scope: opportunityWon
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

resource functionParks 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(failed.id, functionPrincipalId, dataSender)
  scope: failed
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

resource functionPublishes 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(invoiceCreated.id, functionPrincipalId, dataSender)
  scope: invoiceCreated
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

// Scaling by the length of the queue reads its counters. Without this right it degrades without a word.
resource entityReader 'Microsoft.Authorization/roleDefinitions@2022-04-01' = {
  name: guid(resourceGroup().id, 'service-bus-entity-reader')
  properties: {
    roleName: 'Service Bus entity reader (${resourceGroup().name})'
    description: 'Reads the properties and the counters of queues, topics and subscriptions, not their messages and no keys.'
    type: 'CustomRole'
    permissions: [
      {
        actions: ['Microsoft.ServiceBus/namespaces/*/read']
        notActions: []
      }
    ]
    assignableScopes: [resourceGroup().id]
  }
}

resource functionScales 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(namespace.id, functionPrincipalId, 'service-bus-entity-reader')
  scope: namespace
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: entityReader.id
  }
}

// The operators: python -m operations failed, waiting, events, reconcile.
resource operatorsReceiveWins 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(operatorsGroupId)) {
  name: guid(opportunityWon.id, operatorsGroupId, dataReceiver)
  scope: opportunityWon
  properties: {
    principalId: operatorsGroupId
    principalType: 'Group'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
  }
}

resource operatorsSendWins 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(operatorsGroupId)) {
  name: guid(opportunityWon.id, operatorsGroupId, dataSender)
  scope: opportunityWon
  properties: {
    principalId: operatorsGroupId
    principalType: 'Group'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

resource operatorsReceiveFailed 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(operatorsGroupId)) {
  name: guid(failed.id, operatorsGroupId, dataReceiver)
  scope: failed
  properties: {
    principalId: operatorsGroupId
    principalType: 'Group'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
  }
}

resource operatorsResendEvents 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(operatorsGroupId)) {
  name: guid(invoiceCreated.id, operatorsGroupId, dataSender)
  scope: invoiceCreated
  properties: {
    principalId: operatorsGroupId
    principalType: 'Group'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

output namespaceId string = namespace.id
output namespaceName string = namespace.name
output host string = '${namespace.name}.servicebus.windows.net'
