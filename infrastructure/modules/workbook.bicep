// The workbook of the environment: one tile for each file in queries/workbook, from the log lines of the function.

import { Tags } from '../types.bicep'

@description('The environment, for the name.')
param environmentName string

@description('Region.')
param location string

@description('Tags of the resource.')
param tags Tags

@description('Name of the Log Analytics workspace that the tiles query.')
param workspaceName string

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' existing = {
  name: workspaceName
}

@description('The tiles, from top to bottom.')
var tiles = [
  {
    name: 'published'
    title: 'Published events per hour, and seconds from the win to the event (P50, P95)'
    visualization: 'timechart'
    query: loadTextContent('../queries/workbook/published.kql')
  }
  {
    name: 'oldest-waiting'
    title: 'Wins that wait for a retry, the oldest first'
    visualization: 'table'
    query: loadTextContent('../queries/workbook/oldest-waiting.kql')
  }
  {
    name: 'retries'
    title: 'Retries per hour by reason'
    visualization: 'barchart'
    query: loadTextContent('../queries/workbook/retries.kql')
  }
  {
    name: 'parked'
    title: 'Parked messages by reason'
    visualization: 'table'
    query: loadTextContent('../queries/workbook/parked.kql')
  }
  {
    name: 'dataverse'
    title: 'Requests to Dataverse per hour, and their duration in milliseconds (P50, P95)'
    visualization: 'timechart'
    query: loadTextContent('../queries/workbook/dataverse.kql')
  }
  {
    name: 'throttling'
    title: 'Throttling by Dataverse per hour'
    visualization: 'table'
    query: loadTextContent('../queries/workbook/throttling.kql')
  }
]

@description('The parameter that all tiles share: the time range.')
var timeRange = {
  type: 9
  name: 'parameters'
  content: {
    version: 'KqlParameterItem/1.0'
    style: 'pills'
    queryType: 0
    resourceType: 'microsoft.operationalinsights/workspaces'
    parameters: [
      {
        id: guid(workspace.id, 'TimeRange')
        version: 'KqlParameterItem/1.0'
        name: 'TimeRange'
        label: 'Time range'
        type: 4
        isRequired: true
        value: {
          durationMs: 86400000
        }
        typeSettings: {
          selectableValues: [
            {
              durationMs: 3600000
            }
            {
              durationMs: 86400000
            }
            {
              durationMs: 604800000
            }
            {
              durationMs: 2592000000
            }
          ]
        }
      }
    ]
  }
}

@description('The tiles in the form that workbooks store.')
var tileItems = [
  for tile in tiles: {
    type: 3
    name: tile.name
    content: {
      version: 'KqlItem/1.0'
      title: tile.title
      query: tile.query
      size: 0
      visualization: tile.visualization
      timeContextFromParameter: 'TimeRange'
      queryType: 0
      resourceType: 'microsoft.operationalinsights/workspaces'
      crossComponentResources: [workspace.id]
    }
  }
]

resource workbook 'Microsoft.Insights/workbooks@2023-06-01' = {
  name: guid(resourceGroup().id, 'invoicing-workbook')
  location: location
  tags: tags
  kind: 'shared'
  properties: {
    displayName: 'Invoicing ${environmentName}'
    category: 'workbook'
    version: 'Notebook/1.0'
    sourceId: workspace.id
    serializedData: string({
      version: 'Notebook/1.0'
      items: concat([timeRange], tileItems)
    })
  }
}
