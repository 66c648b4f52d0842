// What people, and the pipeline's read login, may do with messages. It is deployed by a person who may assign roles, once
// for each environment, and not by the pipeline: the pipeline can assign roles to service principals only.
//
//   az deployment group create --name operators --resource-group GROUP --template-file infrastructure/operators.bicep \
//     --parameters namespaceName=NAMESPACE operatorsGroupId=GROUP_ID publishersGroupId=GROUP_ID readPrincipalId=ID

targetScope = 'resourceGroup'

@description('Name of the namespace: the output serviceBusNamespaceName of main.bicep.')
param namespaceName string

@description('Object id of the Entra group whose members read, replay and discard failed messages, and read published events. Empty: nobody.')
param operatorsGroupId string = ''

@description('Object id of the Entra group whose members publish an event again (operations events resend). Empty: nobody.')
param publishersGroupId string = ''

@description('Object id of the service principal of the pipeline\'s read connection, for the verification. Empty: none.')
param readPrincipalId string = ''

@description('The entities and their values.')
var entities = loadJsonContent('entities.json').UserConfig.Namespaces[0]

@description('Built-in role: Azure Service Bus Data Receiver.')
var dataReceiver = '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0'

@description('Built-in role: Azure Service Bus Data Sender.')
var dataSender = '69a216fc-b8fb-44d8-bc22-1f3c2cd27a39'

resource namespace 'Microsoft.ServiceBus/namespaces@2026-01-01' existing = {
  name: namespaceName
}

resource opportunityWon 'Microsoft.ServiceBus/namespaces/queues@2026-01-01' existing = {
  parent: namespace
  name: entities.Queues[0].Name
}

resource failed 'Microsoft.ServiceBus/namespaces/queues@2026-01-01' existing = {
  parent: namespace
  name: entities.Queues[1].Name
}

resource invoiceCreated 'Microsoft.ServiceBus/namespaces/topics@2026-01-01' existing = {
  parent: namespace
  name: entities.Topics[0].Name
}

resource audit 'Microsoft.ServiceBus/namespaces/topics/subscriptions@2026-01-01' existing = {
  parent: invoiceCreated
  name: entities.Topics[0].Subscriptions[0].Name
}

resource operatorsReadWins 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(operatorsGroupId)) {
  name: guid(opportunityWon.id, operatorsGroupId, dataReceiver)
  scope: opportunityWon
  properties: {
    principalId: operatorsGroupId
    principalType: 'Group'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
  }
}

resource operatorsReplay 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(operatorsGroupId)) {
  name: guid(opportunityWon.id, operatorsGroupId, dataSender)
  scope: opportunityWon
  properties: {
    principalId: operatorsGroupId
    principalType: 'Group'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

resource operatorsReadFailed 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(operatorsGroupId)) {
  name: guid(failed.id, operatorsGroupId, dataReceiver)
  scope: failed
  properties: {
    principalId: operatorsGroupId
    principalType: 'Group'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
  }
}

resource operatorsReadEvents 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(operatorsGroupId)) {
  name: guid(audit.id, operatorsGroupId, dataReceiver)
  scope: audit
  properties: {
    principalId: operatorsGroupId
    principalType: 'Group'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
  }
}

resource publishersPublish 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(publishersGroupId)) {
  name: guid(invoiceCreated.id, publishersGroupId, dataSender)
  scope: invoiceCreated
  properties: {
    principalId: publishersGroupId
    principalType: 'Group'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

resource pipelineReadsWins 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(readPrincipalId)) {
  name: guid(opportunityWon.id, readPrincipalId, dataReceiver)
  scope: opportunityWon
  properties: {
    principalId: readPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
  }
}

resource pipelineReadsFailed 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(readPrincipalId)) {
  name: guid(failed.id, readPrincipalId, dataReceiver)
  scope: failed
  properties: {
    principalId: readPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
  }
}

resource pipelineReadsEvents 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(readPrincipalId)) {
  name: guid(audit.id, readPrincipalId, dataReceiver)
  scope: audit
  properties: {
    principalId: readPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
  }
}
