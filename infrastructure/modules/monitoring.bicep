// Where the logs go: a workspace, and Application Insights over it. Written to with the identity, read by the alerts.
//
// No compiler has seen this file; see main.bicep.

param workspaceName string
param componentName string
param location string
param tags object
param retentionDays int
param functionPrincipalId string

// Built-in role.
var monitoringMetricsPublisher = '3913510d-42f4-4e42-8a64-420c390055eb'

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' = {
  name: workspaceName
  location: location
  tags: tags
  properties: {
    sku: {
      name: 'PerGB2018'
    }
    retentionInDays: retentionDays
  }
}

resource component 'Microsoft.Insights/components@2020-02-02' = {
  name: componentName
  location: location
  tags: tags
  kind: 'web'
  properties: {
    Application_Type: 'web'
    WorkspaceResourceId: workspace.id
    // Who knows the connection string can write nothing: an Entra token is needed.
    DisableLocalAuth: true
  }
}

resource functionWritesTelemetry 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(component.id, functionPrincipalId, monitoringMetricsPublisher)
  scope: component
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', monitoringMetricsPublisher)
  }
}

output workspaceId string = workspace.id
output connectionString string = component.properties.ConnectionString
