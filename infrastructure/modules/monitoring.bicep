// Where the logs go: a Log Analytics workspace, and Application Insights over it. The function writes with its identity.

import { Tags } from '../types.bicep'

@description('Name of the Log Analytics workspace.')
param workspaceName string

@description('Name of the Application Insights component.')
param componentName string

@description('Region.')
param location string

@description('Tags of the resources.')
param tags Tags

@description('How many days the workspace keeps logs.')
param retentionDays int

@description('Resource id of the function\'s identity. It is known before the deployment, so that names derive from it.')
param functionIdentityId string

@description('Principal id of the function\'s identity.')
param functionPrincipalId string

@description('Built-in role: Monitoring Metrics Publisher.')
var monitoringMetricsPublisher = '3913510d-42f4-4e42-8a64-420c390055eb'

@description('The tables of Application Insights. Azure keeps them for 90 days, even if the workspace has another retention, unless each table has its own.')
var applicationInsightsTables = [
  'AppAvailabilityResults'
  'AppBrowserTimings'
  'AppDependencies'
  'AppEvents'
  'AppExceptions'
  'AppMetrics'
  'AppPageViews'
  'AppPerformanceCounters'
  'AppRequests'
  'AppSystemEvents'
  'AppTraces'
]

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' = {
  name: workspaceName
  location: location
  tags: tags
  properties: {
    sku: {
      name: 'PerGB2018'
    }
    retentionInDays: retentionDays
    features: {
      // Nobody writes with the workspace's shared keys: an Entra token is required.
      disableLocalAuth: true
    }
  }
}

// One at a time: the workspace refuses concurrent changes of its tables.
@batchSize(1)
resource tables 'Microsoft.OperationalInsights/workspaces/tables@2025-07-01' = [
  for table in applicationInsightsTables: {
    parent: workspace
    name: table
    properties: {
      retentionInDays: retentionDays
      totalRetentionInDays: retentionDays
    }
  }
]

resource component 'Microsoft.Insights/components@2020-02-02' = {
  name: componentName
  location: location
  tags: tags
  kind: 'web'
  properties: {
    Application_Type: 'web'
    WorkspaceResourceId: workspace.id
    // The connection string alone permits nothing: an Entra token is required.
    DisableLocalAuth: true
  }
}

resource functionWritesTelemetry 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(component.id, functionIdentityId, monitoringMetricsPublisher)
  scope: component
  properties: {
    principalId: functionPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', monitoringMetricsPublisher)
  }
}

@description('Connection string of Application Insights. It is an address and not a secret, because local authentication is off.')
output connectionString string = component.properties.ConnectionString
